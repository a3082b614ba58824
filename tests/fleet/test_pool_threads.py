"""Many threads on one pool: each comes to its end, and nobody who waits is forgotten."""

import ctypes
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest
import torch
from pooled import BUDGET, SOON, StandIn, Store, needed, pool_of

from galago.errors import (
    CheckpointError,
    EngineClosed,
    GalagoError,
    InvalidRequest,
    LoadFailed,
    ModelInUse,
    OutOfMemory,
)
from galago.fleet.pool import ModelPool


def test_many_threads_all_come_to_their_end_within_the_budget() -> None:
    store = Store()
    start = threading.Barrier(6)

    def work(seed: int) -> list[str]:
        done = []
        start.wait(SOON)
        for turn in range(40):
            name = "abcd"[(seed * 7 + turn * (seed + 3)) % 4]
            try:
                with pool.use(name) as model:
                    done.append(model.name)
                    assert not model.closed and model.name == name
            except OutOfMemory:
                done.append("refused")
        return done

    with ThreadPoolExecutor(6) as threads, pool_of(store, keep_alive=None) as pool:
        ends = [threads.submit(work, seed) for seed in range(6)]
        assert all(len(end.result(SOON)) == 40 for end in ends)
    assert not store.here


class Held:
    """A load that others can be seen to wait for, and that goes on when told."""

    def __init__(self, store: Store) -> None:
        self.begun = threading.Event()
        self.go_on = threading.Event()
        store.at_load = self

    def __call__(self, name: str) -> None:
        self.begun.set()
        while not self.go_on.wait(0.01):
            pass

    def waited_for_by(self, pool: ModelPool, users: int) -> None:
        """Return once so many threads have the model that is being loaded in view."""
        end = time.monotonic() + SOON
        while [row.in_use for row in pool.loaded() if row.loading] != [users]:
            assert time.monotonic() < end


def used(pool: ModelPool, name: str) -> str:
    with pool.use(name) as model:
        return model.name


def test_who_wants_the_same_model_waits_for_the_one_load() -> None:
    store = Store()
    held = Held(store)
    with ThreadPoolExecutor(4) as threads, pool_of(store) as pool:
        asked = [threads.submit(used, pool, "a") for _ in range(4)]
        held.waited_for_by(pool, 4)
        held.go_on.set()
        assert [one.result(SOON) for one in asked] == ["a"] * 4
    assert store.loads == ["a"]


def test_models_in_use_answer_while_another_loads_and_it_cannot_be_unloaded() -> None:
    store = Store()
    with ThreadPoolExecutor(2) as threads, pool_of(store) as pool:
        pool.load("b")
        held = Held(store)
        asked = threads.submit(used, pool, "a")
        assert held.begun.wait(SOON)
        assert used(pool, "b") == "b"
        with pytest.raises(ModelInUse, match="a is being loaded"):
            pool.unload("a")
        held.go_on.set()
        assert asked.result(SOON) == "a"


@pytest.mark.parametrize(
    ("fails", "first", "others"),
    [
        (CheckpointError("damaged"), CheckpointError, CheckpointError),
        (InvalidRequest("no such device", "device"), InvalidRequest, InvalidRequest),
        (OSError("gone"), LoadFailed, LoadFailed),
        (torch.OutOfMemoryError("CUDA out of memory"), OutOfMemory, OutOfMemory),
        (SystemExit(1), SystemExit, LoadFailed),
        (KeyboardInterrupt(), KeyboardInterrupt, LoadFailed),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else "",
)
def test_a_load_that_fails_tells_all_who_wait(
    fails: BaseException, first: type[BaseException], others: type[BaseException]
) -> None:
    store = Store()
    held = Held(store)
    store.fails = fails
    with ThreadPoolExecutor(3) as threads, pool_of(store) as pool:
        loading = threads.submit(used, pool, "a")
        assert held.begun.wait(SOON)
        waiting = [threads.submit(used, pool, "a") for _ in range(2)]
        held.waited_for_by(pool, 3)
        held.go_on.set()
        assert type(loading.exception(SOON)) is first
        told = [one.exception(SOON) for one in waiting]
        assert [type(one) for one in told] == [others] * 2 and told[0] is not told[1]
        if isinstance(fails, InvalidRequest):
            assert {str(one) for one in told} == {"no such device"}
            assert {one.param for one in told if isinstance(one, InvalidRequest)} == {"device"}
        assert pool.loaded() == []
        assert used(pool, "a") == "a"
    assert store.loads == ["a", "a"]


def test_a_thread_that_is_killed_while_it_loads_leaves_the_others_served() -> None:
    store = Store()
    held = Held(store)
    with ThreadPoolExecutor(2) as threads, pool_of(store) as pool:

        def doomed() -> None:
            with suppress(SystemExit):
                used(pool, "a")

        killed = threading.Thread(target=doomed)
        killed.start()
        assert held.begun.wait(SOON)
        same, other = threads.submit(used, pool, "a"), threads.submit(used, pool, "d")
        held.waited_for_by(pool, 2)
        # As a debugger or a task queue does it: raised in the thread, wherever that is.
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(killed.ident or 0), ctypes.py_object(SystemExit))
        killed.join(SOON)
        assert not killed.is_alive()
        with pytest.raises(LoadFailed, match=r"loading a was interrupted \(SystemExit\)"):
            same.result(SOON)
        held.go_on.set()
        assert other.result(SOON) == "d"
        assert used(pool, "a") == "a"


def test_closing_ends_those_who_wait_and_drops_what_is_loading() -> None:
    store = Store()
    held = Held(store)
    with ThreadPoolExecutor(3) as threads:
        pool = pool_of(store)
        loading = threads.submit(used, pool, "a")
        assert held.begun.wait(SOON)
        waiting = [threads.submit(used, pool, name) for name in ("a", "b")]
        pool.close()
        for one in waiting:
            assert isinstance(one.exception(SOON), EngineClosed)
        held.go_on.set()
        assert isinstance(loading.exception(SOON), EngineClosed)
    assert not store.here and pool.loaded() == []


def test_a_model_leaves_by_itself_when_its_time_is_over() -> None:
    store, closed = Store(), threading.Event()

    class Watched(StandIn):
        def close(self) -> None:
            super().close()
            closed.set()

    def load(name: str, progress: Any = None) -> StandIn:
        made = store.here[name] = Watched(store, name)
        return made

    with ModelPool(BUDGET, keep_alive=0.01, load=load, need=needed) as pool:
        pool.load("a")
        assert closed.wait(SOON)
        pool.unload("a")  # waits for what is leaving
        assert pool.loaded() == []


def test_a_refusal_tells_who_is_in_the_way_and_what_would_fit() -> None:
    sizes = {"float32": 8_100_000_000, "bfloat16": 4_000_000_000, "int8": 2_400_000_000}

    def need(name: str, precision: str | None = None) -> int:
        return 1_500_000_000 if name == "other" else sizes.get(precision or "float32", 9_000_000_000)

    def load(name: str, progress: Any = None) -> StandIn:
        made = store.here[name] = StandIn(store, name)
        return made

    store = Store()
    with ModelPool(4_000_000_000, load=load, need=need) as pool:
        with pytest.raises(OutOfMemory) as alone:
            pool.load("2b")
        assert str(alone.value) == (
            "moondream2 needs 8.1 GB, and the budget is 4.0 GB; it would fit in bfloat16 (4.0 GB) or int8 (2.4 GB)"
        )
        with pool.use("other"), pytest.raises(OutOfMemory) as beside:
            pool.load("2b")
        assert str(beside.value) == (
            "moondream2 needs 8.1 GB, and the budget is 4.0 GB, of which 1.5 GB are in use (other 1.5 GB);"
            " it would fit in int8 (2.4 GB)"
        )
    assert isinstance(alone.value, GalagoError) and alone.value.code == "out_of_memory"


def test_progress_is_told_by_the_load() -> None:
    told: list[tuple[int, int]] = []

    def load(name: str, progress: Any) -> StandIn:
        progress(1, 2)
        made = store.here[name] = StandIn(store, name)
        return made

    store = Store()
    with ModelPool(BUDGET, load=load, need=needed) as pool:
        pool.load("a", lambda done, total: told.append((done, total)))
    assert told == [(1, 2)]


@pytest.mark.parametrize("keep_alive", [-1.0, float("nan")])
def test_a_time_that_is_none_is_refused(keep_alive: float) -> None:
    with pytest.raises(InvalidRequest, match="keep_alive"):
        ModelPool(BUDGET, keep_alive=keep_alive)
