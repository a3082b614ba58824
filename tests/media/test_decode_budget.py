"""A bound on memory, and the line of those who wait for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from galago.media.decode_budget import DecodeBudget

SOON = 30


def until(holds: Callable[[], bool]) -> None:
    """Wait for what another thread does."""
    waited = threading.Event()
    for _ in range(SOON * 100):
        if holds():
            return
        waited.wait(0.01)
    raise AssertionError("it did not come to that")


def test_no_more_than_there_is_and_in_the_order_of_coming() -> None:
    budget, order = DecodeBudget(10), list[int]()
    with ThreadPoolExecutor(8) as threads:
        with budget.hold(8):
            later: list[Future[None]] = []

            def use(i: int, size: int) -> None:
                with budget.hold(size):
                    order.append(i)

            for i, size in enumerate((9, 1, 5)):
                later.append(threads.submit(use, i, size))
                until(lambda: budget.waiting == len(later))
            assert order == [], "what would fit does not pass what came before it"
        for one in later:
            one.result(SOON)
    assert order[0] == 0 and budget.peak <= 10 and budget.taken == 0


def test_what_is_larger_than_the_room_goes_alone() -> None:
    budget = DecodeBudget(10)
    with budget.hold(25):
        assert budget.taken == 25
        with ThreadPoolExecutor(1) as threads:
            small = threads.submit(budget.acquire, 1)
            until(lambda: budget.waiting == 1)
            budget.release(25)
            assert small.result(SOON)
            budget.release(1)
            assert budget.acquire(25)


def test_so_many_users_at_once() -> None:
    budget = DecodeBudget(100, users=2)
    with budget.hold(1), ExitStack() as second, ThreadPoolExecutor(1) as threads:
        second.enter_context(budget.hold(1))
        third = threads.submit(budget.acquire, 1)
        until(lambda: budget.waiting == 1)
        second.close()
        assert third.result(SOON)


def test_who_is_no_longer_wanted_leaves_the_line() -> None:
    budget, wanted = DecodeBudget(10), True
    with ThreadPoolExecutor(2) as threads:
        with budget.hold(6):
            first = threads.submit(budget.acquire, 10, lambda: wanted)
            until(lambda: budget.waiting == 1)
            behind = threads.submit(budget.acquire, 4)
            until(lambda: budget.waiting == 2)
            wanted = False
            budget.wake()
            assert first.result(SOON) is False
            assert behind.result(SOON), "it held up who came after it"
        assert budget.taken == 4


def test_room_is_given_back_after_an_error() -> None:
    budget = DecodeBudget(10)
    with pytest.raises(RuntimeError), budget.hold(10):
        raise RuntimeError
    assert budget.taken == 0 and budget.waiting == 0
