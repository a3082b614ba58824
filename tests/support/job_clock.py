"""A clock that is moved by hand, for queues of jobs."""

from collections.abc import Callable

from galago.jobs.store import JobStore

Open = Callable[..., JobStore]
"""Opens a queue, with options of open_store"""


class Clock:
    """Seconds since 1970, as somebody says."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now

    def move(self, seconds: float) -> None:
        self.now += seconds
