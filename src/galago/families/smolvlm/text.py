"""The text decoder: Llama's blocks."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from galago.families.smolvlm.config import TextConfig
from galago.nn.attention import merge_heads, split_heads
from galago.nn.linear import GatedMlp, LinearWeight, Norm, add, linear, rms_norm, swiglu
from galago.nn.rotary import rotary_table, rotate
from galago.nn.stack import Block, Stack, stack_of

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [B, H, T, d], k [B, K, T, d], v [B, K, T, d]) -> [B, H, T, d]: who sees whom, and what is kept."""


@dataclass(frozen=True)
class TextBlock:
    norm1: Tensor
    """gain [dim] before attention"""
    qkv: LinearWeight
    proj: LinearWeight
    norm2: Tensor
    """gain [dim] before the MLP"""
    mlp: GatedMlp


@dataclass(frozen=True)
class TextWeights:
    wte: Tensor
    """[vocab, dim], as stored: only the rows that are looked up are read"""
    blocks: tuple[TextBlock, ...]
    norm: Tensor
    """gain [dim] before the head"""
    lm_head: LinearWeight
    stack: Stack | None = None
    """the blocks as one call, where their precision allows it"""


def text_stack(blocks: Sequence[TextBlock], c: TextConfig, kv: torch.dtype) -> Stack | None:
    """All blocks as one call, where their precision allows it."""
    if c.q_dim != c.dim:
        return None
    parts = [Block((Norm(b.norm1), Norm(b.norm2)), (b.qkv, b.proj, b.mlp.gate_up, b.mlp.down)) for b in blocks]
    return stack_of(parts, c.n_heads, c.n_kv_heads, kv)


def text_block(
    x: Tensor,
    w: TextBlock,
    c: TextConfig,
    table: tuple[Tensor, Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
) -> Tensor:
    """One block over the residual stream [B, T, dim]."""
    qk, v = linear(rms_norm(x, w.norm1, c.eps), w.qkv).split((c.q_dim + c.kv_dim, c.kv_dim), dim=-1)
    q, k = rotate(split_heads(qk, c.n_heads + c.n_kv_heads), table).split((c.n_heads, c.n_kv_heads), -3)
    x = add(x, linear(merge_heads(attend(q, k, split_heads(v, c.n_kv_heads))), w.proj))
    return add(x, swiglu(rms_norm(x, w.norm2, c.eps), w.mlp))


def decoder(
    x: Tensor, w: TextWeights, c: TextConfig, positions: Tensor, attend: Attend, blocks: range | None = None
) -> Tensor:
    """Embeddings [B, T, dim] at positions [T] or [B, T] to the residual stream [B, T, dim], not normalised.

    With `blocks` from one residual stream to a later one, through these blocks only.
    """
    cos, sin = rotary_table(positions, c.head_dim, c.theta)
    table = (cos.unsqueeze(-3), sin.unsqueeze(-3))
    for i in range(len(w.blocks)) if blocks is None else blocks:
        x = text_block(x, w.blocks[i], c, table, partial(attend, i))
    return x


def embedded(ids: Tensor, w: TextWeights, dtype: torch.dtype) -> Tensor:
    """Token ids [n] to embeddings [n, dim]."""
    return w.wte[ids].to(dtype)


def logits_of(hidden: Tensor, w: TextWeights, c: TextConfig) -> Tensor:
    """Residual stream [..., dim] to logits [..., vocab]."""
    return linear(rms_norm(hidden, w.norm, c.eps), w.lm_head)
