"""Linear maps over quantised weights: the kinds of weight that `linear(x, w)` meets."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from galago.kernels import Kernels, kernels
from galago.precision import Precision
from galago.precision.linear import LinearWeight, float_product_name, gelu
from galago.precision.quantise import Quantised, values
from galago.system.machine import instruction_sets, withheld_set

FEW_ROWS = 16
"""Up to here torch's weight-only product is the faster one, above quantised activations are."""


@dataclass(frozen=True)
class KernelWeight:
    """A packed weight that our own kernels read where it lies, for example in a mapped file."""

    stored: Quantised
    handle: Any
    kernels: Kernels

    def forward(self, x: Tensor, activate: bool = False) -> Tensor:
        return self.kernels.gemm(x.float(), self.handle, activate).to(x.dtype)


@dataclass(frozen=True)
class RowMajor:
    """Whole numbers [out, in] for the products that torch has on a CPU. int4 takes the space of int8 here."""

    weight: Tensor
    """int8 [out, in]"""
    scale: Tensor
    bias: Tensor
    multiply: Tensor

    def forward(self, x: Tensor, activate: bool = False) -> Tensor:
        rows = x.reshape(-1, x.shape[-1]).float() * self.multiply
        # torch's weight-only kernel reads past the end where the inputs are no multiple of 16.
        few = len(rows) <= FEW_ROWS and rows.shape[1] % 16 == 0
        product = _weight_only if few else _integer_product
        y = (product(rows, self.weight, self.scale) + self.bias).to(x.dtype).view(*x.shape[:-1], -1)
        return gelu(y) if activate else y


@dataclass(frozen=True)
class WeightOnly:
    """Whole numbers [out, in] on an accelerator, for activations in the model's own type."""

    weight: Tensor
    """int8 [out, in]"""
    scale: Tensor
    bias: Tensor
    multiply: Tensor
    few: Callable[[Tensor, Tensor, Tensor], Tensor]
    """the product of as many rows as decode has"""
    many: Callable[[Tensor, Tensor, Tensor], Tensor]
    """that of a prompt's or an image's"""

    def forward(self, x: Tensor, activate: bool = False) -> Tensor:
        rows = (x * self.multiply).reshape(-1, x.shape[-1])
        product = self.few if len(rows) <= FEW_ROWS else self.many
        y = (product(rows, self.weight, self.scale) + self.bias).view(*x.shape[:-1], -1)
        return gelu(y) if activate else y


def _weight_only(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """x [m, in] times an int8 weight [out, in] with a scale for each output, by torch's own kernel."""
    half = x if x.dtype == torch.float16 else x.bfloat16()
    return torch.ops.aten._weight_int8pack_mm(half, weight, scale.to(half.dtype)).to(x.dtype)


def _unpack_and_multiply(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same over a copy of the weight in the type of x."""
    return F.linear(x, weight.to(x.dtype)) * scale.to(x.dtype)


def _integer_product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """The same with each row of x quantised to int8."""
    step = x.abs().amax(1, keepdim=True).clamp_min(1e-30) / 127
    return torch._int_mm((x / step).round_().to(torch.int8), weight.T).float() * step * scale


def weight_for(stored: Quantised, device: torch.device, dtype: torch.dtype) -> LinearWeight:
    """The kind of weight that suits the device, for activations of this type."""
    if device.type == "cpu":
        if best := kernels():
            s = stored
            handle = best.weight(s.panels, s.total, s.scale, s.bias, s.multiply, s.n, s.k, s.bits)
            return KernelWeight(stored, handle, best)
        n = stored.n
        return RowMajor(values(stored), stored.scale[:n], stored.bias[:n], stored.multiply)
    return weight_only(stored, device, dtype)


def weight_only(stored: Quantised, device: torch.device, dtype: torch.dtype) -> WeightOnly:
    """The kind for accelerators, with the products that this one runs fastest."""
    return WeightOnly(
        weight=values(stored).to(device),
        scale=stored.scale[: stored.n].to(device),
        bias=stored.bias[: stored.n].to(device, dtype),
        multiply=stored.multiply.to(device, dtype),
        few=product_for(device, dtype, 1),
        many=product_for(device, dtype, MANY_ROWS),
    )


MANY_ROWS = 256
"""Tried for all above few: torch's weight-only product may be written for a row or two."""

_chosen: dict[tuple[str, torch.dtype, int], Callable[[Tensor, Tensor, Tensor], Tensor]] = {}


def product_for(device: torch.device, dtype: torch.dtype, rows: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The product of so many rows that an accelerator runs fastest, of those that it runs rightly; tried once."""
    key = (str(device), dtype, rows)
    if key not in _chosen:
        # Drawn from a source of its own: that of torch is the program's that we run in.
        own = torch.Generator().manual_seed(0)
        x = torch.randn(rows, 1024, generator=own, dtype=torch.float32, device="cpu").to(device, dtype)
        weight = torch.randint(-127, 128, (1024, 1024), generator=own, dtype=torch.int8, device="cpu").to(device)
        scale = torch.full((1024,), 0.01, dtype=torch.float32, device=device)
        right = _unpack_and_multiply(x, weight, scale)
        timed = []
        for product in (_weight_only, _unpack_and_multiply):
            try:
                if torch.allclose(product(x, weight, scale), right, rtol=0.05, atol=1.0):
                    timed.append((_seconds(lambda p=product: p(x, weight, scale), device), product))  # type: ignore[misc]
            except (RuntimeError, NotImplementedError):
                continue
        _chosen[key] = min(timed, key=lambda pair: pair[0])[1] if timed else _unpack_and_multiply
    return _chosen[key]


def _seconds(call: Callable[[], Tensor], device: torch.device) -> float:
    import time

    from galago.system.device import synchronize

    call()
    synchronize(device)
    begin = time.perf_counter()
    for _ in range(10):
        call()
    synchronize(device)
    return time.perf_counter() - begin


def _kernel_name() -> str:
    best = kernels()
    return f"galago {best.name}" if best else "torch"


def linear_kernels(precision: Precision, device: torch.device) -> str:
    """The name of the kernels that compute linear maps on the device."""
    if device.type != "cpu":
        return "torch, weight only" if precision.bits else "torch"
    if precision.bits:
        return _kernel_name() if kernels() else "torch int8"
    few = f", {_kernel_name()} for few rows" if kernels() else ""
    return float_product_name(precision.dtype) + few


def fallbacks(device: torch.device, bits: int | None) -> list[str]:
    """Sentences on what is slower or larger here than it could be; `bits` is None for floating point."""
    if device.type != "cpu":
        return []
    if best := kernels():
        refused = withheld_set(best.name) if bits else None
        return [f"the system keeps {refused} from this process: {best.name} is used"] if refused else []
    found = [f"galago's own kernels are not in use, and torch's are slower: {_why_no_kernels()}"]
    return [*found, "int4 weights are unpacked to int8"] if bits == 4 else found


def _why_no_kernels() -> str:
    if chosen := os.environ.get("GALAGO_KERNELS"):
        return f"GALAGO_KERNELS is {chosen}"
    if not instruction_sets():
        return "this processor has none of the instruction sets that they need"
    # Not "and galago anew": pip keeps what it has built without one.
    return (
        "not built, or damaged; install a wheel, or a C++ compiler (apt install g++) and run what `galago doctor` says"
    )
