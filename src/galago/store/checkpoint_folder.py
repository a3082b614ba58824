"""A folder that holds a checkpoint, as people and trainers leave it: which of its files are the weights."""

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from galago.errors import CheckpointError
from galago.store.catalog import foreign

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
USUAL = ("model.safetensors", "weights.safetensors", "pytorch_model.bin")
"""What weights are called; of several the first."""
ONNX_MANIFEST = "galago_onnx.json"
"""In a folder of ONNX graphs: says how they are put together, see backends/onnx/layout.py."""
SHARD = re.compile(r"(?P<stem>.+)-\d+-of-(?P<count>\d+)(?P<suffix>\.[a-z]+)")
"""One of several files that weights are divided into: model-00001-of-00002.safetensors."""
BESIDE = re.compile(
    r"(optimizer|scheduler|scaler|sampler|rng_state|training_args|dl_state_dict|adapter_).*|.*_states|.*lora.*", re.I
)
"""What a trainer leaves beside the weights, by the names without their suffix: not a model."""


def is_onnx(path: str | Path) -> bool:
    """Whether it is a folder of ONNX graphs that `galago export` made."""
    return os.path.isfile(os.path.join(os.path.expanduser(path), ONNX_MANIFEST))


def weights_in(folder: Path) -> tuple[Path, ...]:
    """The weights of a folder, in several files where they are divided. Raises CheckpointError."""
    try:
        there = sorted(folder.iterdir())
        found = [f for f in there if f.suffix in SUFFIXES and f.is_file()]
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror or error}") from error
    return weights_among(folder, found, [f.name for f in there])


def weights_among(folder: Path, found: Sequence[Path], names: Iterable[str]) -> tuple[Path, ...]:
    """The weights among files of a folder or repository, of which it has these names too. Raises CheckpointError."""
    sets: dict[tuple[str, str | None], list[Path]] = {}
    for file in found:
        if not BESIDE.fullmatch(file.stem):
            sets.setdefault(_set_of(file), []).append(file)
    for name in USUAL:
        # What was saved whole goes before what was saved in parts, and of these what is complete.
        known = [key for key in sets if key[0] == name]
        known.sort(key=lambda key: (key[1] is not None, bool(_lacking(sets[key]))))
        if known:
            return _complete(sets[known[0]])
    if len(sets) == 1:
        return _complete(*sets.values())
    if sets:
        first = min(file.name for file, *_ in sets.values())
        raise CheckpointError(f"{folder}: more than one checkpoint; name the file to load, as {first}")
    raise CheckpointError(f"{folder}: {_without_weights(found, names)}")


def weights_of(file: Path) -> tuple[Path, ...]:
    """The weights that a file is, or is a part of: all parts. Raises CheckpointError."""
    if file.suffix not in SUFFIXES:
        raise CheckpointError(foreign(file.name) or f"{file} cannot be read; {', '.join(SUFFIXES)} can")
    if SHARD.fullmatch(file.name) is None:
        return (file,)
    return _complete(sorted(f for f in file.parent.iterdir() if _set_of(f) == _set_of(file)))


def is_part(file: Path) -> bool:
    """Whether it is one of several files that weights are divided into."""
    return SHARD.fullmatch(file.name) is not None


def _set_of(file: Path) -> tuple[str, str | None]:
    """The name that the weights would have in one file, and how many files there are."""
    part = SHARD.fullmatch(file.name)
    return (part["stem"] + part["suffix"], part["count"]) if part else (file.name, None)


def _lacking(files: list[Path]) -> list[str]:
    """The names of the parts that are not there."""
    part = SHARD.fullmatch(files[0].name)
    if part is None:
        return []
    have = {f.name for f in files}
    count, digits = int(part["count"]), len(part["count"])
    names = (
        f"{part['stem']}-{i:0{digits}d}-of-{part['count']}{part['suffix']}" for i in range(1, min(count, 10_000) + 1)
    )
    return [name for name in names if name not in have]


def _complete(files: list[Path]) -> tuple[Path, ...]:
    if lacking := _lacking(files):
        there = f"{len(files)} of {len(files) + len(lacking)} parts of the model are there"
        raise CheckpointError(f"{files[0].parent}: {there}; {lacking[0]} is missing")
    return tuple(files)


def _without_weights(found: Iterable[Path], names: Iterable[str]) -> str:
    """What is wrong with a folder without weights, and what may be meant."""
    lacks = f"no model.safetensors, nor any other {', '.join(SUFFIXES)} file"
    if adapter := next((f.name for f in found if f.stem.startswith("adapter_")), None):
        return f"{adapter} is an adapter, which changes a model; merge it into its model and save that"
    if saved := sorted(
        {name.partition("/")[0] for name in names if re.match(r"checkpoint-[^/]*(/|$)", name)}, key=_step
    ):
        return f"{lacks}; a trainer saved {saved[-1]} in it: name that folder"
    if gguf := next((name for name in names if name.endswith(".gguf")), None):
        return f"{gguf} is for llama.cpp; take the checkpoint that it was made of, in .safetensors"
    return lacks


def _step(folder: str) -> tuple[int, str]:
    step = folder.rpartition("-")[2]
    return (int(step) if step.isdecimal() else -1, folder)
