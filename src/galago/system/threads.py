"""Submitting work to a pool of threads."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

T = TypeVar("T")


def submit_or_run(pool: Executor, call: Callable[..., T], *args: Any) -> "Future[T]":
    """Run call(*args) in the pool, or right here where no thread can be started."""
    try:
        return pool.submit(call, *args)
    except RuntimeError:  # after the end of the main thread, or past the system's limit
        done: Future[T] = Future()
        try:
            done.set_result(call(*args))
        except Exception as error:
            done.set_exception(error)
        return done
