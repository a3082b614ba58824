"""The memory that the weights of a loaded model take."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Footprint:
    """Bytes of tensors, each counted once however many names it has."""

    bytes: int
    mapped: int | None
    """those of them that lie in mapped files, which come into memory as they are read; None where that is not known"""


def footprint(weights: Any) -> Footprint:
    """The footprint of a tree of dataclasses, sequences and mappings with tensors at its ends."""
    sizes = {s.data_ptr(): s.nbytes() for tensor in tensors_of(weights) for s in [tensor.untyped_storage()]}
    files = _mapped_files()
    if files is None:
        return Footprint(sum(sizes.values()), None)
    mapped = (size for at, size in sizes.items() if any(begin <= at < end for begin, end in files))
    return Footprint(sum(sizes.values()), sum(mapped))


def tensors_of(tree: Any) -> Iterator[Tensor]:
    """The tensors at the ends of a tree, some more than once."""
    if isinstance(tree, Tensor):
        yield tree
    elif is_dataclass(tree) and not isinstance(tree, type):
        for field in fields(tree):
            yield from tensors_of(getattr(tree, field.name))
    elif isinstance(tree, dict | list | tuple):
        for part in tree.values() if isinstance(tree, dict) else tree:
            yield from tensors_of(part)


def _mapped_files() -> list[tuple[int, int]] | None:
    """Address ranges of files that are mapped into this process; None where the system does not say."""
    try:
        lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    found = []
    for line in lines:
        place, _, _, _, inode, *_ = line.split(maxsplit=5)
        if inode != "0":
            begin, _, end = place.partition("-")
            found.append((int(begin, 16), int(end, 16)))
    return found
