"""Rotary position embedding over a part of each head (RoFormer, arXiv:2104.09864)."""

from functools import lru_cache

import torch
from torch import Tensor

from galago.precision.linear import kernels_for

RotaryTable = tuple[Tensor, Tensor]
"""Cosines and sines of the angles by which positions turn."""


def rotary_table(positions: Tensor, rot_dim: int, theta: float = 10000.0) -> RotaryTable:
    """Cosines and sines, float32 [..., T, rot_dim / 2], of integer positions [..., T]."""
    angles = positions.float().unsqueeze(-1) * _frequencies(rot_dim, theta, positions.device)
    return angles.cos(), angles.sin()


@lru_cache(16)
def _frequencies(rot_dim: int, theta: float, device: torch.device) -> Tensor:
    """Radians that each pair turns for a position, float32 [rot_dim / 2]. Every step of every request asks for them."""
    steps = torch.arange(0, rot_dim, 2, device=device, dtype=torch.float32)
    return theta ** (-steps / rot_dim)


def rotate(x: Tensor, table: RotaryTable) -> Tensor:
    """Turn the first rot_dim entries of each head in pairs (i, i + rot_dim / 2); x may be overwritten.

    x is [..., heads, T, head_dim]; the table's tensors broadcast to [..., heads, T, rot_dim / 2].
    Products are float32; the result has the type of x.
    """
    cos, sin = table
    best = kernels_for(x, cos, sin)
    if best and x.shape[:-3].numel() == 1 and cos.shape[:-2].numel() == 1:
        best.rotate(x.view(x.shape[-3:]), cos, sin)
        return x
    half = cos.shape[-1]
    a, b, rest = x[..., :half].float(), x[..., half : 2 * half].float(), x[..., 2 * half :]
    turned = torch.cat((a * cos - b * sin, a * sin + b * cos), dim=-1)
    return torch.cat((turned.to(x.dtype), rest), dim=-1)
