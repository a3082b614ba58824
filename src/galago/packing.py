"""Packed copies of checkpoints: made once, kept, and used from then on."""

import contextlib
import hashlib
import json
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from galago.checkpoint import damage
from galago.engine.metrics import remade
from galago.errors import CheckpointError, InvalidRequest, quoted
from galago.families.family import family
from galago.files import PART, UNFINISHED, locked
from galago.hub import Files, cache_folder, check
from galago.precision import BITS
from galago.precision.packed import VERSION, bits_of

log = logging.getLogger(__name__)
Progress = Callable[[int, int], None]
WORTH_KEEPING = 256 << 20
"""Bytes of a checkpoint from which on a packed copy is kept; smaller ones are packed anew at each load."""
STALE_S = 86400


def packed_copy(files: Files, precision: str, progress: Progress | None = None) -> Files:
    """The files with their weights packed, from the cache where they are there.

    Small checkpoints come back as they are. A copy that is not what was written is made anew; of several that want
    one, in whatever threads or containers, one makes it and the others wait. `progress` is told how many of how many
    tensors are done; without it a terminal shows a bar. Raises CheckpointError, for a packed checkpoint that was
    given and is damaged too.
    """
    stats = [(f.resolve(), f.stat().st_size, f.stat().st_mtime_ns) for f in files.weights]
    if bits_of(files.weights):
        if why := next(filter(None, map(damage, files.weights)), None):
            raise CheckpointError(f"{why}; quantize the original anew")
        return files
    if sum(size for _, size, _ in stats) < WORTH_KEEPING:
        return files
    digest = hashlib.sha256(repr((stats, VERSION, files.revision)).encode()).hexdigest()[:16]
    kept = _kept() / f"{files.name}-{precision}-{digest}.safetensors"
    if not _usable(kept):
        with _written(kept.parent, "; GALAGO_CACHE names another folder"), _alone(kept.parent, files.name):
            if not _usable(kept):  # by now
                _make(files, precision, kept, progress)
    return replace(files, weights=(kept,))


def _make(files: Files, precision: str, kept: Path, progress: Progress | None) -> None:
    if kept.is_file():
        log.warning("%s is made anew: %s", kept, damage(kept))
        remade(files.name, precision)
        kept.unlink()  # who has opened it keeps it; its room may be needed
    _check_space(files, precision, kept.parent)
    check(files)
    with _shown(f"Packing {files.name} to {precision} (once)", progress) as tell:
        family(files.family).pack(files, BITS[precision], kept, tell)


def _usable(kept: Path) -> bool:
    return kept.is_file() and damage(kept) is None


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Be the only packer of this folder, whoever shares it, and delete what killed ones left."""

    def waiting(holder: str) -> None:
        log.warning("%s waits for %s, which packs weights in %s", name, holder, folder)

    with locked(folder / ".lock", waiting) as alone:
        for left in folder.glob(f".*{PART}"):
            # Without locks what nobody has written to for a day is taken for left behind.
            if alone or left.stat().st_mtime < time.time() - STALE_S:
                left.unlink(missing_ok=True)
        yield


@dataclass(frozen=True)
class Copy:
    """A packed copy in the cache."""

    precision: str
    file: Path
    size: int
    """bytes"""


def packed_copies(name: str) -> list[Copy]:
    """The packed copies that are kept of a model, older ones of other files among them."""
    pattern = re.compile(rf"{re.escape(name)}-({'|'.join(BITS)})-[0-9a-f]{{16}}\.safetensors")
    here = sorted(_kept().glob("*.safetensors"))
    return [Copy(m[1], file, file.stat().st_size) for file in here if (m := pattern.fullmatch(file.name))]


def remove_packed(name: str, precision: str | None = None) -> int:
    """Delete the packed copies of a model, or those in one precision; the bytes freed. Raises CheckpointError."""
    freed = 0
    for copy in packed_copies(name):
        if precision in (None, copy.precision):
            with _written(copy.file.parent):
                copy.file.unlink(missing_ok=True)
            freed += copy.size
    return freed


def quantise_model(files: Files, precision: str, folder: Path, progress: Progress | None = None) -> Path:
    """Write a folder with a packed checkpoint, its tokenizer and its config: a model of its own.

    Files of these names are replaced, others stay. Nothing is left of it when it does not come to its end.
    Raises InvalidRequest for a precision that is not packed or a folder that holds the original, and
    CheckpointError.
    """
    if precision not in BITS:
        raise InvalidRequest(f"cannot quantize to {quoted(precision)}; use {' or '.join(BITS)}", "precision")
    if bits := bits_of(files.weights):
        raise CheckpointError(f"{files.name} is quantized to int{bits} already; start from the original")
    folder = folder.absolute()
    if folder.resolve() in {f.absolute().parent.resolve() for f in (*files.weights, files.tokenizer)}:
        raise InvalidRequest(f"{folder} holds the original; choose another folder", "out")
    _check_space(files, precision, folder)
    fresh = [p for p in (folder, *folder.parents) if not p.exists()]
    partial = folder / UNFINISHED
    done = False

    def waiting(holder: str) -> None:
        log.warning("waiting for %s, which writes to %s", holder, folder)

    try:
        with (
            _shown(f"Packing {files.name} to {precision}", progress) as tell,
            _written(folder),
            locked(partial / ".lock", waiting),
        ):
            kind = family(files.family)
            kind.pack(files, BITS[precision], partial / "model.safetensors", tell)
            shutil.copyfile(files.tokenizer, partial / "tokenizer.json")
            about = {**files.config, "revision": kind.outline(files).revision}
            written = {"config.json": about, "preprocessor_config.json": files.preprocessor}
            for name, members in written.items():
                if members:
                    (partial / name).write_text(json.dumps(members, indent=1) + "\n", encoding="utf-8")
            # The weights go first and come last: without them the folder is no model, and never one of two halves.
            (folder / "model.safetensors").unlink(missing_ok=True)
            for name in ("tokenizer.json", *(n for n, members in written.items() if members), "model.safetensors"):
                (partial / name).replace(folder / name)
            done = True
            shutil.rmtree(partial)
    finally:
        if not done:
            shutil.rmtree(partial, ignore_errors=True)
            for made in fresh:  # unless somebody else put something there
                with contextlib.suppress(OSError):
                    made.rmdir()
    return folder / "model.safetensors"


def _kept() -> Path:
    return cache_folder() / "packed"


@contextlib.contextmanager
def _written(folder: Path, hint: str = "") -> Iterator[None]:
    """Say which folder an error of the file system is about, and what helps."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}{hint}") from error


@contextlib.contextmanager
def _shown(title: str, progress: Progress | None) -> Iterator[Progress]:
    """The given progress, or a bar on standard error where that is a terminal; elsewhere a line in the log."""
    from rich.console import Console

    console = Console(stderr=True)
    if progress is not None:
        yield progress
    elif not console.is_terminal:
        log.info("%s", title)
        yield lambda done, total: None
    else:
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

        columns = TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console, redirect_stdout=False) as bar:
            task = bar.add_task(title, total=None)
            yield lambda done, total: bar.update(task, completed=done, total=total)


def _check_space(files: Files, precision: str, folder: Path) -> None:
    here = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(here).free
    # The original may be of any type; two bytes for each weight is the usual one.
    needed = sum(f.stat().st_size for f in files.weights) * BITS[precision] // 14
    if free < needed:
        short = f"about {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free"
        raise CheckpointError(f"{files.name} in {precision} needs {short}")
