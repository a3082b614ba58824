"""The precisions that a model can run in; families know nothing of them."""

from dataclasses import dataclass

import torch

from galago.choices import BITS, PRECISIONS, WEIGHT_BYTES, check_precision


@dataclass(frozen=True)
class Precision:
    """The types of a model's weights and activations on one device."""

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
        return WEIGHT_BYTES[self.name]


FLOATS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
NAMES = PRECISIONS


def pick_precision(name: str, device: torch.device) -> Precision:
    """The precision of this name on a device. Raises InvalidRequest."""
    check_precision(name)
    if name in FLOATS:
        return Precision(name, FLOATS[name], FLOATS[name])
    # On a CPU float32 activations cost little next to the product, and keep what int8 leaves.
    on_cpu = device.type == "cpu"
    half = torch.float16 if device.type == "mps" else torch.bfloat16
    return Precision(name, torch.float32 if on_cpu else half, torch.bfloat16 if on_cpu else half, BITS[name])
