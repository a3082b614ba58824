"""The packed copies that are kept: what they are of, listing and removing them, and what killed packers left.

They are made in packing.py. This imports no PyTorch.
"""

import contextlib
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from galago.checkpoint.tensors import metadata
from galago.choices import BITS
from galago.errors import CheckpointError
from galago.families import ModelFiles
from galago.store.catalog import lookup
from galago.store.hub import cache_folder, repositories
from galago.system.files import PART, try_lock_file

SOURCE = "galago.source"
"""What a copy of a folder's weights says of it in its metadata: where the folder, or the weights file, was."""
STALE_S = 86400
_NAME = re.compile(rf"(.+)-({'|'.join(BITS)})-[0-9a-f]{{16}}\.safetensors")


@dataclass(frozen=True)
class Copy:
    """A packed copy in the cache, of the model of a name."""

    model: str
    precision: str
    file: Path
    size: int
    """bytes"""

    @property
    def source(self) -> Path | None:
        """The folder or file that it was made of; None for a model of the catalogue, and where that is not known."""
        with contextlib.suppress(CheckpointError):
            if said := metadata(self.file).get(SOURCE):
                return Path(said)
        return None


def described(files: ModelFiles, revision: str) -> dict[str, str]:
    """What a packed checkpoint says of itself in its metadata."""
    source = {SOURCE: str(files.source)} if files.source else {}
    return {"format": "pt", "galago.model": files.name, "galago.revision": revision, **source}


def file_name(model: str) -> str:
    """How the names of a model's copies begin: a repository's slash cannot be in one."""
    return model.replace("/", "--")


def packed_folder() -> Path:
    """Where packed copies lie."""
    return cache_folder() / "packed"


def packed_copies(name: str | None = None) -> list[Copy]:
    """The packed copies that are kept, or those of a model, older ones of other files among them."""
    found = []
    for file in sorted(packed_folder().glob("*.safetensors")):
        match = _NAME.fullmatch(file.name)
        if match and (name is None or file_name(name) == match[1]):
            with contextlib.suppress(FileNotFoundError):  # another process has just removed it
                found.append(Copy(match[1], match[2], file, file.stat().st_size))
    return found


def copies_of(path: Path) -> list[Copy]:
    """Those of what is in a folder, or of a weights file, whether it is still there or not."""
    try:
        real = path.resolve()
    except (OSError, ValueError):  # a name that no file can have
        return []
    return [copy for copy in packed_copies() if copy.source and real in (copy.source, copy.source.parent)]


def copies_without_model() -> dict[str, list[Copy]]:
    """Those of folders and files that are no longer there, by where they were, or by the name if that is not known."""
    found: dict[str, list[Copy]] = {}
    pulled = {file_name(name) for name in repositories()}
    for copy in packed_copies():
        source = copy.source
        if source is None and lookup(copy.model) is None and copy.model not in pulled:
            found.setdefault(copy.model, []).append(copy)
        elif source is not None and not source.exists():
            found.setdefault(str(source), []).append(copy)
    return found


def remove_copies(copies: list[Copy]) -> int:
    """Delete packed copies; the bytes freed. Raises CheckpointError."""
    for copy in copies:
        with explained(copy.file.parent):
            copy.file.unlink(missing_ok=True)
    return sum(copy.size for copy in copies)


def remove_packed(name: str, precision: str | None = None) -> int:
    """Delete the packed copies of a model of this name, or those in one precision; the bytes freed. A folder's of the
    same name stay, where they say that they are one's. Raises CheckpointError."""
    found = [copy for copy in packed_copies(name) if precision in (None, copy.precision)]
    own = [copy for copy in found if lookup(name) is None or copy.source is None]
    return remove_copies(own)


def discard_halves(folder: Path) -> None:
    """Delete what killed packers left in a folder of copies, unless somebody packs there now."""
    with contextlib.suppress(OSError):  # such as a folder that cannot be written
        if any(_halves(folder)):
            with try_lock_file(folder / ".lock") as held:
                delete_halves(folder, alone=held)


def delete_halves(folder: Path, *, alone: bool) -> None:
    """Delete them. Unless `alone`, what nobody has written to for a day is taken for left behind."""
    for left in _halves(folder):
        if alone or left.stat().st_mtime < time.time() - STALE_S:
            left.unlink(missing_ok=True)


def _halves(folder: Path) -> Iterator[Path]:
    return folder.glob(f".*{PART}")


@contextlib.contextmanager
def explained(folder: Path, hint: str = "") -> Iterator[None]:
    """Say which folder an error of the file system is about, and what helps."""
    try:
        yield
    except OSError as error:
        raise CheckpointError(f"cannot write {folder}: {error.strerror or error}{hint}") from error
