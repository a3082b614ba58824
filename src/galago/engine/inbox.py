"""Requests that wait for the engine, and those that it has taken."""

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from galago.engine.metrics import Outcome
from galago.engine.step import End, Step, Steps
from galago.errors import DeadlineExceeded, EngineBusy, GalagoError
from galago.request import Done, Event, Media, Priority, Timings, Usage

log = logging.getLogger(__name__)
T = TypeVar("T")


def _nobody() -> None:
    """Nobody wants to be told."""


class Job:
    """A request between the inbox, the scheduler and its Run."""

    def __init__(
        self,
        steps: Steps,
        skill: str = "",
        priority: Priority = "interactive",
        timeout: float | None = None,
        since: float | None = None,
        shown: tuple[Media, ...] = (),
    ) -> None:
        """`since` is when the request came, by time.perf_counter: now, unless work on it has begun before; `shown` is
        what it looks at."""
        self.steps, self.skill, self.priority, self.shown = steps, skill, priority, shown
        self.since = time.perf_counter() if since is None else since
        # Later than any clock reaches is never.
        self.deadline = None if timeout is None or timeout > threading.TIMEOUT_MAX else self.since + timeout
        self.cancelled = False
        self.first: Step | End | None = None
        """the first step, once the scheduler has looked at it"""
        self.events: SimpleQueue[Event | GalagoError] = SimpleQueue()
        """what has come of it; put in by `tell`"""
        self.told: Callable[[], None] = _nobody
        """called after each of them, from the thread that tells"""
        self.over = False
        """whether the last event is there"""
        self._told_badly = False

    def tell(self, event: Event | GalagoError) -> None:
        """Give an event out.

        An error of `told` is logged once, and changes nothing: it is only a bell, the events are there for whoever
        looks, and the next ring may work again.
        """
        self.events.put(event)
        self.over = self.over or isinstance(event, Done | GalagoError)
        try:
            self.told()
        except Exception:
            if not self._told_badly:
                log.exception("a callback of Run.watch raised; its request goes on")
            self._told_badly = True

    @property
    def rank(self) -> tuple[bool, float]:
        """Smaller is earlier: first come, first served, within a priority."""
        return self.priority == "batch", self.since

    def late(self) -> DeadlineExceeded | None:
        """The error, if the deadline is over."""
        if self.deadline is None or time.perf_counter() < self.deadline:
            return None
        return DeadlineExceeded(f"the request was not done within its {self.deadline - self.since:g} s")


class Inbox:
    """Waiting jobs by rank, and those that were taken, until they are told their end.

    Every method may be called from any thread; only one thread takes. The garbage collector may run a finalizer in
    any thread and anywhere, so what finalizers call (`cancel`, `forget`, `close`) takes no lock: each of its steps is
    atomic. The lock is held by no more than a few lines that call nobody.
    """

    def __init__(self, waiting: int, running: int) -> None:
        """So many jobs may wait for a place, and there are so many places."""
        self._limit, self._places = waiting, running
        self._waiting: dict[Priority, deque[Job]] = {"interactive": deque(), "batch": deque()}
        self._taken: set[Job] = set()
        self._lock = threading.RLock()
        self._news: SimpleQueue[None] = SimpleQueue()
        self._ended: deque[tuple[Job, Outcome]] = deque()
        self.short = False
        """whether the first in the queue waits for something else than a place: memory"""
        self.closed: GalagoError | None = None
        """why no job is taken any more"""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, job: Job) -> None:
        """Raises EngineBusy when the queue is full, and after close() the reason for that.

        Jobs that will find a place do not count as waiting, whether they are taken yet or not.
        """
        with self._lock:
            self.check()
            self._waiting[job.priority].append(job)
        self.wake()

    def check(self) -> None:
        """Raise as `put` would."""
        if self.closed:
            raise copy.copy(self.closed)  # a traceback grows with every raise
        free = 0 if self.short else max(0, self._places - len(self._taken))
        if len(self) >= self._limit + free:
            raise EngineBusy(self._full)

    def first(self) -> Job | None:
        """The job whose turn is next; it stays."""
        for queue in self._waiting.values():
            with suppress(IndexError):
                return queue[0]
        return None

    def jobs(self) -> list[Job]:
        """Those that wait, in their order."""
        return [job for queue in self._waiting.values() for job in list(queue)]

    def take(self, job: Job) -> bool:
        """Give a waiting job a place; False if it is gone. `finish` gives the place back."""
        with self._lock:
            self._taken.add(job)
            if not self._removed(job):
                self._taken.discard(job)
            return job in self._taken

    def finish(self, job: Job, event: Done | GalagoError) -> None:
        """Tell a taken job its end. Its place is free by then: whoever is told may ask again at once."""
        self._taken.discard(job)
        job.tell(event)

    def cancel(self, job: Job) -> None:
        """Give up a waiting job at once, a running one at its next step."""
        job.cancelled = True
        if self._removed(job):
            self._ended.append((job, "cancelled"))
            waited = time.perf_counter() - job.since
            job.tell(Done("cancelled", Usage(), Timings(ttft_s=waited, total_s=waited)))
        self.wake()

    def forget(self, job: Job) -> None:
        """Cancel a job that nobody listens to any more."""
        job.told = _nobody
        self.cancel(job)

    def wake(self) -> None:
        """End the rest of the thread that takes, or its next one."""
        self._news.put(None)

    def rest(self, timeout: float | None) -> bool:
        """Wait until something has changed since the last rest; False if nothing has."""
        try:
            self._news.get(timeout=timeout)
        except Empty:
            return False
        while not self._news.empty():
            self._news.get()
        return True

    def close(self, why: GalagoError) -> None:
        """Refuse jobs from now on, and those that wait."""
        self.closed = self.closed or why
        for queue in self._waiting.values():
            while (job := _popped(queue)) is not None:
                self._ended.append((job, "failed"))
                job.tell(copy.copy(self.closed))
        self.wake()

    def end(self, why: GalagoError) -> None:
        """Close, by the thread that takes, which takes no more: nobody is left without an answer."""
        with self._lock:  # who puts either sees that it is closed, or is seen here
            self.closed = self.closed or why
        self.close(why)
        self.finish_all(why)

    def finish_all(self, why: GalagoError) -> None:
        """Tell every taken job that it has failed."""
        for job in list(self._taken):
            self.finish(job, copy.copy(why))

    def ended(self) -> Iterator[tuple[Job, Outcome]]:
        """Jobs that came to their end while they waited, each told once: whoever asks counts them."""
        while (one := _popped(self._ended)) is not None:
            yield one

    @property
    def _full(self) -> str:
        if not self._limit:
            return "as many requests run as may run, and none may wait; try again later"
        return f"{self._limit} requests are waiting already; try again later"

    def _removed(self, job: Job) -> bool:
        try:
            self._waiting[job.priority].remove(job)
        except ValueError:
            return False
        return True


def _popped(queue: deque[T]) -> T | None:
    try:
        return queue.popleft()
    except IndexError:
        return None
