"""Kinds of weight and number that a model can run with; families know nothing of them."""

from dataclasses import dataclass

import torch

from galago.choices import BITS, PRECISIONS, check_precision, check_profile


@dataclass(frozen=True)
class Precision:
    """What a model computes with on one device."""

    name: str
    dtype: torch.dtype
    """of activations, norms and floating-point weights"""
    kv: torch.dtype
    """of keys and values"""
    bits: int | None = None
    """of the weights of linear maps; None: floating point"""

    @property
    def weight_bytes(self) -> float:
        """Bytes of a weight of a linear map, its scales included."""
        return {8: 1.0, 4: 0.515625}[self.bits] if self.bits else float(self.dtype.itemsize)


FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = PRECISIONS


def pick_precision(name: str | None, device: torch.device, profile: str | None = None) -> Precision:
    """The named precision, or the profile's for this device.

    `standard` (the default on a CPU) is float32 wherever the model runs; `optimized` (the default
    elsewhere) is int8 on a CPU, bfloat16 on CUDA and float16 on MPS. Raises InvalidRequest.
    """
    check_profile(profile)
    check_precision(name)
    on_cpu = device.type == "cpu"
    half = torch.float16 if device.type == "mps" else torch.bfloat16
    if name in (None, "auto"):
        optimized = profile == "optimized" or (profile is None and not on_cpu)
        name = "float32" if not optimized else "int8" if on_cpu else str(half).removeprefix("torch.")
    if name in FLOATS:
        return Precision(name, FLOATS[name], FLOATS[name])
    # On a CPU float32 activations cost little next to the product, and keep what int8 leaves.
    return Precision(name, torch.float32 if on_cpu else half, torch.bfloat16 if on_cpu else half, BITS[name])
