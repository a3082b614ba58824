"""The text decoder: Phi-style blocks with attention and MLP in parallel."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from galago.families.moondream.config import TextConfig
from galago.nn.decoder import DecoderSizes, LayerAttend, RotaryTable, rotary_attention
from galago.nn.stack import Block, Stack, stack_of
from galago.precision.linear import LinearWeight, Mlp, Norm, add, gelu, layer_norm, linear, linear_gelu


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


@dataclass(frozen=True)
class TextBlock:
    ln: Norm
    qkv: LinearWeight
    proj: LinearWeight
    mlp: Mlp
    lora: BlockLora | None = None

    def forward(self, x: Tensor, c: DecoderSizes, table: RotaryTable, attend: LayerAttend) -> Tensor:
        """The residual stream [B, T, dim] after the block."""
        u, lora, fc1, fc2 = layer_norm(x, self.ln), self.lora, self.mlp.fc1, self.mlp.fc2
        if lora is None:
            attended = linear(rotary_attention(linear(u, self.qkv), c, table, attend), self.proj)
            return add(x, attended, linear(linear_gelu(u, fc1), fc2))
        attended = linear(rotary_attention(_add_lora(linear(u, self.qkv), u, lora.qkv), c, table, attend), self.proj)
        inner = gelu(_add_lora(linear(u, fc1), u, lora.fc1))
        # The output projection's LoRA reads the block's normalised input: variants are trained so.
        return add(x, _add_lora(attended, u, lora.proj), _add_lora(linear(inner, fc2), inner, lora.fc2))


def _add_lora(y: Tensor, x: Tensor, update: LowRank) -> Tensor:
    return y + (x @ update.a.T) @ update.b.T


@dataclass(frozen=True)
class TextWeights:
    """See nn.decoder."""

    wte: Tensor
    blocks: tuple[TextBlock, ...]
    post_ln: Norm
    lm_head: LinearWeight
    stack: Stack | None = None


def with_lora(w: TextWeights, updates: Sequence[BlockLora]) -> TextWeights:
    """The same weights with an update for each block."""
    blocks = tuple(replace(block, lora=lora) for block, lora in zip(w.blocks, updates, strict=True))
    return replace(w, blocks=blocks, stack=None)


def text_stack(blocks: Sequence[TextBlock], c: TextConfig, kv: torch.dtype) -> Stack | None:
    """All blocks as one call, where their precision allows it."""
    if c.head_dim % 16:
        return None
    parts = [Block((b.ln,), (b.qkv, b.proj, b.mlp.fc1, b.mlp.fc2)) for b in blocks]
    return stack_of(parts, c.n_heads, c.n_kv_heads, kv)


def logits_of(hidden: Tensor, w: TextWeights) -> Tensor:
    """Residual stream [..., dim] to logits [..., vocab]."""
    return linear(layer_norm(hidden, w.post_ln), w.lm_head)
