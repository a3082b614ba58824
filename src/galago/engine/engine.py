"""The engine in front of a model: requests in, events out, one thread that does the work."""

import atexit
import copy
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from queue import Empty
from typing import Any, Protocol

from PIL import Image

from galago.engine.encoded_image import EncodedImage
from galago.engine.image_cache import ImageCache
from galago.engine.limits import Limits
from galago.engine.metrics import Metrics
from galago.engine.request_queue import Job, RequestQueue
from galago.engine.scheduler import Scheduler
from galago.engine.step import End, Start, StepModel, Steps
from galago.errors import EngineBusy, EngineClosed, EngineFailed, GalagoError, InvalidRequest
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import Done, Encode, Encoding, Event, ImageEncoded, Request
from galago.system.device import CPU, computing, default_threads

log = logging.getLogger(__name__)


class EngineRun:
    """A request that this engine runs; see backend.Run."""

    def __init__(self, engine: "Queued", queue: RequestQueue, job: Job) -> None:
        self._engine = engine  # lives as long as its runs
        self._job = job
        self._ended = False
        self._queue = queue
        weakref.finalize(self, queue.abandon, job)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        if self._ended:
            raise StopIteration
        self._engine.check_process()
        return self._deliver(self._job.events.get())

    def poll(self) -> Event | None:
        self._engine.check_process()
        try:
            return None if self._ended else self._deliver(self._job.events.get_nowait())
        except Empty:
            return None

    @property
    def ended(self) -> bool:
        return self._job.ended

    def watch(self, told: Callable[[], None]) -> None:
        """See backend.Run. What `told` raises is logged, and the request goes on."""
        self._job.on_event = told
        told()

    def _deliver(self, event: Event | GalagoError) -> Event:
        if isinstance(event, GalagoError):
            self._ended = True
            try:
                raise event
            finally:
                del event  # this frame is in its traceback: it would hold itself, and with it the model
        self._ended = isinstance(event, Done)
        return event

    def cancel(self) -> None:
        self._queue.cancel(self._job)


class Queued:
    """What takes requests into a queue of its own, and carries them out in a thread of its own.

    One that is let go, with all its runs, closes itself.
    """

    def __init__(self, turns: "Turns", queue: RequestQueue, metrics: Metrics, threads: int) -> None:
        """`turns` carries the requests out; `threads` compute."""
        self._queue, self._metrics = queue, metrics
        self._process = os.getpid()
        self._worker = Worker(turns, queue, threads)
        self._worker.start()
        # What the garbage collector calls must not wait: the thread ends by itself soon after.
        weakref.finalize(self, queue.close, SHUT_DOWN)

    @property
    def ended(self) -> GalagoError | None:
        """Why it takes no more requests: it was closed, its thread ended, or this process forked off; else None."""
        return FORKED if self._process != os.getpid() else self._queue.closed

    def put(self, job: Job) -> EngineRun:
        """Queue a request. Raises EngineBusy when the queue is full, EngineClosed or EngineFailed where it ended."""
        self.check_process()
        try:
            self._queue.put(job)
        except EngineBusy:
            self._metrics.count_refused(EngineBusy.code)
            raise
        self._metrics.count_submitted(job.skill, job.priority)
        return EngineRun(self, self._queue, job)

    def check_queue(self) -> None:
        """Raise what `put` would raise now."""
        self.check_process()
        try:
            self._queue.check()
        except EngineBusy:
            self._metrics.count_refused(EngineBusy.code)
            raise

    def close(self) -> None:
        """Refuse new requests, end waiting and running ones with EngineClosed, and wait for the thread."""
        self._queue.close(SHUT_DOWN)
        if self._worker is not threading.current_thread():
            self._worker.join()

    def check_process(self) -> None:
        """Raise EngineClosed where the thread cannot be: threads do not survive a fork."""
        if self._process != os.getpid():
            raise copy.copy(FORKED)


class Engine(Queued):
    """Runs requests on one model, many at a time, in a thread of its own."""

    def __init__(self, model: StepModel, limits: Limits | None = None, threads: int | None = None) -> None:
        """`threads` compute, by default as many as PyTorch gives to the thread that calls, or all cores."""
        self.model = model
        self.threads = threads or default_threads()
        limits = limits or Limits()
        metrics = Metrics(model.name, model.precision.name)
        queue = RequestQueue(limits.waiting, limits.running)
        images = ImageCache(
            limits.prefix_bytes, limits.embedding_bytes, limits.disk, limits.disk_bytes, model.device != CPU
        )
        self._scheduler = Scheduler(model, queue, limits, images, metrics)
        self._limits = {"waiting": limits.waiting, "running": limits.running}
        super().__init__(self._scheduler, queue, metrics, self.threads)

    @property
    def waiting(self) -> int:
        """Requests in the queue, those under way not counted."""
        return len(self._queue)

    def stats(self) -> dict[str, Any]:
        """What has been done and what is held, as plain JSON; see metrics.Metrics.stats."""
        return (
            self._metrics.stats()
            | self._scheduler.stats()
            | {"limits": self._limits | {"kv_bytes": self._scheduler.kv_bytes}}
        )

    def limit_kv(self, most: int) -> None:
        """Set the bytes of keys and values that requests may have which begin from now on."""
        self._scheduler.kv_bytes = most

    def trim(self) -> None:
        """Let go of all cached images that no running request uses, before the next step."""
        self._scheduler.trim()

    def submit(self, request: Request) -> EngineRun:
        """Queue a request.

        Raises EngineBusy when the queue is full, EngineClosed after close() and in a process that was forked off,
        EngineFailed if its thread has ended, and at once what is wrong with the request itself.
        """
        arrival, skill = time.perf_counter(), type(request.skill).__name__.lower()
        steps = self._encode_steps(request) if isinstance(request.skill, Encode) else self.model.skill(request)
        job = Job(steps, skill, request.priority, request.timeout, arrival, request.shown)
        return self.put(job)

    def _encode_steps(self, request: Request) -> Steps:
        """The steps of Encode, the one skill that is the same for every model."""
        image, variant = request.image, request.variant
        if not isinstance(image, Image.Image | Picture | Clip | Encoding):
            raise InvalidRequest("an image must be a PIL image, a clip or an encoded one", "image")
        prefix = image if isinstance(image, Encoding) else self.model.image_prefix(image, request.detail_of(0))

        def steps() -> Steps:
            encoded = yield Start(prefix, 0, variant)
            assert isinstance(encoded, EncodedImage)
            yield ImageEncoded(replace(encoded, clip=encoded.clip or isinstance(image, Clip)))
            return End("stop", 0)

        return steps()


SHUT_DOWN = EngineClosed("the engine was shut down")
FORKED = EngineClosed(
    "the model was loaded before this process was forked off, and its threads are not here; load it in this process"
)


class Turns(Protocol):
    """What the thread of an engine does."""

    def run(self) -> None:
        """Carry out the requests of a queue until it is closed."""
        ...

    def shut_down(self, why: GalagoError) -> None:
        """Refuse waiting and new requests, end running ones and let go of everything, whatever fails meanwhile."""
        ...


class Worker(threading.Thread):
    """The engine's thread. It holds neither the engine nor a run, so that both can be let go while it waits."""

    def __init__(self, scheduler: Turns, queue: RequestQueue, threads: int) -> None:
        super().__init__(name="galago-engine", daemon=True)
        self.queue = queue
        self._scheduler, self._threads = scheduler, threads

    def run(self) -> None:
        why: GalagoError = SHUT_DOWN
        try:
            with computing(self._threads):
                self._scheduler.run()
        except BaseException as error:  # also SystemExit, and what debuggers and watchdogs raise in other threads
            why = EngineFailed(
                f"the engine ended ({type(error).__name__}); the log tells more, and a new load mends it"
            )
            self.queue.close(why)  # first of all: what follows may fail
            log.critical("the engine's thread ended", exc_info=error)
        finally:
            self._scheduler.shut_down(why)
            del self._scheduler  # and with it the model, whoever still has the thread


@atexit.register
def _end_all() -> None:
    """End all engines' threads before Python shuts down: none may compute during that."""
    workers = [thread for thread in threading.enumerate() if isinstance(thread, Worker)]
    for worker in workers:
        worker.queue.close(SHUT_DOWN)
    for worker in workers:
        worker.join()
