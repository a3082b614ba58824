"""Models of which only the size is known, and a pool of them that notices what breaks its budget."""

import threading
from collections.abc import Callable
from typing import Any

from galago.errors import GalagoError
from galago.fleet.pool import ModelPool

SIZES = {"a": 3, "b": 3, "c": 4, "d": 7, "e": 11}
BUDGET = 10
SOON = 30.0
"""Seconds after which a thread that has not come to its end is taken to hang."""


class StandIn:
    """A model of which only the size is known."""

    ended: GalagoError | None = None

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
