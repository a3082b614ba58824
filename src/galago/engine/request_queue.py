"""The queue of requests in front of the scheduler, and the requests that it runs."""

import copy
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TypeVar

from galago.engine.metrics import RequestOutcome
from galago.engine.step import End, Step, Steps
from galago.errors import DeadlineExceeded, EngineBusy, GalagoError
from galago.request import Done, Event, Media, Priority, Timings, Usage

log = logging.getLogger(__name__)
T = TypeVar("T")


def _ignore() -> None:
    """The callback of a job that nobody watches."""


class Job:
    """A request on its way from the queue through the scheduler to its EngineRun."""

    def __init__(
        self,
        steps: Steps,
        skill: str = "",
        priority: Priority = "interactive",
        timeout: float | None = None,
        arrival: float | None = None,
        media: tuple[Media, ...] = (),
    ) -> None:
        """`arrival` is when the request came, by time.perf_counter: now, unless work on it has begun before."""
        self.steps, self.skill, self.priority, self.media = steps, skill, priority, media
        self.arrival = time.perf_counter() if arrival is None else arrival
        # Later than any clock reaches is never.
        self.deadline = None if timeout is None or timeout > threading.TIMEOUT_MAX else self.arrival + timeout
        self.cancelled = False
        self.first_step: Step | End | None = None
        """the first step, once the scheduler has looked at it"""
        self.events: SimpleQueue[Event | GalagoError] = SimpleQueue()
        """for its EngineRun to read; put in by `emit`"""
        self.on_event: Callable[[], None] = _ignore
        """called after each of them, from the thread that emits"""
        self.ended = False
        """whether the last event is there"""
        self._callback_failed = False

    def emit(self, event: Event | GalagoError) -> None:
        """Put an event where the EngineRun reads it, and call `on_event`.

        An error of the callback is logged once and changes nothing: the events are there, and the next call may work.
        """
        self.events.put(event)
        self.ended = self.ended or isinstance(event, Done | GalagoError)
        try:
            self.on_event()
        except Exception:
            if not self._callback_failed:
                log.exception("a callback of Run.watch raised; its request goes on")
            self._callback_failed = True

    @property
    def rank(self) -> tuple[bool, float]:
        """Sorts jobs: first come, first served, within a priority."""
        return self.priority == "batch", self.arrival

    def deadline_error(self) -> DeadlineExceeded | None:
        """The error of a job whose deadline has passed, else None."""
        if self.deadline is None or time.perf_counter() < self.deadline:
            return None
        return DeadlineExceeded(f"the request was not done within its {self.deadline - self.arrival:g} s")


class RequestQueue:
    """Waiting jobs by rank, and running ones until their last event.

    Every method may be called from any thread; only one thread pops. The garbage collector may run a finalizer in
    any thread and anywhere, so what finalizers call (`cancel`, `abandon`, `close`) takes no lock: each of its steps is
    atomic. The lock is held by no more than a few lines that call nobody.
    """

    def __init__(self, max_waiting: int, max_running: int) -> None:
        self._max_waiting, self._max_running = max_waiting, max_running
        self._waiting: dict[Priority, deque[Job]] = {"interactive": deque(), "batch": deque()}
        self._running: dict[Priority, set[Job]] = {"interactive": set(), "batch": set()}
        self._lock = threading.RLock()
        self._wakeups: SimpleQueue[None] = SimpleQueue()
        self._ended_waiting: deque[tuple[Job, RequestOutcome]] = deque()
        self.waits_for_memory: Priority | None = None
        """the priority of the first in the queue where it waits for memory, though fewer run than may"""
        self.closed: GalagoError | None = None
        """why no job is accepted any more, else None"""

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, job: Job) -> None:
        """Append a job. Raises EngineBusy when the queue is full, and after close() the reason for that.

        Jobs that may run at once do not count as waiting, whether they are popped yet or not. Those of a batch count
        for others of a batch alone.
        """
        with self._lock:
            self.check(job.priority)
            self._waiting[job.priority].append(job)
        self.wake()

    def check(self, priority: Priority = "interactive") -> None:
        """Raise as `put` would."""
        if self.closed:
            raise copy.copy(self.closed)  # a traceback grows with every raise
        first: tuple[Priority, ...] = ("interactive",) if priority == "interactive" else ("interactive", "batch")
        free = max(0, self._max_running - sum(len(self._running[one]) for one in first))
        if self.waits_for_memory in first:
            free = 0
        if sum(len(self._waiting[one]) for one in first) >= self._max_waiting + free:
            raise EngineBusy(self._full)

    def peek(self) -> Job | None:
        """The job whose turn is next; it stays in the queue."""
        for queue in self._waiting.values():
            with suppress(IndexError):
                return queue[0]
        return None

    def jobs(self) -> list[Job]:
        """The waiting jobs in their order."""
        return [job for queue in self._waiting.values() for job in list(queue)]

    def pop(self, job: Job) -> bool:
        """Move a waiting job to the running ones, until `finish`; False if it is gone."""
        with self._lock:
            running = self._running[job.priority]
            running.add(job)
            if not self._remove(job):
                running.discard(job)
            return job in running

    def finish(self, job: Job, event: Done | GalagoError) -> None:
        """End a running job with its last event. Its place is free by then: who reads the event may submit at once."""
        self._running[job.priority].discard(job)
        job.emit(event)

    def cancel(self, job: Job) -> None:
        """Cancel a waiting job at once, a running one at its next step."""
        job.cancelled = True
        if self._remove(job):
            self._ended_waiting.append((job, "cancelled"))
            waited = time.perf_counter() - job.arrival
            job.emit(Done("cancelled", Usage(), Timings(ttft_s=waited, total_s=waited)))
        self.wake()

    def abandon(self, job: Job) -> None:
        """Cancel a job whose events nobody reads any more."""
        job.on_event = _ignore
        self.cancel(job)

    def wake(self) -> None:
        """Make the current or next `wait` return."""
        self._wakeups.put(None)

    def wait(self, timeout: float | None) -> bool:
        """Wait for a `wake` since the last wait; False if none came within `timeout` seconds."""
        try:
            self._wakeups.get(timeout=timeout)
        except Empty:
            return False
        while not self._wakeups.empty():
            self._wakeups.get()
        return True

    def close(self, why: GalagoError) -> None:
        """Refuse jobs from now on, and end those that wait with this error."""
        self.closed = self.closed or why
        for queue in self._waiting.values():
            while (job := _popleft(queue)) is not None:
                self._ended_waiting.append((job, "failed"))
                job.emit(copy.copy(self.closed))
        self.wake()

    def shut_down(self, why: GalagoError) -> None:
        """Close, from the thread that pops and pops no more, and end the running jobs too: none is left open."""
        with self._lock:  # who puts either sees that it is closed, or is seen here
            self.closed = self.closed or why
        self.close(why)
        self.fail_running(why)

    def fail_running(self, why: GalagoError) -> None:
        """End every running job with this error."""
        for running in self._running.values():
            for job in list(running):
                self.finish(job, copy.copy(why))

    def drain_ended(self) -> Iterator[tuple[Job, RequestOutcome]]:
        """Jobs that ended while they waited, each given only once, for the metrics."""
        while (one := _popleft(self._ended_waiting)) is not None:
            yield one

    @property
    def _full(self) -> str:
        if not self._max_waiting:
            return "as many requests run as may run, and none may wait; try again later"
        return f"{self._max_waiting} requests are waiting already; try again later"

    def _remove(self, job: Job) -> bool:
        try:
            self._waiting[job.priority].remove(job)
        except ValueError:
            return False
        return True


def _popleft(queue: deque[T]) -> T | None:
    try:
        return queue.popleft()
    except IndexError:
        return None
