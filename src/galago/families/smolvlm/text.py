"""The text decoder: Llama's blocks."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from galago.families.smolvlm.config import TextConfig
from galago.nn.decoder import DecoderSizes, LayerAttend, RotaryTable, rotary_attention
from galago.nn.stack import Block, Stack, stack_of
from galago.precision.linear import GatedMlp, LinearWeight, Norm, add, linear, rms_norm, swiglu


@dataclass(frozen=True)
class TextBlock:
    norm1: Tensor
    """gain [dim] before attention"""
    qkv: LinearWeight
    proj: LinearWeight
    norm2: Tensor
    """gain [dim] before the MLP"""
    mlp: GatedMlp

    def forward(self, x: Tensor, c: DecoderSizes, table: RotaryTable, attend: LayerAttend) -> Tensor:
        """The residual stream [B, T, dim] after the block."""
        qkv = linear(rms_norm(x, self.norm1, c.eps), self.qkv)
        x = add(x, linear(rotary_attention(qkv, c, table, attend), self.proj))
        return add(x, swiglu(rms_norm(x, self.norm2, c.eps), self.mlp))


@dataclass(frozen=True)
class TextWeights:
    """See nn.decoder."""

    wte: Tensor
    blocks: tuple[TextBlock, ...]
    norm: Tensor
    """gain [dim] before the head"""
    lm_head: LinearWeight
    stack: Stack | None = None


def text_stack(blocks: Sequence[TextBlock], c: TextConfig, kv: torch.dtype) -> Stack | None:
    """All blocks as one call, where their precision allows it."""
    if c.q_dim != c.dim:
        return None
    parts = [Block((Norm(b.norm1), Norm(b.norm2)), (b.qkv, b.proj, b.mlp.gate_up, b.mlp.down)) for b in blocks]
    return stack_of(parts, c.n_heads, c.n_kv_heads, kv)


def logits_of(hidden: Tensor, w: TextWeights, c: TextConfig) -> Tensor:
    """Residual stream [..., dim] to logits [..., vocab]."""
    return linear(rms_norm(hidden, w.norm, c.eps), w.lm_head)
