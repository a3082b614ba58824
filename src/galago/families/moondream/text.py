"""The text decoder: Phi-style blocks with attention and MLP in parallel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from galago.families.moondream.config import TextConfig
from galago.nn.attention import merge_heads, split_heads
from galago.nn.linear import LinearWeight, Mlp, Norm, add, gelu, layer_norm, linear, linear_gelu
from galago.nn.rotary import rotary_table, rotate
from galago.nn.stack import Block, Stack, stack_of

Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]
"""(layer, q [B, H, T, d], k [B, K, T, d], v [B, K, T, d]) -> [B, H, T, d]: who sees whom, and what is kept."""


@dataclass(frozen=True)
class TextBlock:
    ln: Norm
    qkv: LinearWeight
    proj: LinearWeight
    mlp: Mlp


@dataclass(frozen=True)
class TextWeights:
    wte: Tensor
    """[vocab, dim], as stored: only the rows that are looked up are read"""
    blocks: tuple[TextBlock, ...]
    post_ln: Norm
    lm_head: LinearWeight
    stack: Stack | None = None
    """the blocks as one call, where their precision allows it"""


@dataclass(frozen=True)
class LowRank:
    """A LoRA update: y += b(a(x)), a [r, in], b [out, r]; no scale."""

    a: Tensor
    b: Tensor


@dataclass(frozen=True)
class BlockLora:
    qkv: LowRank
    proj: LowRank
    fc1: LowRank
    fc2: LowRank


def _adapted(y: Tensor, x: Tensor, update: LowRank | None) -> Tensor:
    return y if update is None else y + (x @ update.a.T) @ update.b.T


def text_stack(blocks: Sequence[TextBlock], c: TextConfig, kv: torch.dtype) -> Stack | None:
    """All blocks as one call, where their precision allows it."""
    if c.head_dim % 16:
        return None
    parts = [Block((b.ln,), (b.qkv, b.proj, b.mlp.fc1, b.mlp.fc2)) for b in blocks]
    return stack_of(parts, c.n_heads, c.n_kv_heads, kv)


def text_block(
    x: Tensor,
    w: TextBlock,
    c: TextConfig,
    table: tuple[Tensor, Tensor],
    attend: Callable[[Tensor, Tensor, Tensor], Tensor],
    lora: BlockLora | None,
) -> Tensor:
    """One block over the residual stream [B, T, dim]."""
    u = layer_norm(x, w.ln)
    on_qkv, on_proj, on_fc1, on_fc2 = (lora.qkv, lora.proj, lora.fc1, lora.fc2) if lora else (None,) * 4
    turning = c.dim + c.n_kv_heads * c.head_dim
    qk, v = _adapted(linear(u, w.qkv), u, on_qkv).split((turning, c.qkv_dim - turning), dim=-1)
    q, k = rotate(split_heads(qk, c.n_heads + c.n_kv_heads), table).split((c.n_heads, c.n_kv_heads), -3)
    mixed = merge_heads(attend(q, k, split_heads(v, c.n_kv_heads)))
    # The output projection's LoRA reads the block's normalised input: variants are trained so.
    attended = _adapted(linear(mixed, w.proj), u, on_proj)
    inner = gelu(_adapted(linear(u, w.mlp.fc1), u, on_fc1)) if lora else linear_gelu(u, w.mlp.fc1)
    return add(x, attended, _adapted(linear(inner, w.mlp.fc2), inner, on_fc2))


def decoder(
    x: Tensor,
    w: TextWeights,
    c: TextConfig,
    positions: Tensor,
    attend: Attend,
    lora: Sequence[BlockLora] | None = None,
    blocks: range | None = None,
) -> Tensor:
    """Embeddings [B, T, dim] at positions [T] or [B, T] to the residual stream [B, T, dim], not normalised.

    With `blocks` from one residual stream to a later one, through these blocks only.
    """
    cos, sin = rotary_table(positions, c.head_dim // 2)
    table = (cos.unsqueeze(-3), sin.unsqueeze(-3))
    for i in range(len(w.blocks)) if blocks is None else blocks:
        x = text_block(x, w.blocks[i], c, table, partial(attend, i), lora[i] if lora else None)
    return x


def embedded(ids: Tensor, w: TextWeights, dtype: torch.dtype) -> Tensor:
    """Token ids [n] to embeddings [n, dim]."""
    return w.wte[ids].to(dtype)


def logits_of(hidden: Tensor, w: TextWeights) -> Tensor:
    """Residual stream [..., dim] to logits [..., vocab]."""
    return linear(layer_norm(hidden, w.post_ln), w.lm_head)
