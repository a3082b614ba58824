"""Scaled dot-product attention over heads."""

import torch.nn.functional as F
from torch import Tensor


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[..., T, heads * d] to [..., heads, T, d]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, T, d] to [..., T, heads * d]."""
    return x.transpose(-3, -2).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Softmax(q k^T / sqrt(d)) v.

    q is [B, H, T, d]; k and v are [B, K, S, d] where K divides H (query head h reads kv head
    h // (H / K)). The boolean mask, broadcastable to [B, H, T, S], is True where q may look.
    """
    groups = q.shape[-3] // k.shape[-3]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
