"""Threads that decode and cut images, those of interactive requests first."""

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import suppress
from functools import partial
from typing import Any, TypeVar

from galago.request import Priority
from galago.system.threads import submit_or_run

T = TypeVar("T")


class ImageThreads:
    """The calls that wait for a thread of a pool: first come, first served, within a priority."""

    def __init__(self, pool: Executor) -> None:
        self._pool = pool
        self._waiting: dict[Priority, deque[tuple[Future[Any], Callable[[], Any]]]] = {
            "interactive": deque(),
            "batch": deque(),
        }

    def submit(self, priority: Priority, call: Callable[..., T], *args: Any) -> "Future[T]":
        """Run call(*args) in a thread, or right here where none can be started."""
        future: Future[T] = Future()
        self._waiting[priority].append((future, partial(call, *args)))
        submit_or_run(self._pool, self._run_next)
        return future

    def shut_down(self) -> None:
        """Cancel what waits and wait for the rest."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        for future, _ in self._take_all():
            future.cancel()

    def _run_next(self) -> None:
        future, call = next(self._take_all())
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    def _take_all(self) -> Iterator[tuple[Future[Any], Callable[[], Any]]]:
        for calls in self._waiting.values():
            with suppress(IndexError):
                while True:
                    yield calls.popleft()
