"""The models of a pool: their state, and what the pool tells of them."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from galago.errors import GalagoError

if TYPE_CHECKING:
    from galago.model import Model


@dataclass(frozen=True)
class PoolEntry:
    """A model of a pool as callers see it. `bytes` is what is reserved for it; `in_use` counts its users."""

    name: str
    bytes: int
    in_use: int
    idle_s: float | None
    """since its last use; None while it is in use"""
    expires_in_s: float | None
    """until it is unloaded; None while it is in use, and where it stays for ever"""
    loading: bool = False
    ended: GalagoError | None = None
    """why the model takes no more requests; its next use loads it anew"""


class Slot:
    """A model of the pool, from before its load until its memory is freed. Guarded by the pool's lock.

    `need` (bytes) includes `kv_bytes` for keys and values, of which `lent_kv_bytes` can be reclaimed for others.
    """

    def __init__(self, name: str, need: int, keep_alive: float | None) -> None:
        self.name, self.keep_alive = name, keep_alive
        self.need = need
        self.kv_bytes = self.lent_kv_bytes = 0
        self.users = 1
        """threads that use it, load it, or wait for its load"""
        self.model: Model | None = None
        self.error: GalagoError | None = None
        self.last_used = 0.0
        """the pool's clock when its last use ended"""
        self.is_unloading = False
        """one thread is closing it, and no other may use it"""

    @property
    def is_idle(self) -> bool:
        return not self.users and not self.is_unloading

    @property
    def expires(self) -> float | None:
        """When an idle model is unloaded, by the pool's clock."""
        return self.last_used + self.keep_alive if self.is_idle and self.model and self.keep_alive is not None else None

    def entry(self, now: float) -> PoolEntry:
        idle_s = None if self.users else now - self.last_used
        left = None if self.expires is None else max(0.0, self.expires - now)
        ended = self.model.ended if self.model else None
        return PoolEntry(self.name, self.need, self.users, idle_s, left, self.model is None, ended)
