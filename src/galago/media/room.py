"""A bound on what the users of some memory take together, and a line of those who wait for it."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Room:
    """So many bytes that users take and give back; who finds too few waits, first come, first served.

    There may be `users` of them at once, None for any number. Who wants more than there are waits until all are there,
    and goes alone. Every method may be called from
    any thread. A user must not take again while it holds some: two that did would wait for each other.
    """

    def __init__(self, most: int, users: int | None = None) -> None:
        self.most, self._most_users = most, users
        self.peak = 0
        """the most that was taken at once"""
        self.empty()

    def empty(self) -> None:
        """Begin anew, in a child that was forked off: the threads of those inside and in the line are not there."""
        self._changed = threading.Condition()
        self._line: deque[object] = deque()
        self._taken = self._users = 0

    @property
    def taken(self) -> int:
        """Bytes in use now."""
        return self._taken

    @property
    def waiting(self) -> int:
        """Users in the line."""
        return len(self._line)

    @contextmanager
    def hold(self, size: int, wanted: Callable[[], bool] = lambda: True) -> Iterator[bool]:
        """Wait for so many bytes, and hold them meanwhile.

        False, and none are held, as soon as it is no longer `wanted`: that is asked whenever `wake` is called.
        """
        held = self.enter(size, wanted)
        try:
            yield held
        finally:
            if held:
                self.leave(size)

    def enter(self, size: int, wanted: Callable[[], bool] = lambda: True) -> bool:
        """The same where the end is elsewhere: to be followed by one `leave` of the same size, if True."""
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

    def leave(self, size: int) -> None:
        """Give back so many bytes."""
        with self._changed:
            self._taken = max(0, self._taken - size)  # nothing, in a child, for what its parent had taken
            self._users = max(0, self._users - 1)
            self._changed.notify_all()

    def wake(self) -> None:
        """Have those in the line look again whether they are wanted."""
        with self._changed:
            self._changed.notify_all()

    def _fits(self, size: int) -> bool:
        if self._most_users is not None and self._users >= self._most_users:
            return False
        return not self._users or self._taken + size <= self.most
