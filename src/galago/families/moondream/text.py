"""The text decoder: Phi-style blocks with attention and MLP in parallel."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from galago.families.moondream.config import TextConfig
from galago.nn.attention import merge_heads, split_heads
from galago.nn.linear import LinearWeight, Mlp, Norm, gelu, layer_norm, linear
from galago.nn.rotary import rotary_table, rotate

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
    """[vocab, dim]"""
    blocks: tuple[TextBlock, ...]
    post_ln: Norm
    lm_head: LinearWeight


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
    kv_dim = c.n_kv_heads * c.head_dim
    q, k, v = _adapted(linear(u, w.qkv), u, on_qkv).split((c.dim, kv_dim, kv_dim), dim=-1)
    q = rotate(split_heads(q, c.n_heads), table)
    k = rotate(split_heads(k, c.n_kv_heads), table)
    mixed = merge_heads(attend(q, k, split_heads(v, c.n_kv_heads)))
    # The output projection's LoRA reads the block's normalised input: variants are trained so.
    attended = _adapted(linear(mixed, w.proj), u, on_proj)
    inner = gelu(_adapted(linear(u, w.mlp.fc1), u, on_fc1))
    return x + attended + _adapted(linear(inner, w.mlp.fc2), inner, on_fc2)


def decoder(
    x: Tensor,
    w: TextWeights,
    c: TextConfig,
    positions: Tensor,
    attend: Attend,
    lora: Sequence[BlockLora] | None = None,
) -> Tensor:
    """Embeddings [B, T, dim] at positions [T] or [B, T] to the residual stream [B, T, dim], not normalised."""
    cos, sin = rotary_table(positions, c.head_dim // 2)
    table = (cos.unsqueeze(-3), sin.unsqueeze(-3))
    for i, block in enumerate(w.blocks):
        x = text_block(x, block, c, table, partial(attend, i), lora[i] if lora else None)
    return x


def logits_of(hidden: Tensor, w: TextWeights) -> Tensor:
    """Residual stream [..., dim] to logits [..., vocab]."""
    return linear(layer_norm(hidden, w.post_ln), w.lm_head)
