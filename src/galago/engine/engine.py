"""The engine in front of a model: requests in, events out, one thread that does the work."""

import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Empty
from typing import TYPE_CHECKING, Any

import torch

from galago.engine.encoded_image import EncodedImage
from galago.engine.image_cache import ImageCache
from galago.engine.inbox import Inbox, Job
from galago.engine.metrics import Metrics
from galago.engine.scheduler import Limits, Scheduler
from galago.engine.step import End, Start, StepModel, Steps
from galago.errors import EngineBusy, GalagoError
from galago.media.clip import Clip
from galago.nn.device import use_threads
from galago.request import Detail, Done, Event, Request

if TYPE_CHECKING:
    from PIL import Image

    from galago.media.picture import Picture


class Run:
    """A request under way: iterate for its events. The last is Done, or the request's error is raised.

    Letting go of a Run cancels it.
    """

    def __init__(self, engine: "Engine", inbox: Inbox, job: Job) -> None:
        self._engine = engine  # lives as long as its runs
        self._job = job
        self._over = False
        self._cancel = weakref.finalize(self, inbox.cancel, job)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        """Wait for the next event."""
        if self._over:
            raise StopIteration
        return self._given(self._job.events.get())

    def poll(self) -> Event | None:
        """The next event if it is there already, and no waiting; raises the request's error as iteration does."""
        try:
            return None if self._over else self._given(self._job.events.get_nowait())
        except Empty:
            return None

    def watch(self, told: Callable[[], None]) -> None:
        """Have `told` called whenever there may be something to poll: by the engine's thread, so it must be short."""
        self._job.told = told
        told()

    def _given(self, event: Event | GalagoError) -> Event:
        if isinstance(event, GalagoError):
            self._over = True
            raise event
        self._over = isinstance(event, Done)
        return event

    def cancel(self) -> None:
        """Stop at the next step, from any thread; iteration then ends with Done('cancelled')."""
        self._cancel()


class Engine:
    """Carries out requests on one model, many at a time, in a thread of its own.

    An engine that is let go, with all its runs, closes itself.
    """

    def __init__(self, model: StepModel, limits: Limits | None = None, threads: int | None = None) -> None:
        """`threads` compute, by default as many as torch gives to the thread that calls."""
        self.model = model
        self.threads = threads or torch.get_num_threads()
        limits = limits or Limits()
        self._metrics = metrics = Metrics(model.name, model.precision.name)
        self._inbox = Inbox(limits.waiting, lambda job, how: metrics.finished(job.skill, how, None, None))
        images = ImageCache(limits.prefix_bytes, limits.embedding_bytes, limits.disk, limits.disk_bytes)
        self._scheduler = Scheduler(model, self._inbox, limits, images, self._metrics)
        self._bounds = {"waiting": limits.waiting, "running": limits.running}
        worker = threading.Thread(target=_work, args=(self._scheduler, self.threads), name="galago-engine", daemon=True)
        worker.start()
        self._close = weakref.finalize(self, _shut_down, self._inbox, worker)

    @property
    def waiting(self) -> int:
        """Requests in the queue, those under way not counted."""
        return len(self._inbox)

    def stats(self) -> dict[str, Any]:
        """What has been done, and what is held, for programs to read; see metrics.Metrics.stats."""
        return (
            self._metrics.stats()
            | self._scheduler.stats()
            | {"limits": self._bounds | {"kv_bytes": self._scheduler.kv_bytes}}
        )

    def limit_kv(self, most: int) -> None:
        """Set the bytes of keys and values that requests may have which begin from now on."""
        self._scheduler.kv_bytes = most

    def trim(self) -> None:
        """Let go of all cached images that no running request uses, before the next step."""
        self._scheduler.trim()

    def submit(self, request: Request) -> Run:
        """Queue a request.

        Raises EngineBusy when the queue is full, EngineClosed after close(), and at once what is
        wrong with the request itself.
        """
        since, skill = time.perf_counter(), type(request.skill).__name__.lower()
        return self._enqueue(Job(self.model.skill(request), skill, request.priority, request.timeout, since))

    def encode_image(
        self, shown: "Image.Image | Picture | Clip", variant: str | None = None, detail: Detail = "high"
    ) -> EncodedImage:
        """Encode an image or a clip in its turn; raises as submit does."""
        prefix = self.model.opening(shown, detail)
        made: list[EncodedImage] = []

        def steps() -> Steps:
            encoded = yield Start(prefix, 0, variant)
            assert isinstance(encoded, EncodedImage)
            made.append(encoded)
            return End("stop", 0)

        for _ in self._enqueue(Job(steps(), "encode")):
            pass
        return replace(made[0], clip=isinstance(shown, Clip))

    def check_queue(self) -> None:
        """Raise what `submit` would raise of the queue now."""
        try:
            self._inbox.check()
        except EngineBusy:
            self._metrics.refused(EngineBusy.code)
            raise

    def close(self) -> None:
        """Refuse new requests, end waiting and running ones with EngineClosed, and wait for the thread."""
        self._close()

    def _enqueue(self, job: Job) -> Run:
        try:
            self._inbox.put(job)
        except EngineBusy:
            self._metrics.refused(EngineBusy.code)
            raise
        self._metrics.submitted(job.skill, job.priority)
        return Run(self, self._inbox, job)


def _shut_down(inbox: Inbox, worker: threading.Thread) -> None:
    inbox.close()
    if worker is not threading.current_thread():
        worker.join()


def _work(scheduler: Scheduler, threads: int) -> None:
    """Holds neither the engine nor a run, so that both can be let go while it waits."""
    use_threads(threads)
    with torch.inference_mode():
        scheduler.run()
