"""A scheduler without threads: it does what a test says, when the test says."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from contextlib import suppress
from queue import SimpleQueue
from typing import Any
from unittest.mock import patch

import torch
from standin import Standin, alone

from galago.engine.image_cache import ImageCache
from galago.engine.limits import Limits
from galago.engine.metrics import Metrics
from galago.engine.request_queue import Job, RequestQueue
from galago.engine.scheduler import Scheduler
from galago.errors import EngineClosed, GalagoError
from galago.request import Done, Event, Priority, Request

TURNS = 10_000


class Errands(Executor):
    """The work of threads, done one piece at a time by whoever calls `run`."""

    def __init__(self) -> None:
        self._todo: list[tuple[Future[Any], Callable[[], Any]]] = []

    def __len__(self) -> int:
        return len(self._todo)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self._todo.append((future, lambda: fn(*args, **kwargs)))
        return future

    def run(self, which: int = 0) -> None:
        future, call = self._todo.pop(which % len(self._todo))
        if future.set_running_or_notify_cancel():
            try:
                future.set_result(call())
            except Exception as error:
                future.set_exception(error)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        assert cancel_futures
        while self._todo:
            self._todo.pop()[0].cancel()


class Asked:
    """A request and what came back so far."""

    def __init__(self, request: Request, job: Job) -> None:
        self.request, self.job = request, job
        self._found: list[Event | GalagoError] = []

    @property
    def found(self) -> list[Event | GalagoError]:
        events: SimpleQueue[Event | GalagoError] = self.job.events
        while not events.empty():
            self._found.append(events.get())
        return self._found

    @property
    def events(self) -> list[Event | GalagoError]:
        """All but the end."""
        return [event for event in self.found if not isinstance(event, Done | GalagoError)]

    @property
    def end(self) -> Done | GalagoError | None:
        """How it ended, for which there is one time and nothing after it."""
        ends = [event for event in self.found if isinstance(event, Done | GalagoError)]
        assert len(ends) <= 1 and (not ends or self.found[-1] is ends[0])
        return ends[0] if ends else None

    @property
    def how(self) -> str:
        """done, cancelled, failed, or nothing while it is under way."""
        if isinstance(self.end, Done):
            return "cancelled" if self.end.finish_reason == "cancelled" else "done"
        return "failed" if self.end else ""


class Turned:
    """Checks after each turn that nothing is more than it may be, and that nobody was passed over."""

    def __init__(self, model: Standin, limits: Limits | None = None) -> None:
        self.model, self.limits, self.errands = model, limits or Limits(), Errands()
        self.metrics = Metrics(model.name, model.precision.name)
        self.queue = RequestQueue(self.limits.waiting, self.limits.running)
        self.images = ImageCache(self.limits.prefix_bytes, self.limits.embedding_bytes)
        with patch("galago.engine.encoder.ThreadPoolExecutor", lambda *_: self.errands):
            self.scheduler = Scheduler(model, self.queue, self.limits, self.images, self.metrics)
        self.scheduler.batch_pause.grace_s = 0.0
        self.asked: list[Asked] = []

    def put(self, request: Request) -> Asked:
        """Raises what the queue raises."""
        asked = Asked(request, Job(self.model.skill(request), "query", request.priority, request.timeout))
        self.queue.put(asked.job)
        self.metrics.count_submitted("query", request.priority)
        self.asked.append(asked)
        return asked

    def turn(self) -> bool:
        waiting = self.queue.jobs()
        with torch.inference_mode():
            worked = self.scheduler.turn()
        left = self.queue.jobs()
        taken = [job.rank for job in waiting if job not in left and not job.deadline_error()]
        assert not taken or not left or max(taken) < min(job.rank for job in left)
        self.check()
        return worked

    def step(self) -> None:
        """A turn, and then all that threads have to do."""
        self.turn()
        for _ in range(len(self.errands)):
            self.errands.run()

    def check(self) -> None:
        now, images, limits = self.scheduler.snapshot(), self.images.stats(), self.limits
        # Those of a batch find no place taken by themselves when one comes that is none.
        interactive = self.running("interactive")
        waiting = sum(job.priority == "interactive" for job in self.queue.jobs())
        assert interactive <= limits.running and waiting + interactive <= limits.waiting + limits.running
        assert now.running <= 2 * limits.running and now.waiting + now.running <= 2 * (limits.waiting + limits.running)
        assert images.hot.bytes <= limits.prefix_bytes and images.warm.bytes <= limits.embedding_bytes
        assert self.scheduler.reserved_bytes <= self.scheduler.kv_bytes
        assert now.bytes["kv"] + self.model.prefix_bytes <= self.scheduler.reserved_bytes + images.hot.bytes

    def running(self, *priorities: Priority) -> int:
        """How many requests of these priorities run."""
        waiting = self.queue.jobs()
        return sum(not one.how and one.job not in waiting and one.job.priority in priorities for one in self.asked)

    def run(self) -> None:
        """Turn until nothing is left to do."""
        for _ in range(TURNS):
            worked = self.turn()
            if self.errands:
                self.errands.run()
            elif not worked:
                break
        assert all(one.how for one in self.asked)

    def close(self) -> None:
        self.scheduler.shut_down(EngineClosed("the engine was shut down"))

    def emptied(self) -> None:
        """Nothing is held when all is over but what the cache may hold, and that it lets go."""
        now = self.scheduler.snapshot()
        assert (now.waiting, now.running, now.encoding) == (0, 0, 0)
        assert self.scheduler.reserved_bytes == now.bytes["kv"] == 0
        self.images.trim()
        left = self.images.stats()
        assert left.hot.bytes == left.warm.bytes == 0 == self.model.prefix_bytes

    def __enter__(self) -> "Turned":
        return self

    def __exit__(self, *_: Any) -> None:
        with suppress(Exception):
            self.close()


def whole(*asked: Asked) -> bool:
    """Whether all were done, each with the events that it has alone."""
    return all(one.how == "done" and one.events == alone(one.request) for one in asked)


def rows(model: Standin) -> list[list[int]]:
    """Of each pass of the decoder, how many rows of each sequence."""
    return [sorted(map(len, fed)) for kind, fed in model.asked if kind == "forward"]
