"""Bounds of an engine."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from galago.errors import InvalidRequest, quoted
from galago.values import is_whole

MINIMUMS = {"waiting": 0, "running": 1, "kv_bytes": 1, "prefix_bytes": 0, "embedding_bytes": 0, "disk_bytes": 0}
"""The smallest value of each of the Limits."""


@dataclass(frozen=True)
class Limits:
    """Bounds of what an engine holds at once. Bytes are of keys and values, and of what the image cache keeps.

    Requests of the priority `batch` do not count against interactive ones: see priorities.
    """

    waiting: int = 64
    """requests beside those that run; more are refused"""
    running: int = 16
    kv_bytes: int | None = None
    """of running requests; each is counted with all that it may come to need. None takes a share of the memory that is
    left, and what the longest request may need at least: see kv_share"""
    prefix_bytes: int = 512 << 20
    embedding_bytes: int = 128 << 20
    disk: Path | None = None
    """a folder that keeps embeddings over restarts"""
    disk_bytes: int = 1 << 30
    tidy: Literal["idle", "always"] = "idle"
    """when memory goes back to the system: after a while without work, or with every request that ends"""

    def __post_init__(self) -> None:
        """Raises InvalidRequest, with the field as `param`."""
        for name, least in MINIMUMS.items():
            value = getattr(self, name)
            if name == "kv_bytes" and value is None:
                continue
            if not is_whole(value) or value < least:
                raise InvalidRequest(f"{name} must be a whole number >= {least}, not {quoted(value)}", name)
        if self.disk is not None and not isinstance(self.disk, Path):
            raise InvalidRequest(f"disk must be a Path or None, not {quoted(self.disk)}", "disk")
        if not isinstance(self.tidy, str) or self.tidy not in ("idle", "always"):
            raise InvalidRequest(f"tidy must be idle or always, not {quoted(self.tidy)}", "tidy")
