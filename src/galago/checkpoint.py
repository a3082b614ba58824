"""Reading checkpoint files tensor by tensor."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from galago.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, "Tensor"]]:
    """Names and tensors of .safetensors and .pt files, from a memory map: only what is used is read.

    Raises CheckpointError for a file that is missing, damaged or of another kind.
    """
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"no such checkpoint file: {file}")
        if file.suffix == ".safetensors":
            yield from _safetensors(file)
        elif file.suffix in (".pt", ".pth", ".bin"):
            yield from _pickled(file)
        else:
            raise CheckpointError(f"{file.name}: not a checkpoint; .safetensors and .pt can be read")


def _safetensors(file: Path) -> Iterator[tuple[str, "Tensor"]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (not a mapping)
                yield name, tensors.get_tensor(name)
    except SafetensorError as error:
        raise CheckpointError(f"{file.name} is damaged or not safetensors: {error}") from error


def _pickled(file: Path) -> Iterator[tuple[str, "Tensor"]]:
    import pickle

    import torch

    try:
        tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        raise CheckpointError(f"{file.name} is damaged or holds more than tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(isinstance(t, torch.Tensor) for t in tensors.values()):
        raise CheckpointError(f"{file.name} is not a state dict of tensors")
    yield from tensors.items()
