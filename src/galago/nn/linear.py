"""Linear maps and layer norms.

Families call `linear(x, w)` and never ask what kind of weight `w` is: a precision is a kind of
weight with its own `forward`.
"""

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from torch import Tensor


class LinearWeight(Protocol):
    """Any kind of weight that maps [..., in] to [..., out]."""

    def forward(self, x: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Dense:
    """A floating-point weight [out, in] with its bias [out], used as it is stored."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class Mlp:
    """Two linear maps with a tanh-GELU between them."""

    fc1: LinearWeight
    fc2: LinearWeight


@dataclass(frozen=True)
class Norm:
    """LayerNorm gain and bias, each [dim]."""

    weight: Tensor
    bias: Tensor


def linear(x: Tensor, w: LinearWeight) -> Tensor:
    """Map [..., in] to [..., out]."""
    return w.forward(x)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as SigLIP and Phi were trained with."""
    return F.gelu(x, approximate="tanh")


def mlp(x: Tensor, w: Mlp) -> Tensor:
    """fc2(gelu(fc1(x))): [..., in] to [..., out]."""
    return linear(gelu(linear(x, w.fc1)), w.fc2)


def layer_norm(x: Tensor, w: Norm, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the last dimension; torch accumulates in float32 whatever the input type."""
    return F.layer_norm(x, w.bias.shape, w.weight, w.bias, eps)
