"""Packed checkpoints, whose quantised weights are used straight from the memory map.

A packed checkpoint is a .safetensors file: the tensors of the model, but for each linear map `name` its
parts name.panels, .scale, .total, .bias and .multiply (see quantise.py). Its metadata tell the bits.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from galago.checkpoint.tensors import check_finite, check_type, convert, metadata, read_tensors, write_tensors
from galago.errors import CheckpointError
from galago.kernels import PANEL
from galago.precision import BITS, Precision
from galago.precision.linear import Dense, LinearWeight
from galago.precision.quantise import Quantised, panel_bytes, quantise
from galago.precision.quantised import weight_for
from galago.system.progress import Progress

VERSION = "2"
KNOWN_BITS = {str(bits) for bits in BITS.values()}
PARTS = ("panels", "scale", "total", "bias", "multiply")
KINDS = {"panels": torch.uint8, "total": torch.int32}
"""Types of the parts; the others are float32. Kernels read them by address."""
Shape = tuple[int, ...]
Pairs = Iterable[tuple[str, Tensor]]


@dataclass(frozen=True)
class TensorTable:
    """The tensors of a family's checkpoint, by our names."""

    shapes: Mapping[str, Shape]
    """of every tensor"""
    linears: Mapping[str, tuple[int, int]]
    """(outputs, inputs) of each linear map `name`, whose tensors are name.weight and, unless it has none, name.bias"""
    exact: frozenset[str] = frozenset()
    """tensors that stay float32"""
    looked_up: frozenset[str] = frozenset()
    """tables of which only some rows are read: on a CPU they stay in the file, as stored"""


def bits_of(files: Iterable[Path]) -> int | None:
    """Bits of the weights of a packed checkpoint; None for any other. Raises CheckpointError."""
    for file in files:
        about = metadata(file)
        if "galago.packed" in about:
            if about["galago.packed"] != VERSION or about.get("galago.bits") not in KNOWN_BITS:
                raise CheckpointError(f"{file} was packed by another version of galago; pack it anew")
            return int(about["galago.bits"])
    return None


def load(
    pairs: Pairs, table: TensorTable, precision: Precision, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, LinearWeight]]:
    """The tensors of a floating-point checkpoint, and its linear maps in the kind that the precision asks for."""
    tensors: dict[str, Tensor] = {}
    made: dict[str, LinearWeight] = {}
    for name, tensor, bias in _weights_with_biases(pairs, table):
        if bias is None:
            tensors[name] = _to_device(name, tensor, table, precision, device)
        elif precision.bits:
            made[name] = weight_for(_quantise_finite(name, tensor, bias, precision.bits), device, precision.dtype)
        else:
            parts = {"weight": tensor, "bias": bias}
            made[name] = Dense(*(_to_device(f"{name}.{p}", t, table, precision, device) for p, t in parts.items()))
    return tensors, made


def load_packed(
    files: Iterable[Path], table: TensorTable, precision: Precision, device: torch.device
) -> tuple[dict[str, Tensor], dict[str, LinearWeight]]:
    """The same from a packed checkpoint. Raises CheckpointError naming what is missing or does not fit."""
    assert precision.bits
    layout = _layout(table, precision.bits)
    found: dict[str, Tensor] = {}
    for name, tensor in read_tensors(files):
        if name not in layout:
            raise CheckpointError(f"unexpected tensor {name} {tuple(tensor.shape)}: not part of this model")
        if tuple(tensor.shape) != layout[name]:
            given = tuple(tensor.shape)
            raise CheckpointError(f"tensor {name} has shape {given}, the config asks for {layout[name]}")
        wanted = KINDS.get(name.rpartition(".")[2], torch.float32)
        if name.rpartition(".")[0] not in table.linears:
            check_type(name, tensor)
        elif tensor.dtype != wanted:
            raise CheckpointError(f"tensor {name} is of type {tensor.dtype}, which should be {wanted}")
        found[name] = tensor
    if missing := [name for name in layout if name not in found]:
        raise CheckpointError(f"missing tensor {missing[0]}")
    made = {}
    for linear, (n, k) in table.linears.items():
        parts = {part: found.pop(f"{linear}.{part}") for part in PARTS}
        made[linear] = weight_for(Quantised(n=n, k=k, bits=precision.bits, **parts), device, precision.dtype)
    return {name: _to_device(name, t, table, precision, device) for name, t in found.items()}, made


def load_either(
    files: Sequence[Path],
    read: Callable[[], Pairs],
    table: TensorTable,
    precision: Precision,
    device: torch.device,
) -> tuple[dict[str, Tensor], dict[str, LinearWeight]]:
    """The same from files that are packed, or from the floating-point tensors that `read` gives. Raises as both do."""
    if bits_of(files):
        return load_packed(files, table, precision, device)
    return load(read(), table, precision, device)


def pack(
    read: Callable[[], Pairs],
    table: TensorTable,
    bits: int,
    file: Path,
    about: Mapping[str, str],
    progress: Progress | None = None,
) -> None:
    """Write the packed checkpoint of a floating-point one, holding one linear map at a time.

    `read` gives the checkpoint's tensors; it is called twice.
    """
    kept = {name: tensor.dtype for name, tensor in read() if name in table.looked_up}
    layout = {}
    for name, shape in sorted(_layout(table, bits).items(), key=lambda item: not item[0].endswith(".panels")):
        part = name.rpartition(".")[2]
        layout[name] = (kept.get(name) or KINDS.get(part, torch.float32), shape)

    def parts() -> Iterator[tuple[str, Tensor]]:
        for name, tensor, bias in _weights_with_biases(read(), table, progress):
            if bias is None:
                yield name, tensor.to(layout[name][0])
            else:
                made = _quantise_finite(name, tensor, bias, bits)
                yield from ((f"{name}.{p}", getattr(made, p)) for p in PARTS)

    write_tensors(file, layout, parts(), {**about, "galago.packed": VERSION, "galago.bits": str(bits)})


def _weights_with_biases(
    pairs: Pairs, table: TensorTable, progress: Progress | None = None
) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Yield linear maps as (name, weight, bias), zeros where there is no bias, and others as (name, tensor, None).

    Raises CheckpointError where a value is NaN or infinite.
    """
    half: dict[str, Tensor] = {}
    for count, (name, tensor) in enumerate(pairs, 1):
        check_finite(name, tensor)
        linear, _, part = name.rpartition(".")
        if linear not in table.linears:
            yield name, tensor, None
        elif f"{linear}.bias" not in table.shapes:
            yield linear, tensor, tensor.new_zeros(len(tensor))
        elif linear in half:
            both = {part: tensor, "bias" if part == "weight" else "weight": half.pop(linear)}
            yield linear, both["weight"], both["bias"]
        else:
            half[linear] = tensor
        if progress:
            progress(count, len(table.shapes))


def _layout(table: TensorTable, bits: int) -> dict[str, Shape]:
    """The shapes of all tensors of a packed checkpoint."""
    shapes = dict(table.shapes)
    for linear, (n, k) in table.linears.items():
        del shapes[f"{linear}.weight"]
        panels = -(-n // PANEL)
        padded = (panels * PANEL,)
        sizes = {"panels": (panels, panel_bytes(k, bits)), "multiply": (k,)}
        shapes |= {f"{linear}.{part}": sizes.get(part, padded) for part in PARTS}
    return shapes


def _to_device(name: str, tensor: Tensor, table: TensorTable, precision: Precision, device: torch.device) -> Tensor:
    if name in table.looked_up and device.type == "cpu":
        return tensor
    dtype = torch.float32 if name in table.exact else precision.dtype
    return convert(name, tensor, device, dtype).contiguous()


def _quantise_finite(name: str, weight: Tensor, bias: Tensor, bits: int) -> Quantised:
    """Quantise a linear map. Raises CheckpointError where its weights are so large that a scale is not finite."""
    made = quantise(weight, bias, bits)
    for part in ("scale", "multiply"):
        check_finite(f"{name}.{part}", getattr(made, part))
    return made
