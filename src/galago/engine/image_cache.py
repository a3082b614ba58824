"""Encoded images in memory and on disk, found by the content of the images."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from galago.engine.arrays import Array, compact
from galago.engine.disk_cache import DiskCache, DiskStats
from galago.engine.encoded_image import EncodedImage
from galago.engine.tier import Tier, TierStats

if TYPE_CHECKING:
    from PIL import Image

ROWS = 64
"""Rows of an image that are hashed at a time: its pixels are never all copied."""


@dataclass(frozen=True)
class CacheStats:
    hot: TierStats
    """prefixes' keys and values"""
    warm: TierStats
    """embeddings in memory"""
    disk: DiskStats | None
    """embeddings in files, if there is a folder for them"""


def image_key(image: "Image.Image", *context: str) -> str:
    """SHA-256 of an image's decoded RGB pixels and size and of what its encoding depends on, in hexadecimal.

    Alpha and metadata do not count. `context` tells the rest: model, variant, detail.
    """
    return pixel_key(pixel_digest(image), *context)


def pixel_digest(image: "Image.Image") -> "hashlib._Hash":
    """The digest of an image's RGB pixels and size, from which its keys are made."""
    image.load()
    rgb = image if image.mode == "RGB" else image.convert("RGB")
    digest = hashlib.sha256()
    width, height = rgb.size
    # Width and height tell the length of the pixels, as each text is led by its own: nothing runs together.
    for number in (width, height):
        digest.update(number.to_bytes(8, "little"))
    for top in range(0, height, ROWS):
        digest.update(rgb.crop((0, top, width, min(top + ROWS, height))).tobytes())
    return digest


def pixel_key(pixels: "hashlib._Hash", *context: str) -> str:
    """The key of an image whose `pixel_digest` is known; see `image_key`."""
    digest = pixels.copy()
    for part in context:
        data = part.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little") + data)
    return digest.hexdigest()


def prefix_key(images: Sequence[str], layout: Sequence[int], variant: str | None) -> str:
    """The key of a prefix, from its images' keys, their layout and the LoRA variant."""
    return hashlib.sha256(repr((tuple(images), tuple(layout), variant)).encode()).hexdigest()


class ImageCache:
    """Prefixes (hot) and embeddings (warm) in memory, each within its budget of bytes; embeddings on disk too.

    Belongs to one thread; only `stats` may be called from others. What it gives out is shared: read it only.
    """

    def __init__(
        self, hot_bytes: int, warm_bytes: int, disk: Path | None = None, disk_bytes: int = 0, tensors: bool = True
    ) -> None:
        """`tensors` says whether embeddings on disk are read as tensors of PyTorch or as arrays of NumPy."""
        clock: Iterator[int] = count()
        self._hot: Tier[EncodedImage] = Tier(hot_bytes, clock)
        self._warm: Tier[Array] = Tier(warm_bytes, clock)
        self._disk = DiskCache(disk, disk_bytes, tensors) if disk and disk_bytes else None

    @property
    def bytes(self) -> int:
        """Bytes of all entries in memory."""
        return self._hot.bytes + self._warm.bytes

    def prefix(self, key: str) -> EncodedImage | None:
        return self._hot.get(key)

    def has_prefix(self, key: str) -> bool:
        """Whether it is kept; does not count as a use."""
        return key in self._hot

    def has_embedding(self, key: str) -> bool:
        """Whether it seems to be kept, in memory or on disk; may be asked from any thread, and be wrong by then."""
        return key in self._warm or (self._disk is not None and key in self._disk)

    def embedding(self, key: str) -> Array | None:
        """The embedding [T, D] of a key or None; one that is only on disk is loaded into memory, on the CPU."""
        found = self._warm.get(key)
        if found is None and self._disk:
            found = self._disk.get(key)
            if found is not None:
                self._warm.keep(key, found, found.nbytes)
        return found

    def keep_prefix(self, key: str, encoded: EncodedImage, is_passing: bool = False) -> None:
        """Keep a prefix if it fits beside those that are pinned, or of passing use beside others of that."""
        self._hot.keep(key, encoded, encoded.nbytes, is_passing)

    def keep_embedding(self, key: str, embedding: Array, is_passing: bool = False) -> None:
        """Keep an embedding, in memory and on disk, where it fits."""
        embedding = compact(embedding)
        self._warm.keep(key, embedding, embedding.nbytes, is_passing)
        if self._disk:
            self._disk.keep(key, embedding)

    def pin(self, key: str) -> None:
        """Let a prefix stay while a request reads it, however much room others need; counted, see `unpin`."""
        self._hot.pin(key)

    def unpin(self, key: str) -> None:
        """Take back one `pin`. Raises ValueError if there is none."""
        self._hot.unpin(key)

    def trim(self, to_bytes: int = 0) -> None:
        """Evict what was used least recently until at most so many bytes are in memory, or only pinned ones."""
        while self.bytes > to_bytes:
            ages = {used: tier for tier in (self._hot, self._warm) if (used := tier.oldest()) is not None}
            if not ages:
                return
            ages[min(ages)].evict()

    def clear(self) -> None:
        """Evict all that is not pinned, from the disk too."""
        self.trim()
        if self._disk:
            self._disk.clear()

    def stats(self) -> CacheStats:
        return CacheStats(self._hot.stats(), self._warm.stats(), self._disk.stats() if self._disk else None)
