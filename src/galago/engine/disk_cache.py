"""Image embeddings in files, which outlive the process."""

import hashlib
import logging
import os
import re
import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError

from galago.engine.arrays import Array, from_bytes, is_finite, to_bytes
from galago.engine.tier import TierStats
from galago.system.files import PART, atomic_write

log = logging.getLogger(__name__)

MAGIC = b"galago embedding 1\n"
"""A file is this, the digest of what `_digest` tells, and one tensor as safetensors."""
HEADER = len(MAGIC) + hashlib.sha256().digest_size
SUFFIX = ".embedding"
KEY = re.compile("[0-9a-f]{64}")
STALE_S = 600
"""A file still unfinished after so long was left behind by a process that died."""


@dataclass(frozen=True)
class DiskStats(TierStats):
    """The same of the files; `entries` and `bytes` are those that this process knows of."""

    dropped: int
    """files that were damaged or not ours, and deleted"""


class DiskCache:
    """One file per embedding, named by its key; those used least recently make room within the budget.

    Other processes may use the folder at the same time: files that they delete are misses, and their
    new ones are counted before the next is written, so that only two writing at once can pass the
    budget, by what they write. Nothing here raises OSError: a folder that cannot be written to is left
    alone from then on, apart from reading. Only `stats` may be called from another thread than the owner's.
    """

    def __init__(self, folder: Path, budget: int, tensors: bool = True) -> None:
        """`tensors` says whether embeddings are read as tensors of PyTorch or as arrays of NumPy."""
        self._folder, self._budget, self._tensors = folder, budget, tensors
        self._sizes: OrderedDict[str, int] = OrderedDict()
        """bytes of each file, least recently used first"""
        self._bytes = self._now = self._scanned_mtime = 0
        self._writable = True
        self._hits = self._misses = self._evictions = self._dropped = 0
        try:
            self._scan()
            self._make_room(0)
        except OSError as error:
            self._stop_writing(error)

    def get(self, key: str) -> Array | None:
        """The embedding of a key, on the CPU. A file that is not what was written is deleted, and a miss."""
        file = self._file(key)
        try:
            data = self._read(file)
            found = None if data is None else _load_embedding(key, data, self._tensors)
        except (OSError, ValueError, KeyError, SafetensorError) as error:
            log.warning("deleting %s from the image cache: %s", file, error)
            self._dropped += 1
            data = found = None
            with suppress(OSError):
                file.unlink(missing_ok=True)
        self._forget(key)
        if data is None:
            self._misses += 1
            return None
        self._hits += 1
        self._record(key, len(data))
        with suppress(OSError):
            self._touch(file)
        return found

    def __contains__(self, key: str) -> bool:
        """Whether there is a file of this key, be it good or not; may be asked from any thread."""
        return os.path.isfile(self._file(key))

    def keep(self, key: str, embedding: Array) -> None:
        """Write an embedding, unless it is larger than the budget."""
        file = self._file(key)
        if not self._writable:
            return
        payload = to_bytes(embedding)
        size = HEADER + len(payload)
        try:
            self._refresh()
            self._delete(key)
            if size <= self._budget:
                self._make_room(size)
                self._write(file, MAGIC + _digest(key, payload), payload)
                self._record(key, size)
            self._scanned_mtime = self._folder.stat().st_mtime_ns
        except OSError as error:
            self._stop_writing(error)

    def clear(self) -> None:
        """Delete every entry."""
        try:
            self._scan()
            while self._sizes:
                self._evict()
        except OSError as error:
            self._stop_writing(error)

    def stats(self) -> DiskStats:
        held = len(self._sizes), self._bytes, self._budget
        return DiskStats(*held, self._hits, self._misses, self._evictions, self._dropped)

    def _file(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise ValueError(f"{key!r} is no SHA-256 in hexadecimal")
        return self._folder / f"{key}{SUFFIX}"

    def _read(self, file: Path) -> bytes | None:
        if not os.path.isfile(file):
            return None
        try:
            if (size := file.stat().st_size) > self._budget:
                raise ValueError(f"{size} bytes are more than the cache may hold")
            return file.read_bytes()
        except FileNotFoundError:
            return None

    def _write(self, file: Path, header: bytes, payload: bytes) -> None:
        # Not synced, which would keep the engine waiting: what a power cut leaves fails its checksum.
        with atomic_write(file, sync=False) as part:
            with part.open("wb") as out:
                out.write(header)
                out.write(payload)
            self._touch(part)

    def _touch(self, file: Path) -> None:
        # Never twice the same time, which the file system's own clock may give.
        self._now = max(self._now + 1, time.time_ns())
        os.utime(file, ns=(self._now, self._now))

    def _refresh(self) -> None:
        """Scan the folder again if another process wrote to it, or deleted it."""
        try:
            seen = self._folder.stat().st_mtime_ns
        except FileNotFoundError:
            seen = None
        if seen != self._scanned_mtime:
            self._scan()

    def _scan(self) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._scanned_mtime = self._folder.stat().st_mtime_ns
        found: list[tuple[int, str, int]] = []
        for file in self._folder.iterdir():
            with suppress(FileNotFoundError):
                stat = file.lstat()
                if file.suffix == SUFFIX and KEY.fullmatch(file.stem) and file.is_file():
                    found.append((stat.st_mtime_ns, file.stem, stat.st_size))
                elif file.suffix == PART and stat.st_mtime < time.time() - STALE_S:
                    file.unlink()
        self._sizes = OrderedDict((key, size) for _, key, size in sorted(found))
        self._bytes = sum(self._sizes.values())

    def _make_room(self, size: int) -> None:
        while self._bytes + size > self._budget:
            self._evict()

    def _evict(self) -> None:
        self._delete(next(iter(self._sizes)))
        self._evictions += 1

    def _delete(self, key: str) -> None:
        self._file(key).unlink(missing_ok=True)
        self._forget(key)

    def _record(self, key: str, size: int) -> None:
        self._sizes[key] = size
        self._bytes += size

    def _forget(self, key: str) -> None:
        self._bytes -= self._sizes.pop(key, 0)

    def _stop_writing(self, error: OSError) -> None:
        if self._writable:
            log.warning("keeping no more images on disk in %s: %s", self._folder, error)
        self._writable = False


def _digest(key: str, payload: bytes) -> bytes:
    """SHA-256 of key and payload: with the key, a file under another's name is detected."""
    return hashlib.sha256(key.encode() + payload).digest()


def _load_embedding(key: str, data: bytes, tensor: bool) -> Array:
    payload = data[HEADER:]
    if data[:HEADER] != MAGIC + _digest(key, payload):
        raise ValueError("it is damaged, or not an embedding of this image")
    embedding = from_bytes(payload, tensor)
    if not is_finite(embedding):
        raise ValueError("some of its values are no numbers")
    return embedding
