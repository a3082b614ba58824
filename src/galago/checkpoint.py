"""Reading checkpoint files tensor by tensor, and writing them in the same way."""

import hashlib
import json
import mmap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galago.errors import CheckpointError
from galago.files import written_whole

if TYPE_CHECKING:
    import torch
    from torch import Tensor

TYPES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}
"""safetensors' names of types, and torch's."""
ALIGNMENT = 64
"""Bytes that our own files align their data to: a cache line."""
CHECKSUM = "galago.checksum"
"""What our own files say in their metadata of all their other bytes."""
PAGE, AT_ONCE = 64 << 10, 64 << 20
"""Bytes that are summed to one number, and that are in memory at a time for it."""


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, "Tensor"]]:
    """Names and tensors of .safetensors and .pt files, from a memory map: only what is used is read.

    What was read of a .safetensors leaves memory when the next tensor is asked for; a tensor that is used
    later is read again then. Raises CheckpointError for a file that is missing, damaged or of another kind.
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


def checked(
    pairs: Iterable[tuple[str, "Tensor"]], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, "Tensor"]]:
    """The same tensors, if they are those of these names and shapes, each once.

    Raises CheckpointError naming the first missing, unexpected, doubled or wrong-shaped tensor.
    """
    seen = set()
    for name, tensor in pairs:
        if name not in expected:
            raise CheckpointError(f"unexpected tensor {name} {tuple(tensor.shape)}: not part of this model")
        if tuple(tensor.shape) != expected[name]:
            given = tuple(tensor.shape)
            raise CheckpointError(f"tensor {name} has shape {given}, the config asks for {expected[name]}")
        if name in seen:
            raise CheckpointError(f"tensor {name} occurs twice")
        seen.add(name)
        yield name, tensor
    missing = [name for name in expected if name not in seen]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"missing tensor {missing[0]}{more}")


def check_finite(name: str, tensor: "Tensor", again: str = " (galago models remove, then galago models pull)") -> None:
    """Raise CheckpointError, naming the tensor, where a value of it is NaN or infinite; `again` says how to get it."""
    from galago.nn.finite import count_not_finite, is_finite

    if not is_finite(tensor):
        wrong = f"{count_not_finite(tensor)} of {tensor.numel()} values are NaN or infinite"
        raise CheckpointError(f"tensor {name}: {wrong}; the file is damaged: download it again{again}")


def converted(name: str, tensor: "Tensor", device: "torch.device", dtype: "torch.dtype") -> "Tensor":
    """The tensor on a device, in a floating-point type. Raises CheckpointError where the type cannot hold it."""
    import torch

    from galago.nn.finite import count_not_finite, is_finite

    made = tensor.to(device=device, dtype=dtype)
    narrower = tensor.is_floating_point() and torch.finfo(dtype).max < torch.finfo(tensor.dtype).max
    if narrower and not is_finite(made):
        many, kind = count_not_finite(made), str(dtype).removeprefix("torch.")
        wider = "bfloat16 or float32" if dtype == torch.float16 else "float32"
        raise CheckpointError(f"tensor {name}: {many} of {made.numel()} values are too large for {kind}; use {wider}")
    return made


def metadata(file: Path) -> Mapping[str, str]:
    """The texts that a .safetensors says about itself; empty for other files. Raises CheckpointError."""
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return tensors.metadata() or {}
    except SafetensorError as error:
        raise CheckpointError(f"{file.name} is damaged or not safetensors: {error}") from error


def count_weights(file: Path) -> int:
    """Numbers that a checkpoint file holds: exact for a .safetensors, else as many as two bytes each allow.

    Raises CheckpointError.
    """
    if file.suffix != ".safetensors":
        return file.stat().st_size // 2
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as tensors:
            return sum(_product(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{file.name} is damaged or not safetensors: {error}") from error


def _safetensors(file: Path) -> Iterator[tuple[str, "Tensor"]]:
    import torch

    metadata(file)  # the library checks the header, sizes and offsets included
    with file.open("rb") as opened:
        # Copy on write: torch has no read-only tensors.
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    before = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in TYPES:
            raise CheckpointError(f"{file.name}: tensor {name} is of type {entry['dtype']}, which is not supported")
        dtype = getattr(torch, TYPES[entry["dtype"]])
        begin, end = (8 + length + offset for offset in entry["data_offsets"])
        if begin == end:
            yield name, torch.empty(entry["shape"], dtype=dtype, device="cpu")
            continue
        flat = torch.frombuffer(data, dtype=dtype, count=(end - begin) // dtype.itemsize, offset=begin)
        yield name, flat.view(entry["shape"])
        if hasattr(mmap, "MADV_DONTNEED"):
            # The one before too: a weight is read only when its bias, which follows it, is here.
            first = before // mmap.PAGESIZE * mmap.PAGESIZE
            data.madvise(mmap.MADV_DONTNEED, first, end - first)
        before = begin


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


Layout = Mapping[str, tuple["torch.dtype", tuple[int, ...]]]
"""Type and shape of each tensor of a file, in the order of its data."""


def write_tensors(
    file: Path, layout: Layout, tensors: Iterable[tuple[str, "Tensor"]], about: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors as the tensors come, in any order, holding one at a time.

    The file appears when all are there, and never half-written; `damage` tells whether it is still as it was
    written. Raises CheckpointError where tensors and layout do not fit each other, and OSError.
    """
    stored = {torch_name: name for name, torch_name in TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {**(about or {}), CHECKSUM: "0" * 64}}
    place, size = {}, 0
    for name, (dtype, shape) in layout.items():
        begin, size = size, size + dtype.itemsize * _product(shape)
        place[name] = begin
        kind = stored[str(dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.parent.mkdir(parents=True, exist_ok=True)
    with written_whole(file) as partial:
        with partial.open("r+b") as out:
            out.truncate(8 + len(text) + size)
            out.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors:
                if name not in place or (tensor.dtype, tuple(tensor.shape)) != layout[name]:
                    raise CheckpointError(f"{file.name}: tensor {name} is not what was announced")
                out.seek(8 + len(text) + place.pop(name))
                out.write(_bytes_of(tensor))
        if place:
            raise CheckpointError(f"{file.name}: tensor {next(iter(place))} did not come")
        at, _, found = _checksum(partial)
        with partial.open("r+b") as out:
            out.seek(at)
            out.write(found)


def damage(file: Path) -> str | None:
    """How a file of write_tensors is not what was written: cut off, holes, a bit that turned. None if all is well.

    Reads all of it, from a memory map, as fast as the disk or the memory is, and keeps nothing of it.
    """
    try:
        metadata(file)
    except CheckpointError as error:
        return str(error)
    at, told, found = _checksum(file)
    if not at:
        return f"{file.name} has no checksum"
    return None if told == found else f"{file.name} is damaged: its checksum differs"


def _checksum(file: Path) -> tuple[int, bytes, bytes]:
    """Where a well-formed .safetensors tells its checksum (0 if it does not), what it tells, and what it should be.

    Of every page the sum of its 64-bit numbers, and SHA-256 of all those. So whatever happens to eight bytes is
    found, and so are zeros in place of numbers; hashing every byte would take ten times as long.
    """
    import numpy as np

    with file.open("rb") as opened:
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    key = f'"{CHECKSUM}":"'.encode()
    at = data.find(key, 8, 8 + int.from_bytes(data[:8], "little")) + len(key)
    if at < len(key):
        return 0, b"", b""
    told = data[at : at + 64]
    data[at : at + 64] = b"0" * 64  # in our own copy of this page
    digest = hashlib.sha256()
    whole = len(data) // PAGE * PAGE
    for begin in range(0, whole, AT_ONCE):
        size = min(AT_ONCE, whole - begin)
        digest.update(np.frombuffer(data, np.int64, size // 8, begin).reshape(-1, PAGE // 8).sum(1).tobytes())
        if hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED, begin, size)
    digest.update(data[whole:])
    return at, told, digest.hexdigest().encode()


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _bytes_of(tensor: "Tensor") -> memoryview:
    import torch

    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
