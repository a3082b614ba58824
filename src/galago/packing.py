"""Packed copies of checkpoints: made once, kept, and used from then on."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from galago.errors import CheckpointError, InvalidRequest
from galago.families.moondream.model import pack_moondream
from galago.hub import Files
from galago.precision import BITS
from galago.precision.packed import VERSION, bits_of

Progress = Callable[[int, int], None]
WORTH_KEEPING = 256 << 20
"""Bytes of a checkpoint from which on a packed copy is kept; smaller ones are packed anew at each load."""


def cache_folder() -> Path:
    """Where galago keeps what it makes: GALAGO_CACHE, or galago in the user's cache folder."""
    chosen = os.environ.get("GALAGO_CACHE")
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(chosen or f"{base}/galago").expanduser()


def packed_copy(files: Files, precision: str, progress: Progress | None = None) -> Files:
    """The files with their weights packed, from the cache where they are there.

    Small checkpoints come back as they are. `progress` is told how many of how many tensors are done.
    """
    stats = [(f.resolve(), f.stat().st_size, f.stat().st_mtime_ns) for f in files.weights]
    if sum(size for _, size, _ in stats) < WORTH_KEEPING or bits_of(files.weights):
        return files
    digest = hashlib.sha256(repr((stats, VERSION, files.revision)).encode()).hexdigest()[:16]
    kept = cache_folder() / "packed" / f"{files.name}-{precision}-{digest}.safetensors"
    if not kept.is_file():
        _check_space(files, precision, kept.parent)
        pack_moondream(files, BITS[precision], kept, progress)
    return replace(files, weights=(kept,))


def quantise_model(files: Files, precision: str, folder: Path, progress: Progress | None = None) -> Path:
    """Write a folder with a packed checkpoint, its tokenizer and its config: a model of its own.

    Raises InvalidRequest for a precision that is not packed, and CheckpointError.
    """
    if precision not in BITS:
        raise InvalidRequest(f"cannot quantize to {precision!r}; use {' or '.join(BITS)}", "precision")
    if bits := bits_of(files.weights):
        raise CheckpointError(f"{files.name} is quantized to int{bits} already; start from the original")
    _check_space(files, precision, folder)
    config = pack_moondream(files, BITS[precision], folder / "model.safetensors", progress)
    shutil.copy(files.tokenizer, folder / "tokenizer.json")
    about = {**files.config, "revision": config.revision.name}
    (folder / "config.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    return folder / "model.safetensors"


def _check_space(files: Files, precision: str, folder: Path) -> None:
    here = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(here).free
    # The original may be of any type; two bytes for each weight is the usual one.
    needed = sum(f.stat().st_size for f in files.weights) * BITS[precision] // 14
    if free < needed:
        short = f"about {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free"
        raise CheckpointError(f"{files.name} in {precision} needs {short}")
