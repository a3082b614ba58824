"""An encoded image: the keys and values that every question about it starts from."""

from dataclasses import dataclass

from galago.engine.arrays import Array
from galago.request import Encoding


@dataclass(frozen=True, eq=False)
class EncodedImage(Encoding):
    """Read-only and shareable between requests."""

    k: Array
    """[layers, kv heads, positions, head dim]"""
    v: Array
    size: tuple[int, int]
    """width, height of the (first) image in pixels"""
    crops: int
    """how many crops the vision tower encoded"""
    image_tokens: int
    """positions that stand for crops, not text"""
    encode_s: float = 0.0
    """seconds for vision and projection"""
    prefill_s: float = 0.0
    """seconds for the prefix's keys and values"""
    clip: bool = False
    """whether it shows a clip's frames"""

    @property
    def positions(self) -> int:
        """Positions of the context that it takes, BOS included."""
        return int(self.k.shape[2])

    @property
    def nbytes(self) -> int:
        return int(self.k.nbytes + self.v.nbytes)
