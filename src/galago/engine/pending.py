"""Prefixes and images that are to be encoded, who waits for them, and the work on them."""

from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field

from galago.engine.arrays import Array
from galago.engine.sequence import Sequence
from galago.engine.step import Crops, Prefix


@dataclass(eq=False)
class PendingPrefix:
    """A prefix to be encoded, and the sequences that wait for it."""

    key: str
    prefix: Prefix
    variant: str | None
    image_keys: tuple[str, ...]
    """of its images, in their order"""
    waiting: list[Sequence] = field(default_factory=list)
    embeddings: dict[str, Array] = field(default_factory=dict)
    """those that are there, by image key"""
    encode_s: float = 0.0
    ran_out: bool = False
    """whether memory ran out for it"""

    @property
    def is_ready(self) -> bool:
        return all(key in self.embeddings for key in self.image_keys)

    @property
    def is_wanted(self) -> bool:
        return bool(self.waiting)

    @property
    def is_batch(self) -> bool:
        """Whether nobody waits for it but requests of a batch."""
        return all(s.job.priority == "batch" for s in self.waiting)

    @property
    def rank(self) -> tuple[bool, float]:
        return min(s.job.rank for s in self.waiting)


@dataclass(eq=False)
class PendingImage:
    """An image to be embedded, and the prefixes that its embedding is for."""

    key: str
    crops: "Future[Crops]"
    prefixes: list[PendingPrefix] = field(default_factory=list)
    features: list[Array] = field(default_factory=list)
    """of the crops encoded so far"""
    seconds: float = 0.0
    ran_out: bool = False
    """whether memory ran out for it"""

    @property
    def wanted_by(self) -> list[PendingPrefix]:
        """Those of its prefixes that a sequence still waits for."""
        return [p for p in self.prefixes if p.waiting]

    @property
    def is_wanted(self) -> bool:
        return bool(self.wanted_by)

    @property
    def is_batch(self) -> bool:
        return all(p.is_batch for p in self.wanted_by)

    @property
    def rank(self) -> tuple[bool, float]:
        return min(p.rank for p in self.wanted_by)


@dataclass(eq=False)
class Work:
    """Work on a prefix or on images, done piece by piece."""

    pieces: Iterator[None]
    on: list[PendingPrefix] | list[PendingImage]

    @property
    def is_wanted(self) -> bool:
        return any(one.is_wanted for one in self.on)

    @property
    def rank(self) -> tuple[bool, float]:
        return min(one.rank for one in self.on if one.is_wanted)
