"""What the bins of the region heads stand for: coordinates and sizes, 0..1, relative to the whole image."""

import numpy as np
from numpy.typing import NDArray


def coordinate_of_bin(number: int, n_bins: int) -> float:
    """A bin's number to a coordinate, as float32 has it: number / n_bins."""
    return float(np.float32(number) / np.float32(n_bins))


def size_of_bin(bins: NDArray[np.int64], n_bins: int, log: bool) -> NDArray[np.float32]:
    """Bin numbers to sizes, float32: 2^(10 bin / (n_bins - 1) - 10) where logarithmic, else bin / n_bins."""
    numbers = bins.astype(np.float32)
    if log:
        return np.exp2(numbers / np.float32(n_bins - 1) * np.float32(10) - np.float32(10))
    return numbers / np.float32(n_bins)
