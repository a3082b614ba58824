"""Keys and values of one sequence."""

import torch
from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.step import CHUNK
from galago.kernels import KVBuffer, kv_buffer
from galago.nn.attention import Segment, store


class KVCache:
    """Grows with its sequence up to `limit` positions, after an image's prefix, which is shared and only read.

    Each forward pass reserves its positions, appends to every layer, then advances once.
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
        self.limit, self.variant = limit, variant
        self._shape, self._dtype, self._device = shape, dtype, device
        self._prefix = prefix
        self._prefix_length = prefix.positions if prefix else 0
        self._own_length = 0
        self._chunks: list[Tensor] = []
        """each [2, layers, kv heads, positions, head dim]: keys and values"""

    @property
    def length(self) -> int:
        """Positions kept, those of the prefix among them."""
        return self._prefix_length + self._own_length

    @property
    def room(self) -> int:
        """Positions left."""
        return self.limit - self.length

    @property
    def bytes(self) -> int:
        """Bytes of its own, the prefix not counted."""
        return sum(chunk.nbytes for chunk in self._chunks)

    def reserve(self, n: int) -> None:
        """Allocate memory for n more positions."""
        have = sum(chunk.shape[3] for chunk in self._chunks)
        if (lacking := self._own_length + n - have) > 0:
            layers, heads, dim = self._shape
            size = min(max(lacking, CHUNK), self.limit - self._prefix_length - have)
            self._chunks.append(torch.empty(2, layers, heads, size, dim, dtype=self._dtype, device=self._device))

    def append(self, layer: int, k: Tensor, v: Tensor) -> list[Segment]:
        """Append k and v [kv heads, n, head dim] to a layer; returns all keys and values of it."""
        found = [(self._prefix.k[layer], self._prefix.v[layer])] if self._prefix else []
        first, end = self._own_length, self._own_length + k.shape[1]
        for chunk in self._chunks:
            size = chunk.shape[3]
            if first < size and end > 0:
                # These positions of the chunk, and those of k that go there.
                here, there = slice(max(first, 0), min(end, size)), slice(max(-first, 0), size - first)
                store(k[:, there], chunk[0, layer][:, here])
                store(v[:, there], chunk[1, layer][:, here])
            if end > 0:
                found.append((chunk[0, layer][:, :end], chunk[1, layer][:, :end]))
            first, end = first - size, end - size
        return found

    def own_keys_and_values(self) -> tuple[Tensor, Tensor]:
        """Keys and values after the prefix, [layers, kv heads, positions, head dim], if all were reserved at once."""
        (chunk,) = self._chunks
        return chunk[0], chunk[1]

    def kv_buffers(self) -> list[KVBuffer]:
        """The buffers of the prefix and of its own positions, those reserved included."""
        found: list[KVBuffer] = []
        if self._prefix:
            found.append(kv_buffer(self._prefix.k, self._prefix.v, self._prefix_length))
        left = self._own_length
        for chunk in self._chunks:
            size = chunk.shape[3]
            found.append(kv_buffer(chunk[0], chunk[1], min(left, size)))
            left = max(left - size, 0)
        return found

    def advance(self, n: int) -> None:
        """Count n positions as kept, after every layer has them."""
        self._own_length += n
