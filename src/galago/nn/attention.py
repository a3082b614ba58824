"""Scaled dot-product attention over heads."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from galago.kernels import kernels
from galago.precision.linear import computing_type, kernels_for

Segment = tuple[Tensor, Tensor]
"""Keys and values, each [kv heads, n, head dim], of n neighbouring positions."""


def split_heads(x: Tensor, n_heads: int) -> Tensor:
    """[..., T, heads * d] to [..., heads, T, d]."""
    return x.unflatten(-1, (n_heads, -1)).transpose(-3, -2)


def merge_heads(x: Tensor) -> Tensor:
    """[..., heads, T, d] to [..., T, heads * d]."""
    return x.transpose(-3, -2).flatten(-2)


def attention(q: Tensor, k: Tensor, v: Tensor, kv: torch.dtype | None = None, key_mask: Tensor | None = None) -> Tensor:
    """Softmax(q k^T / sqrt(d)) v, where every query sees every key, or those of `key_mask` (bool [B, S]).

    q is [B, H, T, d]; k and v are [B, K, S, d] where K divides H (query head h reads kv head
    h // (H / K)). The result has the type of q. Products may be of the type `kv`, which keys and values
    are kept in, if that is coarser.
    """
    best = kernels() if kv == torch.bfloat16 and k.device.type == "cpu" else None
    if best and key_mask is None and not torch.is_grad_enabled():
        return best.attention(q.float(), k.float(), v.float()).to(q.dtype)
    if (wide := computing_type(q)) != q.dtype:
        return attention(q.to(wide), k.to(wide), v.to(wide), key_mask=key_mask).to(q.dtype)
    groups = q.shape[-3] // k.shape[-3]
    if groups > 1:
        k, v = k.repeat_interleave(groups, dim=-3), v.repeat_interleave(groups, dim=-3)
    return F.scaled_dot_product_attention(q, k, v, None if key_mask is None else key_mask[:, None, None])


def store(x: Tensor, to: Tensor) -> None:
    """Copy [heads, T, d] into a tensor of that shape and any type."""
    best = kernels_for(x)
    if best and to.dtype == torch.bfloat16:
        best.store(x, to)
    else:
        to.copy_(x)


def attend_cached(q: Tensor, segments: Sequence[Segment], free: int) -> Tensor:
    """Causal attention of one sequence, whose keys and values lie in several segments.

    q is [H, T, d]; the segments follow each other. Query i sees the first free + i + 1 positions.
    """
    heads, t, dim = q.shape
    k = segments[0][0]
    best = kernels() if k.dtype == torch.bfloat16 and k.device.type == "cpu" and dim % 16 == 0 else None
    if best:
        return best.decode(q.float(), segments, free).to(q.dtype)
    if (wide := computing_type(q)) != q.dtype:
        return attend_cached(q.to(wide), segments, free).to(q.dtype)
    # Scores are small where keys are many, so it is they that are joined.
    grouped = q.reshape(k.shape[0], -1, dim)
    scores = torch.cat([grouped @ k.to(q.dtype).mT for k, _ in segments], -1).float() * dim**-0.5
    if t > 1:
        causal_mask = torch.ones(t, scores.shape[-1], dtype=torch.bool, device=q.device).tril(free)
        scores = scores.view(heads, t, -1).masked_fill(~causal_mask, float("-inf")).view_as(scores)
    weights = scores.softmax(-1).to(q.dtype).split([k.shape[1] for k, _ in segments], -1)
    outputs = [p @ v.to(q.dtype) for p, (_, v) in zip(weights, segments, strict=True)]
    return torch.stack(outputs).sum(0).view(heads, t, dim)
