"""A text decoder: blocks over the residual stream, with attention as a function that the caller gives."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from galago.nn.attention import merge_heads, split_heads
from galago.nn.rotary import RotaryTable, rotary_table, rotate
from galago.nn.sizes import TextSizes
from galago.nn.stack import Stack

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [B, H, T, d], k [B, K, T, d], v [B, K, T, d]) -> [B, H, T, d]: who sees whom, and what is kept."""
LayerAttend = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The same without the layer."""


class DecoderSizes(TextSizes, Protocol):
    """All sizes of a decoder, as a family's config has them."""

    @property
    def n_heads(self) -> int: ...
    @property
    def rot_dim(self) -> int:
        """Entries of each head that its position turns."""
        ...

    @property
    def theta(self) -> float: ...
    @property
    def eps(self) -> float:
        """of the norms"""
        ...

    @property
    def block_weights(self) -> int:
        """Weights of a block's linear maps."""
        ...


class DecoderBlock(Protocol):
    """The weights of one block, and how they are applied."""

    def forward(self, x: Tensor, c: DecoderSizes, table: RotaryTable, attend: LayerAttend) -> Tensor:
        """The residual stream [B, T, dim] after the block."""
        ...


class DecoderWeights(Protocol):
    @property
    def wte(self) -> Tensor:
        """[vocab, dim], as stored: only the rows that are looked up are read"""
        ...

    @property
    def blocks(self) -> Sequence[DecoderBlock]: ...
    @property
    def stack(self) -> Stack | None:
        """The blocks as one call, where their precision allows it."""
        ...


def embed_tokens(ids: Tensor, w: DecoderWeights, dtype: torch.dtype) -> Tensor:
    """Token ids [n] to embeddings [n, dim]."""
    return w.wte[ids].to(dtype)


def rotary_attention(qkv: Tensor, c: DecoderSizes, table: RotaryTable, attend: LayerAttend) -> Tensor:
    """Attention [B, T, H * d] over queries, keys and values [B, T, (H + 2 K) * d], turned by their positions."""
    kv_dim = c.n_kv_heads * c.head_dim
    qk, v = qkv.split((qkv.shape[-1] - kv_dim, kv_dim), dim=-1)
    q, k = rotate(split_heads(qk, c.n_heads + c.n_kv_heads), table).split((c.n_heads, c.n_kv_heads), -3)
    return merge_heads(attend(q, k, split_heads(v, c.n_kv_heads)))


def decoder(
    x: Tensor, w: DecoderWeights, c: DecoderSizes, positions: Tensor, attend: Attend, blocks: range | None = None
) -> Tensor:
    """Embeddings [B, T, dim] at positions [T] or [B, T] to the residual stream [B, T, dim], not normalised.

    With `blocks` from one residual stream to a later one, through these blocks only.
    """
    cos, sin = rotary_table(positions, c.rot_dim, c.theta)
    table = (cos.unsqueeze(-3), sin.unsqueeze(-3))
    for i in range(len(w.blocks)) if blocks is None else blocks:
        x = w.blocks[i].forward(x, c, table, partial(attend, i))
    return x
