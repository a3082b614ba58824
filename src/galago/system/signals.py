"""How a command ends early: by Ctrl-C, SIGTERM (a container or service is stopped) or SIGHUP (a terminal is closed)."""

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

STOPPING = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""
NO_READER = 141
"""The exit code where nobody reads the output any more: that of SIGPIPE, which Windows has not."""


class Stopped(KeyboardInterrupt):
    """A signal came. What is half done is cleared away as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = exit_code(number)


def exit_code(number: int) -> int:
    """What shells tell of a program that a signal ended: 130, 143 or 129."""
    return 128 + number


def at_once() -> None:
    """Let the next of these signals end the process then and there, by the system's own way."""
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def heeded() -> Iterator[list[int]]:
    """The first of the signals raises Stopped in the main thread, a second ends the process at once.

    Gives a list that holds the signal once it came. What was ignored stays so, as under nohup.
    """
    heard: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield heard
        return

    def stop(number: int, frame: FrameType | None) -> None:
        at_once()
        heard.append(number)
        raise Stopped(number)

    wanted = [number for number in STOPPING if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield heard
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def held() -> Iterator[None]:
    """Lets a signal that comes inside act at the end: a process that is being started is not lost sight of."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        acting = [number for number in STOPPING if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in acting}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def leave(code: int) -> NoReturn:
    """End the process with this exit code, whatever its other threads do.

    The interpreter's own end would wait for some of them, and cut others off in the middle of C++, which aborts.
    """
    if threading.active_count() == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
