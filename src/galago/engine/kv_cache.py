"""Keys and values of one sequence."""

import torch
from torch import Tensor

from galago.engine.encoded_image import EncodedImage

CHUNK = 256
"""Positions that a cache grows by: short answers never copy, long ones seldom."""


class KVCache:
    """Grows with its sequence up to `limit` positions; starts with a copy of an image's prefix.

    Each forward pass appends to every layer, then advances once.
    """

    def __init__(
        self,
        shape: tuple[int, int, int],
        limit: int,
        dtype: torch.dtype,
        device: torch.device,
        prefix: EncodedImage | None = None,
        variant: str | None = None,
    ) -> None:
        """`shape` is (layers, kv heads, head dim); `variant` the LoRA that these keys belong to."""
        layers, heads, dim = shape
        self.limit, self.variant = limit, variant
        self.length = prefix.positions if prefix else 0
        # One tensor for each layer, so that growing holds two copies of one layer only.
        self._k = [torch.empty(heads, 0, dim, dtype=dtype, device=device) for _ in range(layers)]
        self._v = list(self._k)
        if prefix:
            for layer in range(layers):
                self._k[layer] = self._grown(prefix.k[layer], self.length)
                self._v[layer] = self._grown(prefix.v[layer], self.length)

    @property
    def room(self) -> int:
        """Positions left."""
        return self.limit - self.length

    @property
    def bytes(self) -> int:
        return sum(t.nbytes for t in (*self._k, *self._v))

    def append(self, layer: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Put [kv heads, n, head dim] after what is there; gives all of the layer, [kv heads, length + n, head dim]."""
        end = self.length + k.shape[1]
        if end > self._k[layer].shape[1]:
            self._k[layer] = self._grown(self._k[layer], end)
            self._v[layer] = self._grown(self._v[layer], end)
        self._k[layer][:, self.length : end] = k
        self._v[layer][:, self.length : end] = v
        return self._k[layer][:, :end], self._v[layer][:, :end]

    def advance(self, n: int) -> None:
        """Count n positions as kept, after every layer has them."""
        self.length += n

    def _grown(self, old: Tensor, needed: int) -> Tensor:
        new = old.new_empty(old.shape[0], min(needed + CHUNK, self.limit), old.shape[2])
        new[:, : self.length] = old[:, : self.length]
        return new
