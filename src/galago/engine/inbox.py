"""Requests that wait for the engine."""

import threading
import time
from collections import deque
from collections.abc import Callable
from queue import SimpleQueue

from galago.engine.metrics import Outcome
from galago.engine.step import End, Step, Steps
from galago.errors import DeadlineExceeded, EngineBusy, EngineClosed, GalagoError
from galago.request import Done, Event, Priority, Timings, Usage


class Job:
    """A request between the inbox, the scheduler and its Run."""

    def __init__(
        self,
        steps: Steps,
        skill: str = "",
        priority: Priority = "interactive",
        timeout: float | None = None,
        since: float | None = None,
    ) -> None:
        """`since` is when the request came, by time.perf_counter: now, unless work on it has begun before."""
        self.steps, self.skill, self.priority = steps, skill, priority
        self.since = time.perf_counter() if since is None else since
        self.deadline = None if timeout is None else self.since + timeout
        self.cancelled = False
        self.first: Step | End | None = None
        """the first step, once the scheduler has looked at it"""
        self.events: SimpleQueue[Event | GalagoError] = SimpleQueue()
        """what has come of it; put in by `tell`"""
        self.told: Callable[[], None] = lambda: None
        """called after each of them, from the thread that tells"""

    def tell(self, event: Event | GalagoError) -> None:
        self.events.put(event)
        self.told()

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
    """Waiting jobs by rank. Every method may be called from any thread; only one thread takes."""

    def __init__(self, limit: int, given_up: Callable[[Job, Outcome], None] = lambda job, how: None) -> None:
        """`given_up` is told of jobs that end while they wait."""
        self._limit, self._given_up = limit, given_up
        self._waiting: dict[Priority, deque[Job]] = {"interactive": deque(), "batch": deque()}
        self._changed = threading.Condition()
        self._news = False
        self.closed = False

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def put(self, job: Job) -> None:
        """Raises EngineBusy when the queue is full, EngineClosed after close()."""
        with self._changed:
            self.check()
            self._waiting[job.priority].append(job)
            self._tell()

    def check(self) -> None:
        """Raise as `put` would."""
        with self._changed:
            if self.closed:
                raise EngineClosed("the engine is shut down")
            if len(self) >= self._limit:
                raise EngineBusy(f"{self._limit} requests are waiting already; try again later")

    def first(self) -> Job | None:
        """The job whose turn is next; it stays."""
        with self._changed:
            return next((queue[0] for queue in self._waiting.values() if queue), None)

    def jobs(self) -> list[Job]:
        with self._changed:
            return [job for queue in self._waiting.values() for job in queue]

    def take(self, job: Job) -> bool:
        """Remove a job; False if it is gone."""
        with self._changed:
            return self._remove(job)

    def late(self) -> list[Job]:
        """Remove the jobs whose deadline is over."""
        with self._changed:
            return [job for job in self.jobs() if job.late() and self._remove(job)]

    def cancel(self, job: Job) -> None:
        """Give up a waiting job at once, a running one at its next step."""
        with self._changed:
            job.cancelled = True
            if self._remove(job):
                waited = time.perf_counter() - job.since
                self._given_up(job, "cancelled")
                job.tell(Done("cancelled", Usage(), Timings(ttft_s=waited, total_s=waited)))
            self._tell()

    def wake(self) -> None:
        """End the rest of the thread that takes, or its next one."""
        with self._changed:
            self._tell()

    def rest(self, timeout: float | None) -> bool:
        """Wait until something has changed since the last rest; False if nothing has."""
        with self._changed:
            changed = self._changed.wait_for(lambda: self._news, timeout)
            self._news = False
            return changed

    def close(self) -> None:
        with self._changed:
            self.closed = True
            for queue in self._waiting.values():
                while queue:
                    job = queue.popleft()
                    self._given_up(job, "failed")
                    job.tell(EngineClosed("the engine was shut down"))
            self._tell()

    def _remove(self, job: Job) -> bool:
        queue = self._waiting[job.priority]
        if job not in queue:
            return False
        queue.remove(job)
        return True

    def _tell(self) -> None:
        self._news = True
        self._changed.notify_all()
