"""Models that have ended while a pool holds them: the next who wants one has it loaded anew."""

import threading

import pytest
from pooled import SOON, Store, pool_of

from galago.errors import EngineClosed, EngineFailed, GalagoError, LoadFailed

ENDS = [EngineFailed("the engine ended (SystemExit)"), EngineClosed("the engine was shut down")]


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("keep_alive", [None, 100.0])
def test_it_is_loaded_anew(end: GalagoError, keep_alive: float | None) -> None:
    store = Store()
    with pool_of(store, keep_alive=keep_alive) as pool:
        with pool.use("a") as model:
            pass
        assert pool.loaded()[0].ended is None
        model.ended = end
        assert pool.loaded()[0].ended is end
        with pool.use("a") as another:
            assert another is not model and model.closed and not another.closed
        assert [row.ended for row in pool.loaded()] == [None] and store.loads == ["a", "a"]


def test_nobody_waits_for_those_who_still_have_it() -> None:
    store = Store()
    with pool_of(store, keep_alive=0) as pool, pool.use("a") as model:
        model.ended = ENDS[0]
        with pool.use("a") as another, pool.use("a") as same:
            assert another is same is not model
            assert [row.in_use for row in pool.loaded()] == [2]
        assert another.closed and not pool.loaded()
    assert not store.here


def test_many_who_want_it_have_it_loaded_once() -> None:
    store = Store()
    with pool_of(store, keep_alive=None) as pool:
        with pool.use("a") as model:
            pass
        model.ended = ENDS[0]
        found = []

        def work() -> None:
            with pool.use("a") as another:
                found.append(another)

        threads = [threading.Thread(target=work, daemon=True) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SOON)
        assert len(found) == 8 and len(set(map(id, found))) == 1 and store.loads == ["a", "a"]


def test_it_cannot_be_loaded_anew() -> None:
    store = Store()
    with pool_of(store, keep_alive=None) as pool:
        with pool.use("a") as model:
            model.ended = ENDS[0]
            store.fails = ValueError("a slip")
            with pytest.raises(LoadFailed):
                pool.load("a")
            assert not pool.loaded()
        with pool.use("a") as another:
            assert another is not model
