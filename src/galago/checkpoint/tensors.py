"""Reading checkpoint files tensor by tensor, and writing them in the same way."""

import hashlib
import json
import mmap
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from galago.errors import CheckpointError, shortened
from galago.system.files import atomic_write

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
FLOATS = ("float64", "float32", "float16", "bfloat16")
"""Types that weights have as they are. Whole numbers stand for others, which only a scheme tells."""
WRAPPERS = ("base_model.model.", "_orig_mod.", "_fsdp_wrapped_module.", "_checkpoint_wrapped_module.")
"""Parts of names that come of how a model was wrapped when it was saved: compiled, or trained in parts."""
PAGE, AT_ONCE = 64 << 10, 64 << 20
"""Bytes that are summed to one number, and that are in memory at a time for it."""


class Damaged(CheckpointError):
    """A file is not what was written, or not yet all of it; `helps` says what does, where that is known here."""

    def __init__(self, message: str, helps: str = "") -> None:
        super().__init__(f"{message}; {helps}" if helps else message)
        self.helps = helps


def read_tensors(files: Iterable[Path]) -> Iterator[tuple[str, "Tensor"]]:
    """Names and tensors of .safetensors and .pt files, from a memory map: only what is used is read.

    What was read of a .safetensors leaves memory when the next tensor is asked for; a tensor that is used
    later is read again then. Raises CheckpointError for a file that is missing, damaged or of another kind.
    """
    for file in files:
        if not file.is_file():
            raise CheckpointError(f"no such checkpoint file: {file}")
        if file.suffix == ".safetensors":
            yield from _read_safetensors(file)
        elif file.suffix in (".pt", ".pth", ".bin"):
            yield from _read_pickle(file)
        else:
            raise CheckpointError(f"{file}: not a checkpoint; .safetensors and .pt can be read")


def plain_name(name: str) -> str:
    """A tensor's name without what wrappers of a trainer put into it."""
    name = name.removeprefix("module.")
    for wrapper in WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def unreadable_file(file: Path, why: str) -> Damaged:
    """The error for a file that cannot be read: what it is, where its first bytes show that, or else `why`."""
    try:
        with file.open("rb") as opened:
            start = opened.read(512)
    except OSError as error:
        return Damaged(f"{file} cannot be read: {error.strerror or error}")
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    if text.startswith(b"version https://git-lfs."):
        helps = "run `git lfs pull` where it was cloned, or download the file"
        return Damaged(f"{file} is a git-LFS pointer, which stands for the file", helps)
    if text.startswith((b"<!doctype html", b"<html")):
        return Damaged(f"{file} is an HTML page: what it came from answered with a page in place of the file")
    if text.startswith((b"<?xml", b"<error")):
        return Damaged(f"{file} is an XML text: what it came from answered with it in place of the file")
    if start.startswith(b"GGUF"):
        return Damaged(f"{file} is a GGUF file", "take the checkpoint that it was made of, in .safetensors")
    if not start.strip(b"\0"):
        return Damaged(f"{file} is empty or holds zeros")
    return Damaged(f"{file} {why}")


def check_tensors(
    pairs: Iterable[tuple[str, "Tensor"]], expected: Mapping[str, tuple[int, ...]]
) -> Iterator[tuple[str, "Tensor"]]:
    """Pass tensors through if they have these names and shapes, each once.

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
        check_type(name, tensor)
        seen.add(name)
        yield name, tensor
    missing = [name for name in expected if name not in seen]
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise CheckpointError(f"missing tensor {missing[0]}{more}")


def check_type(name: str, tensor: "Tensor") -> None:
    """Raise CheckpointError, naming the tensor, unless it is of a type that weights have."""
    kind = str(tensor.dtype).removeprefix("torch.")
    if kind not in FLOATS:
        scheme = "other numbers stand for weights only where a file says how"
        raise CheckpointError(f"tensor {name} is of type {kind}; weights are {', '.join(FLOATS)}: {scheme}")


def check_finite(name: str, tensor: "Tensor") -> None:
    """Raise CheckpointError, naming the tensor, where a value of it is NaN or infinite."""
    from galago.nn.finite import count_not_finite, is_finite

    if not is_finite(tensor):
        raise Damaged(f"tensor {name}: {count_not_finite(tensor)} of {tensor.numel()} values are NaN or infinite")


def convert(name: str, tensor: "Tensor", device: "torch.device", dtype: "torch.dtype") -> "Tensor":
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
    """The metadata of a .safetensors; empty for other files. Raises CheckpointError."""
    if file.suffix != ".safetensors" or not file.is_file():
        return {}
    with _open_safetensors(file) as tensors:
        return tensors.metadata() or {}


def tensor_names(files: Iterable[Path]) -> frozenset[str]:
    """Of all tensors in .safetensors files that can be read; of others none."""
    names: set[str] = set()
    for file in files:
        with suppress(CheckpointError):
            if file.suffix == ".safetensors":
                with _open_safetensors(file) as tensors:
                    names.update(tensors.keys())
    return frozenset(names)


@contextmanager
def _open_safetensors(file: Path) -> Iterator[Any]:
    """Open with the library, which checks header, sizes and offsets; as for NumPy, so as not to import PyTorch."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            yield tensors
    except (SafetensorError, OSError) as error:
        raise unreadable_file(file, f"is damaged or not safetensors: {error}") from error


def _read_safetensors(file: Path) -> Iterator[tuple[str, "Tensor"]]:
    import torch

    metadata(file)
    with file.open("rb") as opened:
        # Copy on write: torch has no read-only tensors.
        data = mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_COPY)
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    before = 0
    for name, entry in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
        if entry["dtype"] not in TYPES:
            raise CheckpointError(f"{file}: tensor {name} is of type {entry['dtype']}, which is not supported")
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


def _read_pickle(file: Path) -> Iterator[tuple[str, "Tensor"]]:
    import torch

    try:
        # Files of before 2020 are no zip archives, and cannot be mapped.
        tensors = torch.load(file, map_location="cpu", mmap=zipfile.is_zipfile(file), weights_only=True)
    except (MemoryError, KeyboardInterrupt):
        raise
    except Exception as error:  # damage shows in errors of every type
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise unreadable_file(file, f"is damaged or holds more than tensors: {shortened(why, 200)}") from error
    if not isinstance(tensors, dict):
        raise CheckpointError(f"{file} is not a state dict of tensors but of type {type(tensors).__name__}")
    for name, tensor in tensors.items():
        if not isinstance(name, str):
            raise CheckpointError(f"{file} is not a state dict: a key is of type {type(name).__name__}, not a name")
        if not isinstance(tensor, torch.Tensor):
            what = f"{shortened(name)} is of type {type(tensor).__name__}"
            raise CheckpointError(f"{file} is not a state dict of tensors: {what}; save the state dict alone")
        if tensor.layout != torch.strided or tensor.is_quantized or tensor.is_meta:
            raise CheckpointError(f"{file}: tensor {shortened(name)} is sparse, quantized or without values")
    for name, tensor in tensors.items():
        yield name, tensor.detach()  # a parameter is a tensor that remembers what is done with it


Layout = Mapping[str, tuple["torch.dtype", tuple[int, ...]]]
"""Type and shape of each tensor of a file, in the order of its data."""


def write_tensors(
    file: Path, layout: Layout, tensors: Iterable[tuple[str, "Tensor"]], about: Mapping[str, str] | None = None
) -> None:
    """Write a .safetensors as the tensors come, in any order, holding one at a time.

    The file appears when all are there, and never half-written; `find_damage` tells whether it is still as it was
    written. Raises CheckpointError where tensors and layout do not fit each other, and OSError.
    """
    stored = {torch_name: name for name, torch_name in TYPES.items()}
    header: dict[str, Any] = {"__metadata__": {**(about or {}), CHECKSUM: "0" * 64}}
    offsets, size = {}, 0
    for name, (dtype, shape) in layout.items():
        begin, size = size, size + dtype.itemsize * _product(shape)
        offsets[name] = begin
        kind = stored[str(dtype).removeprefix("torch.")]
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [begin, size]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    file.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(file) as partial:
        with partial.open("r+b") as out:
            out.truncate(8 + len(text) + size)
            out.write(len(text).to_bytes(8, "little") + text)
            for name, tensor in tensors:
                if name not in offsets or (tensor.dtype, tuple(tensor.shape)) != layout[name]:
                    raise CheckpointError(f"{file.name}: tensor {name} is not what was announced")
                out.seek(8 + len(text) + offsets.pop(name))
                out.write(_bytes_of(tensor))
        if offsets:
            raise CheckpointError(f"{file.name}: tensor {next(iter(offsets))} did not come")
        at, _, found = _checksum(partial)
        with partial.open("r+b") as out:
            out.seek(at)
            out.write(found)


def find_damage(file: Path) -> str | None:
    """How a file of write_tensors is damaged: cut off, holes, a bit that turned. None if it is not.

    Reads all of it, from a memory map, as fast as the disk or the memory is, and keeps nothing of it.
    """
    try:
        metadata(file)
    except CheckpointError as error:
        return str(error)
    at, stored_sum, found = _checksum(file)
    if not at:
        return f"{file.name} has no checksum"
    return None if stored_sum == found else f"{file.name} is damaged: its checksum differs"


def _checksum(file: Path) -> tuple[int, bytes, bytes]:
    """Offset of the checksum in a well-formed .safetensors (0 if there is none), the stored one, and the true one.

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
    stored_sum = data[at : at + 64]
    data[at : at + 64] = b"0" * 64  # in our own copy of this page
    digest = hashlib.sha256()
    whole = len(data) // PAGE * PAGE
    for begin in range(0, whole, AT_ONCE):
        size = min(AT_ONCE, whole - begin)
        digest.update(np.frombuffer(data, np.int64, size // 8, begin).reshape(-1, PAGE // 8).sum(1).tobytes())
        if hasattr(mmap, "MADV_DONTNEED"):
            data.madvise(mmap.MADV_DONTNEED, begin, size)
    digest.update(data[whole:])
    return at, stored_sum, digest.hexdigest().encode()


def _product(shape: Sequence[int]) -> int:
    total = 1
    for side in shape:
        total *= side
    return total


def _bytes_of(tensor: "Tensor") -> memoryview:
    import torch

    return memoryview(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())  # type: ignore[arg-type]
