"""Ending a command early: Ctrl-C, SIGTERM (a container or service is stopped), SIGHUP (a terminal is closed)."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import NoReturn

STOP_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
"""Windows has no SIGHUP."""
BROKEN_PIPE_CODE = 141
"""The exit code where nobody reads the output any more: that of SIGPIPE, which Windows lacks."""


class Stopped(KeyboardInterrupt):
    """Raised when a stop signal comes; what is half done is cleaned up as after Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code = exit_code(number)


def exit_code(number: int) -> int:
    """The exit code of a program that a signal ended: 130, 143 or 129."""
    return 128 + number


def restore_default_handlers() -> None:
    """Let the next stop signal end the process at once, as the system does by default."""
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def handle_stop_signals(handle: Callable[[int], None]) -> Iterator[None]:
    """Call `handle` in the main thread with the first stop signal; a second one ends the process at once.

    Ignored signals stay ignored, as under nohup. Threads other than the main one hear of none.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        restore_default_handlers()  # which does not wait for this thread
        handle(number)

    wanted = [number for number in STOP_SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, stop) for number in wanted}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def catch_stop_signals() -> Iterator[list[int]]:
    """Raise Stopped in the main thread at the first stop signal; see handle_stop_signals.

    Yields a list that holds the signal once it came.
    """
    heard: list[int] = []

    def stop(number: int) -> None:
        heard.append(number)
        raise Stopped(number)

    with handle_stop_signals(stop):
        yield heard


@contextmanager
def defer_signals() -> Iterator[None]:
    """Defer stop signals until the end of the block, so that a child process that is being started is not orphaned."""
    came: list[int] = []
    before = {}
    if threading.current_thread() is threading.main_thread():
        acting = [number for number in STOP_SIGNALS if callable(signal.getsignal(number))]
        before = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in acting}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if came:
        signal.raise_signal(came[0])


def exit_process(code: int) -> NoReturn:
    """End the process with this exit code, whatever its other threads do.

    The interpreter's own end would wait for some of them, and cut others off in the middle of C++, which aborts.
    """
    if threading.active_count() == 1:
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
