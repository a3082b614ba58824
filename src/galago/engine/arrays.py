"""What the engine does with arrays: tensors of PyTorch, or arrays of NumPy where a model runs without PyTorch."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from galago.system.device import Device

Array = Any
"""A torch.Tensor or a numpy.ndarray, whichever the model computes with."""


def concatenate(parts: Sequence[Array]) -> Array:
    """Arrays of one kind, joined along their first axis."""
    if isinstance(parts[0], np.ndarray):
        return np.concatenate(parts)
    import torch

    return torch.cat(list(parts))


def is_finite(x: Array) -> bool:
    """Whether no value is NaN or infinite."""
    if isinstance(x, np.ndarray):
        return bool(np.isfinite(x).all())
    from galago.nn import finite

    return finite.is_finite(x)


def compact(x: Array) -> Array:
    """The array in memory of its own where it is a view of more: a cache counts what it holds."""
    if isinstance(x, np.ndarray):
        return x if x.base is None else x.copy()
    return x.clone() if x.untyped_storage().nbytes() > x.nbytes else x


def on_device(x: Array, device: Device) -> Array:
    """The array where the model computes."""
    return x if isinstance(x, np.ndarray) else x.to(device)


def to_numpy(x: Array) -> NDArray[np.float32]:
    """A copy as float32, in the memory of the processor."""
    return np.array(x if isinstance(x, np.ndarray) else x.float().cpu().numpy(), np.float32)


def to_bytes(x: Array) -> bytes:
    """One array as safetensors."""
    if isinstance(x, np.ndarray):
        from safetensors.numpy import save as save_numpy

        return save_numpy({"embedding": np.ascontiguousarray(x)})
    from safetensors.torch import save

    return save({"embedding": x.detach().cpu().contiguous()})


def from_bytes(data: bytes, tensor: bool) -> Array:
    """The array that `to_bytes` wrote, as a tensor of PyTorch or an array of NumPy."""
    if tensor:
        from safetensors.torch import load

        return load(data)["embedding"]
    from safetensors.numpy import load as load_numpy

    return load_numpy(data)["embedding"]
