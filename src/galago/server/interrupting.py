"""Ending what a thread does in the middle: a load that the server's stop does not wait for.

The thread clears away what is half done (a packed copy, say) as it would after any error. Left to run it
would be cut off with the process, and leave that behind.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

PATIENCE = 3.0
"""Seconds for what is interrupted to come out of its present call: a product, or a read from a network."""


class Interrupted(BaseException):
    """Raised in a thread, wherever it is, and caught by no `except Exception`."""


class Interruptible:
    """Work in threads that can be ended from another."""

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self._changed = threading.Condition()

    @contextmanager
    def work(self) -> Iterator[None]:
        """Inside this the thread may meet Interrupted."""
        me = threading.get_ident()
        with self._changed:
            self._threads.add(me)
        try:
            yield
        finally:
            with self._changed:
                self._threads.discard(me)
                self._changed.notify_all()

    def end(self) -> None:
        """Interrupt all that is at work, and wait until it is over, PATIENCE seconds at the most."""
        with self._changed:
            for thread in self._threads:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))
            self._changed.wait_for(lambda: not self._threads, PATIENCE)
