"""One thread's use of a pool, in any order: the budget holds and the right ones leave."""

from contextlib import ExitStack

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pooled import BUDGET, SIZES, StandIn, Store, pool_of

from galago.errors import CheckpointError, EngineClosed, LoadFailed, ModelInUse, OutOfMemory


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


LIVES = settings(max_examples=60, stateful_step_count=30)
TestLife, TestLifeForEver, TestLifeWithoutKeeping = Life.TestCase, LifeForEver.TestCase, LifeWithoutKeeping.TestCase
TestLife.settings = TestLifeForEver.settings = TestLifeWithoutKeeping.settings = LIVES
