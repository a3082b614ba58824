"""Computing with PyTorch in a child process that was forked."""

import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_process = os.getpid()


def run_after_fork(call: Callable[[], T]) -> T:
    """Return call(); in a forked child of the process that imported this, run it in a thread of its own.

    OpenMP, which PyTorch computes with, keeps helpers for each thread. The one that forked has none left in the child,
    does not know, and waits for them for ever; a new thread begins with new ones.
    """
    if os.getpid() == _process:
        return call()
    found: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            found.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work, name="galago-load", daemon=True)
    thread.start()
    thread.join()
    if errors:
        raise errors.pop()
    return found.pop()
