"""Values held in memory within a budget of bytes."""

from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")
PASSING_SHARE = 32
"""The part of a tier's budget that values of passing use may take is one of so many"""


@dataclass(frozen=True)
class TierStats:
    """What a tier of the image cache holds, and how often it helped."""

    entries: int
    bytes: int
    budget: int
    hits: int
    misses: int
    evictions: int
    """entries that made room, or were trimmed or cleared away"""


@dataclass
class _Entry(Generic[V]):
    value: V
    nbytes: int
    used: int
    """time of its last use on the clock"""
    is_passing: bool


class Tier(Generic[V]):
    """Evicts what was used least recently, never what is pinned; the budget holds at every moment.

    Values of passing use, which will hardly be asked for again, have a small part of the budget and make room for each
    other in it, so that many of them neither fill the memory nor push out what others keep.

    Only `stats` may be called from another thread than the owner's.
    """

    def __init__(self, budget: int, clock: Iterator[int]) -> None:
        """`clock` orders uses; tiers that share one can be compared by `oldest`."""
        self._budget, self._clock = budget, clock
        self._entries: OrderedDict[str, _Entry[V]] = OrderedDict()
        """least recently used first"""
        self._pins: Counter[str] = Counter()
        self.bytes = self._passing_bytes = 0
        self._hits = self._misses = self._evictions = 0

    def get(self, key: str) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._use(key, entry)
        return entry.value

    def __contains__(self, key: str) -> bool:
        return key in self._entries

    def keep(self, key: str, value: V, nbytes: int, is_passing: bool = False) -> None:
        """Add or replace the value of a key, if the pinned entries leave it room.

        A pinned value is not replaced: it takes its memory for as long as somebody reads it.
        """
        held = self._entries.get(key)
        if held and key in self._pins:
            self._use(key, held)
            return
        if held:
            self._drop(key)
        if nbytes > self._budget - sum(self._entries[k].nbytes for k in self._pins if k in self._entries):
            return
        if is_passing and not self._make_passing_room(nbytes):
            return
        while self.bytes + nbytes > self._budget:
            self.evict()
        self._entries[key] = _Entry(value, nbytes, next(self._clock), is_passing)
        self.bytes += nbytes
        self._passing_bytes += nbytes * is_passing

    def pin(self, key: str) -> None:
        """Let the key's entry stay, now or when it comes, until it is unpinned as often as pinned."""
        self._pins[key] += 1

    def unpin(self, key: str) -> None:
        """Raises ValueError if the key is not pinned."""
        if key not in self._pins:
            raise ValueError(f"{key} is not pinned")
        self._pins[key] -= 1
        if not self._pins[key]:
            del self._pins[key]

    def oldest(self) -> int | None:
        """When the entry that would be evicted next was used last; None if there is none to evict."""
        key = self._next_victim()
        return None if key is None else self._entries[key].used

    def evict(self) -> None:
        """Let go of the least recently used entry that is not pinned, if there is one."""
        if (key := self._next_victim()) is not None:
            self._drop(key)
            self._evictions += 1

    def stats(self) -> TierStats:
        return TierStats(len(self._entries), self.bytes, self._budget, self._hits, self._misses, self._evictions)

    def _make_passing_room(self, nbytes: int) -> bool:
        """Evict others of passing use until this has room beside them; False if it cannot."""
        most = self._budget // PASSING_SHARE
        passing = [key for key, entry in self._entries.items() if entry.is_passing and key not in self._pins]
        if self._passing_bytes + nbytes - sum(self._entries[key].nbytes for key in passing) > most:
            return False
        for key in passing:
            if self._passing_bytes + nbytes <= most:
                break
            self._drop(key)
            self._evictions += 1
        return True

    def _use(self, key: str, entry: _Entry[V]) -> None:
        entry.used = next(self._clock)
        self._entries.move_to_end(key)

    def _next_victim(self) -> str | None:
        return next((key for key in self._entries if key not in self._pins), None)

    def _drop(self, key: str) -> None:
        gone = self._entries.pop(key)
        self.bytes -= gone.nbytes
        self._passing_bytes -= gone.nbytes * gone.is_passing
