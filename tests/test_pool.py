"""Models in memory: the budget holds, the right ones leave, and nobody who waits is forgotten."""

import ctypes
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from PIL import Image

from galago.errors import (
    CheckpointError,
    EngineClosed,
    GalagoError,
    InvalidRequest,
    LoadFailed,
    ModelInUse,
    ModelNotFound,
    OutOfMemory,
)
from galago.needs import memory_needed, size_of
from galago.pool import ModelPool

SIZES = {"a": 3, "b": 3, "c": 4, "d": 7, "e": 11}
BUDGET = 10
SOON = 30.0
"""Seconds after which a thread that has not come to its end is taken to hang."""
EXAMPLE = Image.open(Path(__file__).parents[1] / "examples" / "scene.png").convert("RGB")
QUESTION = "What color is the circle?"


class StandIn:
    """A model of which only the size is known."""

    def __init__(self, store: "Store", name: str) -> None:
        self.name = name
        self.closed = False
        self._store = store

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        del self._store.here[self.name]


class Store:
    """Loads stand-ins; knows which are in memory, and how often each was loaded."""

    def __init__(self) -> None:
        self.here: dict[str, StandIn | None] = {}
        """None: being loaded"""
        self.loads: list[str] = []
        self.fails: BaseException | None = None
        """what the next load raises, once"""
        self.at_load: Callable[[str], None] = lambda name: None
        self._lock = threading.Lock()

    def load(self, name: str, progress: Any = None) -> StandIn:
        with self._lock:
            assert name not in self.here and None not in self.here.values(), "one load at a time"
            self.here[name] = None
            self.loads.append(name)
            assert sum(SIZES[n] for n in self.here) <= BUDGET
        fails, self.fails = self.fails, None
        try:
            self.at_load(name)
            if fails:
                raise fails
        except BaseException:
            del self.here[name]
            raise
        made = self.here[name] = StandIn(self, name)
        return made


def needed(name: str, precision: str | None = None) -> int:
    return SIZES[name]


def pool_of(store: Store, **options: Any) -> ModelPool:
    return ModelPool(BUDGET, load=store.load, need=needed, **options)


class Life(RuleBasedStateMachine):
    """What one thread does with a pool, against a list of idle models, least recently used first."""

    keep_alive: float | None = 100.0

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.store = Store()
        self.pool = pool_of(self.store, keep_alive=self.keep_alive, clock=self.clock)
        self.uses: list[tuple[str, StandIn, ExitStack]] = []
        self.idle: dict[str, float] = {}
        """when each was last used"""

    def clock(self) -> float:
        return self.now

    def busy(self) -> set[str]:
        return {name for name, _, _ in self.uses}

    def comes(self, name: str) -> None:
        """What loading or using a model does to those that are idle."""
        if name in self.busy() or name in self.idle:
            self.idle.pop(name, None)
            return
        while sum(SIZES[n] for n in {name, *self.busy(), *self.idle}) > BUDGET:
            self.idle.pop(min(self.idle, key=self.idle.__getitem__))

    def goes(self, name: str) -> None:
        if name not in self.busy() and self.keep_alive != 0:
            self.idle[name] = self.now

    def fits(self, name: str) -> bool:
        return sum(SIZES[n] for n in {name, *self.busy()}) <= BUDGET

    @rule(name=st.sampled_from(sorted(SIZES)))
    def use(self, name: str) -> None:
        self.now += 1
        scope = ExitStack()
        if not self.fits(name):
            with pytest.raises(OutOfMemory, match=f"{name} needs .* would fit in no precision"):
                scope.enter_context(self.pool.use(name))
            return
        model = scope.enter_context(self.pool.use(name))
        self.comes(name)
        self.uses.append((name, model, scope))

    @precondition(lambda self: self.uses)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        self.now += 1
        name, model, scope = self.uses.pop(data.draw(st.integers(0, len(self.uses) - 1)))
        assert not model.closed
        scope.close()
        self.goes(name)

    @rule(name=st.sampled_from(sorted(SIZES)))
    def load(self, name: str) -> None:
        self.now += 1
        if self.fits(name):
            self.pool.load(name)
            self.comes(name)
            self.goes(name)
        else:
            with pytest.raises(OutOfMemory):
                self.pool.load(name)

    @rule(
        name=st.sampled_from(sorted(SIZES)),
        error=st.sampled_from(
            [
                (CheckpointError("damaged"), CheckpointError),
                (ValueError("a slip"), LoadFailed),
                (MemoryError(), OutOfMemory),
                (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), OutOfMemory),
                (KeyboardInterrupt(), KeyboardInterrupt),
            ]
        ),
    )
    def load_that_fails(self, name: str, error: tuple[BaseException, type[BaseException]]) -> None:
        if not self.fits(name) or name in self.busy() or name in self.idle:
            return
        self.now += 1
        self.store.fails = error[0]
        with pytest.raises(error[1]):
            self.pool.load(name)
        # Room had been made by then.
        self.comes(name)

    @rule(name=st.sampled_from(sorted(SIZES)))
    def unload(self, name: str) -> None:
        if name in self.busy():
            with pytest.raises(ModelInUse, match=f"{name} is in use"):
                self.pool.unload(name)
        else:
            assert self.pool.unload(name) == (name in self.idle)
            self.idle.pop(name, None)

    @rule(seconds=st.sampled_from([1.0, 50.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.pool.expire()
        if self.keep_alive is not None:
            self.idle = {n: since for n, since in self.idle.items() if self.now - since < self.keep_alive}

    @invariant()
    def memory_is_as_expected(self) -> None:
        assert set(self.store.here) == self.busy() | set(self.idle)
        rows = self.pool.loaded()
        assert {(r.name, r.bytes, r.in_use > 0) for r in rows} == {
            (n, SIZES[n], n in self.busy()) for n in self.store.here
        }
        assert sum(r.in_use for r in rows) == len(self.uses)
        for row in rows:
            since = self.idle.get(row.name)
            assert row.idle_s == (None if since is None else self.now - since)
            ends = None if since is None or self.keep_alive is None else since + self.keep_alive
            assert row.expires_in_s == (None if ends is None else max(0.0, ends - self.now))

    def teardown(self) -> None:
        self.pool.close()
        assert not self.store.here
        for _, _, scope in self.uses:
            scope.close()
        with pytest.raises(EngineClosed):
            self.pool.load("a")


class LifeForEver(Life):
    keep_alive = None


class LifeWithoutKeeping(Life):
    keep_alive = 0


LIVES = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestLife, TestLifeForEver, TestLifeWithoutKeeping = Life.TestCase, LifeForEver.TestCase, LifeWithoutKeeping.TestCase
TestLife.settings = TestLifeForEver.settings = TestLifeWithoutKeeping.settings = LIVES


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


# --- the bundled model ------------------------------------------------------------------------


def answer(pool: ModelPool, name: str) -> tuple[str, str]:
    with pool.use(name) as model:
        return model.precision, model.query(EXAMPLE, QUESTION)["answer"].strip()


def names(pool: ModelPool) -> list[str]:
    return [row.name for row in pool.loaded()]


def test_two_models_answer_side_by_side_and_one_leaves_for_a_third() -> None:
    needs = {name: memory_needed(name, device="cpu") for name in ("scenes", "scenes-int8", "scenes-int4")}
    two = needs.pop("scenes") + max(needs.values())
    with ModelPool(two, options={"device": "cpu"}) as pool:
        expected = answer(pool, "scenes")
        assert expected[0] == "float32" and expected[1]
        assert answer(pool, "scenes-int8") == ("int8", expected[1])
        assert names(pool) == ["scenes", "scenes-int8"]
        assert answer(pool, "Scenes-float32") == expected
        assert names(pool) == ["scenes", "scenes-int8"], "the same model by another name"
        assert answer(pool, "scenes-int4")[0] == "int4"
        assert names(pool) == ["scenes", "scenes-int4"]
        assert answer(pool, "scenes-int8") == ("int8", expected[1])
        assert names(pool) == ["scenes-int4", "scenes-int8"]


def test_what_left_is_gone_from_memory() -> None:
    with ModelPool(1 << 30, options={"device": "cpu"}, keep_alive=0) as pool:
        with pool.use("scenes") as model:
            weights = weakref.ref(model._loaded.weights.text)
            model.query(EXAMPLE, QUESTION)
            del model
        gc.collect()
        assert weights() is None and pool.loaded() == []


def test_a_model_that_does_not_fit_beside_one_in_use_is_refused_with_the_precision_that_would() -> None:
    room = memory_needed("scenes", device="cpu") + memory_needed("scenes-int8", device="cpu")
    with ModelPool(room, options={"device": "cpu"}) as pool, pool.use("scenes") as model:
        with pytest.raises(OutOfMemory) as said:
            pool.load("scenes-bfloat16")
        used, least = (size_of(memory_needed(name, device="cpu")) for name in ("scenes", "scenes-int8"))
        assert f"{used} are in use (scenes {used}); it would fit in int8 ({least})" in str(said.value)
        assert model.query(EXAMPLE, QUESTION)["answer"]


def test_a_real_load_that_breaks_midway_frees_what_was_half_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from galago.families.moondream import weights

    kept: list[weakref.ref[torch.Tensor]] = []
    whole = weights.assemble

    def breaks(tensors: Any, linears: Any, config: Any) -> Any:
        kept.extend(weakref.ref(tensor) for tensor in tensors.values())
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with ModelPool(1 << 30, options={"device": "cpu"}) as pool:
        monkeypatch.setattr(weights, "assemble", breaks)
        with pytest.raises(OutOfMemory, match=r"memory ran out while scenes .* less in .*int8") as error:
            pool.load("scenes")
        assert kept and not any(tensor() is not None for tensor in kept), "the error holds them"
        assert error.value.__cause__ is not None
        monkeypatch.setattr(weights, "assemble", whole)
        assert answer(pool, "scenes")[1]


def test_an_unknown_model_is_told_and_not_loaded() -> None:
    with ModelPool(1 << 30) as pool, pytest.raises(ModelNotFound, match="did you mean scenes"):
        pool.load("scnes")


def test_a_process_ends_though_models_are_idle() -> None:
    code = (
        "from galago.pool import ModelPool\n"
        "pool = ModelPool(1 << 30, options={'device': 'cpu'}, keep_alive=3600)\n"
        "pool.load('scenes')\nprint(*[row.name for row in pool.loaded()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "scenes"), done.stderr
