"""Files that commands write: checked before the work, and replaced only when the new one is whole."""

import os
import re
import tempfile
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from galago.errors import InvalidRequest
from galago.system.files import UNFINISHED, atomic_write, is_written_in_place

MARK = "drawn by galago"
"""Written into our pictures, so that we may replace them."""
_OURS = re.compile(
    rb"(?:\x89PNG|\xff\xd8|<svg).*drawn by galago"  # drawings, plots
    rb'|\[?\s*\{\s*"engine": "galago"'  # results of galago bench
    rb'|\{\s*"task": "[^"]*",\s*"model": "[^"]*",\s*"weights": "',  # answers and summaries of galago eval
    re.DOTALL,
)
_HEAD = 64 << 10
"""Bytes of a file that are searched for MARK."""


def check_outputs(outputs: Sequence[Path], given: Iterable[str | Path | None] = (), force: bool = False) -> None:
    """Raise InvalidRequest for a file that cannot be written, or that would replace what is not to be lost.

    `given` are the files and folders that the command reads; what is none is left out. A given file is never
    replaced, whatever name or link it is called by, nor another's file in a given folder; any other that Galago did
    not write takes `force`.
    """
    kept = _existing_paths(given)
    places = [_normalized_path(path) for path in outputs]
    for number, path in enumerate(outputs):
        if places[number] in places[:number]:
            raise InvalidRequest(f"{path} is given for two outputs; give each a name of its own")
        if os.path.isdir(path):
            raise _write_error(path, "it is a folder")
        if not os.path.isdir(path.absolute().parent):
            raise _write_error(path, f"no folder {path.absolute().parent}")
        if is_written_in_place(path):
            continue
        if is_given(path, kept):
            raise _write_error(path, "it was given to be read, and is never overwritten; choose another name")
        if not may_replace(path, force):
            raise _write_error(path, "galago did not write the file that is there; choose another name, or --force")
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise _write_error(path, "it is read-only")
        _check_writable(path.resolve().parent, path)


def check_folder(
    folder: Path, given: Iterable[str | Path | None] = (), force: bool = False, forceable: bool = True
) -> None:
    """Raise InvalidRequest for a folder that cannot be made or written in; one that is not empty takes `force`.

    None that is given, or holds what is, is written in.
    """
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))
    if not there.is_dir():
        raise _write_error(folder, f"{there} is not a folder")
    for path in _existing_paths(given):
        if folder.exists() and folder.samefile(path if path.is_dir() else path.parent):
            raise _write_error(folder, "it holds the original; choose another folder")
    if there == folder and not force and any(file.name != UNFINISHED for file in folder.iterdir()):
        hint = ", or write into it with --force" if forceable else ""
        raise InvalidRequest(f"{folder} is not empty; choose another{hint}", "out")
    _check_writable(there, folder)


def is_given(path: Path, given: Iterable[Path]) -> bool:
    """Whether `path` is one of the `given` files, by whatever name, or another's file in a given folder."""
    if not os.path.exists(path):
        return False
    for other in given:
        if other.exists() and path.samefile(other):
            return True
        if other.is_dir() and path.resolve().is_relative_to(other.resolve()) and not is_ours(path):
            return True
    return False


def may_replace(path: Path, force: bool = False) -> bool:
    """Whether `path` may be written: nothing is there, or a file of ours, or `force` is set."""
    return force or not os.path.exists(path) or is_ours(path)


def is_ours(path: Path) -> bool:
    """Whether Galago wrote this file, or it is empty."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return False
    return not head or _OURS.match(head) is not None


@contextmanager
def replace_file(path: Path) -> Iterator[BinaryIO]:
    """Yield a file that replaces `path` once it is whole; an error leaves the old file as it was.

    Raises InvalidRequest where it cannot be written.
    """
    try:
        with atomic_write(path) as part, part.open("wb") as file:
            yield file
    except OSError as error:
        raise _write_error(path, error.strerror or str(error)) from error


def write_text(text: str, path: Path) -> None:
    """Write a text file atomically; raises as replace_file does."""
    with replace_file(path) as file:
        file.write(text.encode())


def _normalized_path(path: Path) -> str:
    """The same text for all names of one file, case-insensitive file systems included."""
    return unicodedata.normalize("NFC", str(path.resolve())).casefold()


def _existing_paths(given: Iterable[str | Path | None]) -> list[Path]:
    return [path for one in given if one and (path := Path(one).expanduser()).exists()]


def _check_writable(folder: Path, path: Path) -> None:
    """Raise InvalidRequest unless a file can be made in the folder, which permissions alone do not tell."""
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise _write_error(path, error.strerror or str(error)) from error


def _write_error(path: Path, why: str) -> InvalidRequest:
    return InvalidRequest(f"cannot write {path}: {why}", "out")
