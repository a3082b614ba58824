"""Checks for NaN and infinity."""

from torch import Tensor


def is_finite(x: Tensor) -> bool:
    """Whether no value is NaN or infinite. Reads x once, at the speed of memory, and makes no copy."""
    if not x.is_floating_point() or not x.numel():
        return True
    # The least and the most of values with a NaN among them are NaN. (Under autocast stacking float16 is an error.)
    return all(bool(most.isfinite()) for most in x.aminmax())


def count_not_finite(x: Tensor) -> int:
    """How many values are NaN or infinite."""
    return int(x.numel() - x.isfinite().sum())
