"""The queue in front of a model, and the one thread that works on it."""

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

from galago.engine.encoded_image import EncodedImage
from galago.engine.runner import run
from galago.engine.step import End, Start, StepModel, Steps
from galago.errors import EngineBusy, EngineClosed, GalagoError, GenerationFailed
from galago.nn.device import return_memory
from galago.request import Detail, Done, Event, Request, Timings, Usage

if TYPE_CHECKING:
    from PIL import Image

log = logging.getLogger(__name__)


IDLE_S = 1.0
"""After so long without work, memory kept for more of it goes back to the system."""


class _Job:
    """A request between the queue, the worker and its Run."""

    def __init__(self, steps: Steps) -> None:
        self.steps = steps
        self.since = time.perf_counter()
        self.cancelled = False
        self.events: SimpleQueue[Event | GalagoError] = SimpleQueue()


class _Inbox:
    """Waiting jobs, oldest first. Every method may be called from any thread."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self.closed = False

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, job: _Job) -> None:
        with self._changed:
            if self.closed:
                raise EngineClosed("the engine is shut down")
            if len(self._waiting) >= self._limit:
                raise EngineBusy(f"{self._limit} requests are waiting already; try again later")
            self._waiting.append(job)
            self._changed.notify()

    def take(self, idle: Callable[[], None]) -> _Job | None:
        """The next job, waiting for one; None once closed. `idle` is called when none has come for a while."""
        with self._changed:
            if not self._changed.wait_for(self._something, IDLE_S):
                idle()
                self._changed.wait_for(self._something)
            return None if self.closed else self._waiting.popleft()

    def _something(self) -> bool:
        return bool(self._waiting) or self.closed

    def cancel(self, job: _Job) -> None:
        """Give up a waiting job at once, a running one at its next step."""
        with self._changed:
            job.cancelled = True
            if job in self._waiting:
                self._waiting.remove(job)
                waited = time.perf_counter() - job.since
                job.events.put(Done("cancelled", Usage(), Timings(ttft_s=waited, total_s=waited)))

    def close(self) -> None:
        with self._changed:
            self.closed = True
            while self._waiting:
                self._waiting.popleft().events.put(EngineClosed("the engine was shut down"))
            self._changed.notify_all()


class Run:
    """A request under way: iterate for its events. The last is Done, or the request's error is raised.

    Letting go of a Run cancels it.
    """

    def __init__(self, engine: "Engine", inbox: _Inbox, job: _Job) -> None:
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
        event = self._job.events.get()
        if isinstance(event, GalagoError):
            self._over = True
            raise event
        self._over = isinstance(event, Done)
        return event

    def cancel(self) -> None:
        """Stop at the next step, from any thread; iteration then ends with Done('cancelled')."""
        self._cancel()


class Engine:
    """Carries out requests on one model, one after another, in a thread of its own.

    An engine that is let go, with all its runs, closes itself.
    """

    def __init__(self, model: StepModel, *, max_queue: int = 64) -> None:
        self.model = model
        self._inbox = _Inbox(max_queue)
        worker = threading.Thread(target=_work, args=(model, self._inbox), name="galago-engine", daemon=True)
        worker.start()
        self._close = weakref.finalize(self, _shut_down, self._inbox, worker)

    @property
    def waiting(self) -> int:
        """Requests in the queue, the one under way not counted."""
        return len(self._inbox)

    def submit(self, request: Request) -> Run:
        """Queue a request.

        Raises EngineBusy when the queue is full, EngineClosed after close(), and at once what is
        wrong with the request itself.
        """
        return self._enqueue(self.model.skill(request))

    def encode_image(self, image: "Image.Image", variant: str | None = None, detail: Detail = "high") -> EncodedImage:
        """Encode an image in its turn; raises as submit does."""
        made: list[EncodedImage] = []

        def steps() -> Steps:
            encoded = yield Start(image, variant, detail)
            assert isinstance(encoded, EncodedImage)
            made.append(encoded)
            return End("stop", 0)

        for _ in self._enqueue(steps()):
            pass
        return made[0]

    def close(self) -> None:
        """Refuse new requests, end waiting and running ones with EngineClosed, and wait for the thread."""
        self._close()

    def _enqueue(self, steps: Steps) -> Run:
        job = _Job(steps)
        self._inbox.put(job)
        return Run(self, self._inbox, job)


def _shut_down(inbox: _Inbox, worker: threading.Thread) -> None:
    inbox.close()
    if worker is not threading.current_thread():
        worker.join()


def _work(model: StepModel, inbox: _Inbox) -> None:
    """Holds neither the engine nor a run, so that both can be let go while it waits."""

    def tidy() -> None:
        return_memory(model.device)

    with torch.inference_mode():
        while (job := inbox.take(tidy)) is not None:
            _carry_out(model, inbox, job)
            del job


def _carry_out(model: StepModel, inbox: _Inbox, job: _Job) -> None:
    def cancelled() -> bool:
        if inbox.closed:
            raise EngineClosed("the engine was shut down")
        return job.cancelled

    try:
        for event in run(model, job.steps, cancelled, job.since):
            job.events.put(event)
    except GalagoError as error:
        job.events.put(error)
    except Exception as error:
        log.exception("generation failed")
        failed = GenerationFailed(f"generation failed ({type(error).__name__}); the log tells more")
        failed.__cause__ = error
        job.events.put(failed)
