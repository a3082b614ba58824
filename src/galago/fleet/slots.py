"""What a pool knows of a model."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from galago.errors import GalagoError

if TYPE_CHECKING:
    from galago.model import Model


@dataclass(frozen=True)
class Loaded:
    """A model of a pool. `bytes` is what is set aside for it, maybe more than it needs; `in_use` counts its users."""

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
    """A model of the pool, from before its load until its memory is free again. Guarded by the pool's lock."""

    def __init__(self, name: str, need: int) -> None:
        self.name = name
        self.need = need
        self.kv = self.lent = 0
        """bytes for keys and values, and those of them that others may have back; both are in the need"""
        self.users = 1
        """the thread that loads it is the first; those that wait for the load count too"""
        self.model: Model | None = None
        self.failed: GalagoError | None = None
        self.since = 0.0
        """when its last use ended"""
        self.leaving = False
        """being closed, by one thread; nobody takes it any more"""

    @property
    def idle(self) -> bool:
        return not self.users and not self.leaving

    def row(self, now: float, keep_alive: float | None) -> Loaded:
        idle = None if self.users else now - self.since
        left = None if idle is None or keep_alive is None else max(0.0, keep_alive - idle)
        ended = self.model.ended if self.model else None
        return Loaded(self.name, self.need, self.users, idle, left, self.model is None, ended)
