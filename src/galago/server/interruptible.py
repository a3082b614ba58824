"""Interrupting work in other threads: model loads that a stop of the server does not wait for.

An exception is raised in the thread, which then cleans up (a half-written packed copy, say) as after any error. Left
to run it would be cut off with the process, and leave that behind.
"""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager

INTERRUPT_TIMEOUT_S = 3.0
"""Seconds for an interrupted thread to return from its current call: a matrix product, or a read from a network"""


class Interrupted(BaseException):
    """Raised in a thread that is interrupted, wherever it is; no `except Exception` catches it."""


class InterruptibleWork:
    """Work in threads that can be interrupted from another thread."""

    def __init__(self) -> None:
        self._threads: set[int] = set()
        self._changed = threading.Condition()

    @contextmanager
    def run(self) -> Iterator[None]:
        """Context in which Interrupted may be raised in the calling thread."""
        this = threading.get_ident()
        with self._changed:
            self._threads.add(this)
        try:
            yield
        finally:
            with self._changed:
                self._threads.discard(this)
                self._changed.notify_all()

    def interrupt(self) -> None:
        """Interrupt all threads inside run(), and wait until they have left it, INTERRUPT_TIMEOUT_S at the most."""
        with self._changed:
            for thread in self._threads:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), ctypes.py_object(Interrupted))
            self._changed.wait_for(lambda: not self._threads, INTERRUPT_TIMEOUT_S)
