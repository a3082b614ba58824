"""Coordinates and sizes in and out of the decoder (Fourier features in, bins out).

Coordinates and sizes are 0..1, relative to the whole image. The Fourier part is float32 whatever
the model's type: half precision would round a coordinate to a few pixels.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from galago.precision.linear import LinearWeight, Mlp, linear, mlp


@dataclass(frozen=True)
class RegionWeights:
    coord_features: Tensor
    """float32 [1, feat / 2] frequencies"""
    coord_encoder: LinearWeight
    coord_decoder: Mlp
    size_features: Tensor
    """float32 [2, feat / 2]: row 0 width, row 1 height"""
    size_encoder: LinearWeight
    size_decoder: Mlp


def fourier(x: Tensor, frequencies: Tensor) -> Tensor:
    """x [..., n] with frequencies [n, f] to [..., 2 f]: cosines, then sines."""
    f = (2 * math.pi * x.float()) @ frequencies.float()
    return torch.cat((f.cos(), f.sin()), dim=-1)


def encode_coordinate(x: Tensor, w: RegionWeights, dtype: torch.dtype) -> Tensor:
    """Coordinates [..., 1] to embeddings [..., D]."""
    return linear(fourier(x, w.coord_features).to(dtype), w.coord_encoder)


def encode_size(size: Tensor, w: RegionWeights, dtype: torch.dtype) -> Tensor:
    """(width, height) [..., 2] to embeddings [..., D]; plain sizes also where the bins are logarithmic."""
    return linear(fourier(size, w.size_features).to(dtype), w.size_encoder)


def coordinate_logits(hidden: Tensor, w: RegionWeights) -> Tensor:
    """Raw residual stream [..., D] to bin logits [..., bins]."""
    return mlp(hidden, w.coord_decoder)


def size_logits(hidden: Tensor, w: RegionWeights) -> Tensor:
    """Raw residual stream [..., D] to bin logits [..., 2, bins]: width, then height."""
    return mlp(hidden, w.size_decoder).unflatten(-1, (2, -1))
