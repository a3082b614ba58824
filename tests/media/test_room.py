"""A bound on memory, and the line of those who wait for it."""

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from galago.media.room import Room

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
    room, order = Room(10), list[int]()
    with ThreadPoolExecutor(8) as threads:
        with room.hold(8):
            later: list[Future[None]] = []

            def use(i: int, size: int) -> None:
                with room.hold(size):
                    order.append(i)

            for i, size in enumerate((9, 1, 5)):
                later.append(threads.submit(use, i, size))
                until(lambda: room.waiting == len(later))
            assert order == [], "what would fit does not pass what came before it"
        for one in later:
            one.result(SOON)
    assert order[0] == 0 and room.peak <= 10 and room.taken == 0


def test_what_is_larger_than_the_room_goes_alone() -> None:
    room = Room(10)
    with room.hold(25):
        assert room.taken == 25
        with ThreadPoolExecutor(1) as threads:
            small = threads.submit(room.enter, 1)
            until(lambda: room.waiting == 1)
            room.leave(25)
            assert small.result(SOON)
            room.leave(1)
            assert room.enter(25)


def test_so_many_users_at_once() -> None:
    room = Room(100, users=2)
    with room.hold(1), ExitStack() as second, ThreadPoolExecutor(1) as threads:
        second.enter_context(room.hold(1))
        third = threads.submit(room.enter, 1)
        until(lambda: room.waiting == 1)
        second.close()
        assert third.result(SOON)


def test_who_is_no_longer_wanted_leaves_the_line() -> None:
    room, wanted = Room(10), True
    with ThreadPoolExecutor(2) as threads:
        with room.hold(6):
            first = threads.submit(room.enter, 10, lambda: wanted)
            until(lambda: room.waiting == 1)
            behind = threads.submit(room.enter, 4)
            until(lambda: room.waiting == 2)
            wanted = False
            room.wake()
            assert first.result(SOON) is False
            assert behind.result(SOON), "it held up who came after it"
        assert room.taken == 4


def test_room_is_given_back_after_an_error() -> None:
    room = Room(10)
    with pytest.raises(RuntimeError), room.hold(10):
        raise RuntimeError
    assert room.taken == 0 and room.waiting == 0
