"""Linear maps and layer norms.

Families call `linear(x, w)` and never ask what kind of weight `w` is: a precision is a kind of
weight with its own `forward`.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, partial
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from galago.kernels import FLOATS, Kernels, kernels

FEW_ROWS = 16
"""Up to here a product is bound by reading the weight, which our own kernel does faster than torch on a CPU."""
WIDENED = 1 << 19
"""Values of a weight that are made float32 at a time: 2 MB, which a processor's caches hold."""
VECTOR_VALUES, THREAD_VALUES = 32, 1 << 14
"""Values that torch computes at once on a CPU, two vectors of the widest; and those that one thread computes."""


Product = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Of x [..., in] and a weight [out, in], plus a bias [out]: [..., out]."""


class LinearWeight(Protocol):
    """Any kind of weight that maps [..., in] to [..., out]."""

    def forward(self, x: Tensor, activate: bool = False) -> Tensor:
        """The map, followed by tanh-GELU with `activate`: a kernel can do both in one pass."""
        ...


def _onednn_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


def _widened_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The product of halves in float32, a piece of the weight after another, so that none is there twice as a whole."""
    product, wide, y = float_product(torch.float32), x.float(), x.new_empty(*x.shape[:-1], len(weight))
    step = max(1, WIDENED // weight.shape[1])
    for i in range(0, len(weight), step):
        y[..., i : i + step] = product(wide, weight[i : i + step].float(), bias[i : i + step].float())
    return y


@cache
def float_product(dtype: torch.dtype) -> Product:
    """The fastest way to multiply many rows of a floating-point type on this CPU, tried once.

    torch's own choice is slow on some: in float32, and for halves where the processor has no instructions for them.
    """
    ways: list[Product] = [F.linear]
    if dtype != torch.float32:
        ways.append(_widened_linear)
    elif torch.backends.mkldnn.is_available():
        ways.append(_onednn_linear)
    # Nothing is drawn, and nothing taken from torch's defaults: both are the program's that we run in.
    x, weight, bias = (torch.ones(s, dtype=dtype, device="cpu") for s in ((256, 1024), (1024, 1024), (1024,)))
    took: dict[Product, float] = {}
    try:
        with torch.autocast("cpu", enabled=False), torch.no_grad():
            for product in ways * 3:
                begin = time.perf_counter()
                product(x, weight, bias)
                took[product] = min(time.perf_counter() - begin, took.get(product, float("inf")))
    except (RuntimeError, AttributeError):  # a build of torch without the operator
        return F.linear
    return min(took, key=lambda product: took[product])


def float_product_name(dtype: torch.dtype) -> str:
    """What multiplies many rows of a floating-point type on this CPU."""
    names: dict[Product, str] = {_onednn_linear: "oneDNN", _widened_linear: "torch in float32"}
    return names.get(float_product(dtype), "torch")


def computing_type(x: Tensor) -> torch.dtype:
    """The type in which products of this are quickest here: float32 where a CPU has no instructions for halves."""
    widened = x.is_cpu and x.dtype in FLOATS and float_product(x.dtype) is _widened_linear
    return torch.float32 if widened else x.dtype


@dataclass(frozen=True)
class Dense:
    """A floating-point weight [out, in] with its bias [out], used as it is stored."""

    weight: Tensor
    bias: Tensor

    def forward(self, x: Tensor, activate: bool = False) -> Tensor:
        # With gradients nothing may depend on how many rows there are: an export is traced so, for any number.
        own = self._plain and not torch.is_grad_enabled()
        rows = x.numel() // x.shape[-1] if own else 0
        best = kernels() if 0 < rows <= FEW_ROWS else None
        if best:
            y = best.dense(x.reshape(rows, -1).float(), self.weight, self.bias).to(x.dtype).view(*x.shape[:-1], -1)
        elif own and x.dtype == self.weight.dtype:
            y = float_product(x.dtype)(x, self.weight, self.bias)
        else:
            y = F.linear(x, self.weight, self.bias)
        return gelu(y) if activate else y

    @cached_property
    def _plain(self) -> bool:
        w = self.weight
        return w.is_cpu and w.dtype in FLOATS and w.is_contiguous() and self.bias.dtype == w.dtype


@dataclass(frozen=True)
class Mlp:
    """Two linear maps with a tanh-GELU between them."""

    fc1: LinearWeight
    fc2: LinearWeight


@dataclass(frozen=True)
class GatedMlp:
    """Three linear maps, two of them side by side: down(silu(gate(x)) * up(x))."""

    gate_up: LinearWeight
    """to the gates, then to what they let through: [2 * inner, in]"""
    down: LinearWeight


@dataclass(frozen=True)
class Norm:
    """A norm's gain and bias, each [dim]; RMSNorm has no bias."""

    weight: Tensor
    bias: Tensor | None = None


def norm_of(tensors: Mapping[str, Tensor], name: str) -> Norm:
    return Norm(tensors[f"{name}.weight"], tensors[f"{name}.bias"])


def linear(x: Tensor, w: LinearWeight) -> Tensor:
    """Map [..., in] to [..., out]."""
    return w.forward(x)


def linear_gelu(x: Tensor, w: LinearWeight) -> Tensor:
    """gelu(linear(x, w))."""
    return w.forward(x, activate=True)


def gelu(x: Tensor) -> Tensor:
    """GELU in its tanh form, as SigLIP and Phi were trained with."""
    return _row_by_row(partial(F.gelu, approximate="tanh"), x)


def mlp(x: Tensor, w: Mlp) -> Tensor:
    """fc2(gelu(fc1(x))): [..., in] to [..., out]."""
    return linear(linear_gelu(x, w.fc1), w.fc2)


def swiglu(x: Tensor, w: GatedMlp) -> Tensor:
    """down(silu(gate(x)) * up(x)): [..., in] to [..., out] (arXiv:2002.05202)."""
    gate, up = linear(x, w.gate_up).chunk(2, -1)
    return linear(_row_by_row(F.silu, gate) * up, w.down)


def _row_by_row(f: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply an elementwise f to x [..., n]; of few rows on a CPU each gets exactly the values that it gets alone.

    torch computes so many values at once, and shares out more than so many among its threads: at the edges of both
    the last bits are others.
    """
    if torch.is_grad_enabled() or not x.is_cpu:
        return f(x)
    rows = x.numel() // x.shape[-1]
    whole = x.shape[-1] % VECTOR_VALUES == 0 and x.numel() <= THREAD_VALUES
    if whole or not 1 < rows <= FEW_ROWS:
        return f(x)
    return torch.stack([f(row) for row in x.reshape(rows, -1)]).view(x.shape)


def layer_norm(x: Tensor, w: Norm, eps: float = 1e-5) -> Tensor:
    """LayerNorm over the last dimension, accumulated in float32 whatever the input type."""
    if best := kernels_for(x, w.weight, w.bias):
        return best.norm(x, w.weight, w.bias, eps)
    return F.layer_norm(x, w.weight.shape, w.weight, w.bias, eps)


def rms_norm(x: Tensor, weight: Tensor, eps: float = 1e-5) -> Tensor:
    """x over its root mean square, times a gain [dim] (arXiv:1910.07467); the statistics are of float32."""
    if best := kernels_for(x, weight):
        return best.norm(x, weight, None, eps)
    wide = x.float()
    return (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype) * weight


def add(x: Tensor, a: Tensor, b: Tensor | None = None) -> Tensor:
    """x + a, and + b, of one shape."""
    best = kernels_for(x, a, b)
    if best and all(t is None or t.is_contiguous() for t in (x, a, b)):
        return best.add(x, a, b)
    return x + a if b is None else x + a + b


def kernels_for(*tensors: Tensor | None) -> Kernels | None:
    """Our own kernels, where they can work on these: all float32 on a CPU, and nothing to differentiate."""
    if torch.is_grad_enabled():
        return None
    for t in tensors:
        if t is not None and (t.dtype is not torch.float32 or not t.is_cpu):
            return None
    return kernels()
