"""How much is done in one piece of work, for which a running answer may have to wait."""

import torch

from galago.precision import Precision

WORK = {"cpu": 25 * 10**9, "cuda": 10**13, "mps": 10**12}
"""Floating-point operations in one piece: a tenth or two of a second."""
FASTER = 4
"""How many times as many operations on whole numbers a CPU does."""
MAX_CROPS = 32
"""Crops that an accelerator sees at once."""


def times(weights: int, device: torch.device, precision: Precision) -> int:
    """How often so many weights may be gone through in one piece of work."""
    whole = device.type == "cpu" and precision.bits is not None
    return WORK[device.type] * (FASTER if whole else 1) // (2 * weights)


def crops_at_once(device: torch.device) -> int:
    """Crops that one pass sees. On a CPU one crop keeps all cores busy, and takes the memory of one."""
    return 1 if device.type == "cpu" else MAX_CROPS


def rows_at_once(weights: int, device: torch.device, precision: Precision) -> int:
    """Rows of a prompt in one pass over so many weights: no fewer than a batch of decode steps would take."""
    return max(32, times(weights, device, precision))


def blocks_at_once(weights: int, device: torch.device, precision: Precision) -> int:
    """Blocks in one piece, of so many weights each, counted once for every row that goes through them."""
    return max(1, times(weights, device, precision))
