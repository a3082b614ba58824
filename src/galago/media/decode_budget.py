"""A bound on the memory that decoding takes, with a queue of those who wait for it."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class DecodeBudget:
    """A semaphore over bytes: a holder that finds too few left waits, first come, first served.

    At most `users` hold some at once, None for any number. One that wants more than `most` waits until nobody else
    holds any. Every method may be called from any thread. A holder must not acquire again: two that did would wait for
    each other.
    """

    def __init__(self, most: int, users: int | None = None) -> None:
        self.most, self._most_users = most, users
        self.peak = 0
        """the most that was taken at once"""
        self.reset()

    def reset(self) -> None:
        """Start anew in a forked child, which lacks the threads that hold or wait."""
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._taken = self._users = 0

    @property
    def taken(self) -> int:
        """Bytes in use now."""
        return self._taken

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    @contextmanager
    def hold(self, size: int, wanted: Callable[[], bool] = lambda: True) -> Iterator[bool]:
        """Wait for so many bytes, and hold them inside the block; yields whether they are held.

        Gives up, and yields False, when `wanted` is false: that is asked whenever `wake` is called.
        """
        held = self.acquire(size, wanted)
        try:
            yield held
        finally:
            if held:
                self.release(size)

    def acquire(self, size: int, wanted: Callable[[], bool] = lambda: True) -> bool:
        """Like `hold` without a block: if it returns True, `release` of the same size must follow."""
        place = object()
        with self._changed:
            self._line.append(place)
            try:
                self._changed.wait_for(lambda: not wanted() or (self._line[0] is place and self._fits(size)))
                if not wanted():
                    return False
                self._taken += size
                self._users += 1
                self.peak = max(self.peak, self._taken)
                return True
            finally:
                self._line.remove(place)
                self._changed.notify_all()

    def release(self, size: int) -> None:
        """Give back so many bytes."""
        with self._changed:
            self._taken = max(0, self._taken - size)  # nothing, in a child, for what its parent had taken
            self._users = max(0, self._users - 1)
            self._changed.notify_all()

    def wake(self) -> None:
        """Have those who wait ask again whether they are wanted."""
        with self._changed:
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        if self._most_users is not None and self._users >= self._most_users:
            return False
        return not self._users or self._taken + size <= self.most
