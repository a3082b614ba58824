"""Packed copies of checkpoints: made once, kept, and used from then on."""

import contextlib
import errno
import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from galago.checkpoint.packed import VERSION, bits_of, pack
from galago.checkpoint.tensors import Damaged, find_damage
from galago.engine.metrics import count_remade
from galago.errors import CheckpointError, InvalidRequest, quoted
from galago.families import ModelFiles
from galago.families.family import family
from galago.precision import BITS
from galago.store.hub import blaming, check
from galago.store.packed_cache import delete_halves, described, discard_halves, explained, file_name, packed_folder
from galago.system.files import UNFINISHED, lock_file
from galago.system.progress import Progress, progress_bar

log = logging.getLogger(__name__)
WORTH_KEEPING = 256 << 20
"""Bytes of a checkpoint from which on a packed copy is kept; smaller ones are packed anew at each load."""
CANNOT = {errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ENOENT}
"""What the system says of a folder that is not there to be written to; a full disk is another matter."""


Pack = Callable[[ModelFiles, str, Path, Progress], object]
"""Writes the weights of a model, packed in a precision, into a file."""


def packed_copy(
    files: ModelFiles, precision: str, progress: Progress | None = None, pack: Pack | None = None
) -> ModelFiles:
    """The files with their weights packed, from the cache where they are there; `pack` is that of our families.

    Small checkpoints come back as they are. A copy that is not what was written is made anew; of several that want
    one, in whatever threads or containers, one makes it and the others wait. `progress` is told how many of how many
    tensors are done; without it a terminal shows a bar. Raises CheckpointError, for a packed checkpoint that was
    given and is damaged too.
    """
    stats = [(f.resolve(), f.stat().st_size, f.stat().st_mtime_ns) for f in files.weights]
    if bits_of(files.weights):
        if why := next(filter(None, map(find_damage, files.weights)), None):
            raise Damaged(why, "quantize the original anew")
        return files
    if sum(size for _, size, _ in stats) < WORTH_KEEPING:
        return files
    digest = hashlib.sha256(repr((stats, VERSION, files.revision)).encode()).hexdigest()[:16]
    kept = packed_folder() / f"{file_name(files.name)}-{precision}-{digest}.safetensors"
    discard_halves(kept.parent)
    if not _usable(kept):
        with explained(kept.parent, "; GALAGO_CACHE names another folder"):
            if why := _why_not(kept.parent):
                note = f"no packed copy can be kept in {kept.parent} ({why}): it is packed in memory, at each load"
                return replace(files, notes=(*files.notes, f"{note}; GALAGO_CACHE names another folder"))
            with _alone(kept.parent, files.name):
                if not _usable(kept):  # by now
                    _make(files, precision, kept, progress, pack or _pack)
    return replace(files, weights=(kept,))


def _why_not(folder: Path) -> str | None:
    """Why nothing can be kept in a folder, which is made if need be; None where it can be written. Raises OSError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return None
    except OSError as error:
        if error.errno not in CANNOT:
            raise
        return error.strerror or str(error)


def _make(files: ModelFiles, precision: str, kept: Path, progress: Progress | None, pack: Pack) -> None:
    if kept.is_file():
        log.warning("%s is made anew: %s", kept, find_damage(kept))
        count_remade(files.name, precision)
        kept.unlink()  # who has opened it keeps it; its room may be needed
    _check_space(files, precision, kept.parent)
    check(files)
    with _bar(f"Packing {files.name} to {precision} (once)", progress) as tell:
        pack(files, precision, kept, tell)


def _pack(files: ModelFiles, precision: str, file: Path, tell: Progress) -> str:
    """Write a checkpoint's packed form, see precision/packed.py; its revision. Raises CheckpointError."""
    outline = family(files.family).outline(files)
    pack(outline.read, outline.table, BITS[precision], file, described(files, outline.revision), tell)
    return outline.revision


def _usable(kept: Path) -> bool:
    return kept.is_file() and find_damage(kept) is None


@contextlib.contextmanager
def _alone(folder: Path, name: str) -> Iterator[None]:
    """Be the only packer of this folder, whoever shares it, and delete what killed ones left."""

    def waiting(holder: str) -> None:
        log.warning("%s waits for %s, which packs weights in %s", name, holder, folder)

    with lock_file(folder / ".lock", waiting) as alone:
        delete_halves(folder, alone=alone)
        yield


def quantise_model(files: ModelFiles, precision: str, folder: Path, progress: Progress | None = None) -> Path:
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
            blaming(files.name, files.source),
            _bar(f"Packing {files.name} to {precision}", progress) as tell,
            explained(folder),
            lock_file(partial / ".lock", waiting),
        ):
            # A model of its own says nothing of the folders of whoever made it.
            revision = _pack(replace(files, source=None), precision, partial / "model.safetensors", tell)
            shutil.copyfile(files.tokenizer, partial / "tokenizer.json")
            about = {**files.config, "revision": revision}
            written = {
                "config.json": about,
                "preprocessor_config.json": files.preprocessor,
                "video_preprocessor_config.json": files.video,
            }
            for name, members in written.items():
                if members:
                    (partial / name).write_text(json.dumps(dict(members), indent=1) + "\n", encoding="utf-8")
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


def _bar(title: str, progress: Progress | None) -> contextlib.AbstractContextManager[Progress]:
    """The given progress, or a bar on standard error where that is a terminal; elsewhere a line in the log."""
    from rich.console import Console

    if progress is not None:
        return contextlib.nullcontext(progress)
    if not Console(stderr=True).is_terminal:
        log.info("%s", title)
    return progress_bar(title, stays=True)


def _check_space(files: ModelFiles, precision: str, folder: Path) -> None:
    here = next(p for p in (folder, *folder.absolute().parents) if p.exists())
    free = shutil.disk_usage(here).free
    # The original may be of any type; two bytes for each weight is the usual one.
    needed = sum(f.stat().st_size for f in files.weights) * BITS[precision] // 14
    if free < needed:
        short = f"about {needed / 1e9:.1f} GB in {folder}, and {free / 1e9:.1f} GB are free"
        raise CheckpointError(f"{precision} needs {short}")
