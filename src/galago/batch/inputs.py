"""What `galago batch` reads: folders, files, lists and tar files, each as rows in an order that does not change."""

import fnmatch
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import BinaryIO

from galago.batch import lists, tars
from galago.batch.remote import RemotePath, is_remote, read_remote_folder
from galago.batch.rows import SUFFIXES, Rereadable, Row, Rows
from galago.errors import InvalidImage, InvalidRequest
from galago.system.files import json_path


@dataclass(frozen=True)
class InputOptions:
    """How the inputs are read."""

    column: str | None = None
    """of a list, the one with paths, URLs or bytes"""
    globs: tuple[str, ...] = ()
    """which files of a folder"""
    standard_input: Callable[[], BinaryIO] | None = None


def read_inputs(given: Sequence[str], options: InputOptions) -> Rows:
    """The rows of all inputs, in order. Raises InvalidRequest for what is not there or of no known kind; what is wrong
    with a single row is in its place.

    The result can be iterated over again; standard input only once.
    """
    readers = [_reader(source, options) for source in given]
    return Rereadable(lambda: chain.from_iterable(read() for read in readers))


def _reader(source: str, options: InputOptions) -> Callable[[], Iterator[Row]]:
    if source == "-":
        if options.standard_input is None:
            raise InvalidRequest("standard input cannot be read here", "inputs")
        opened = options.standard_input()
        return lambda: lists.read_lines(opened, "standard input", Path(), options.column)
    if "://" in source and not os.path.exists(source):
        return _remote_reader(RemotePath(source), options) if is_remote(source) else lambda: iter([Row(source, source)])
    path = Path(source)
    if path.is_dir():
        return lambda: read_folder(path, options.globs)
    if not path.exists():
        if any(letter in source for letter in "*?["):
            raise InvalidRequest(f"no file is called {source}; of a folder, choose files with --glob", "inputs")
        raise InvalidRequest(f"no file or folder {source}", "inputs")
    kind = path.suffix.lower()
    if kind == ".tar":
        return lambda: tars.read_tar(path)
    if kind in lists.READERS:
        return lambda: lists.READERS[kind](path, options.column)
    return lambda: iter([_file_row(path)])


def _remote_reader(given: RemotePath, options: InputOptions) -> Callable[[], Iterator[Row]]:
    kind = given.kind()
    if kind is None:
        raise InvalidRequest(f"no file or folder {given}", "inputs")
    if kind == "file":
        suffix = given.suffix.lower()
        if suffix == ".parquet":
            return lambda: lists.read_parquet(given, options.column)
        if suffix == ".tar" or suffix in lists.READERS:
            raise InvalidRequest(f"of {given} only folders, images and .parquet files are read; copy it here", "inputs")
        return lambda: iter([Row(str(given), given)])

    def wanted(inside: str) -> bool:
        return _is_chosen(inside, options.globs) if options.globs else Path(inside).suffix.lower() in SUFFIXES

    return lambda: (Row(str(file), file) for file in read_remote_folder(given, wanted))


def read_folder(folder: Path, globs: Sequence[str] = ()) -> Iterator[Row]:
    """The images and videos in a folder and those below it, and the samples of tar files, by their names.

    `globs` choose others than those with a usual ending, by their names or their paths in the folder. Hidden files and
    folders are left out, and a folder that a link leads to is not gone into. One that cannot be read is a row with an
    error. Raises InvalidRequest where that is `folder` itself.
    """
    folders = [folder]
    while folders:
        here = folders.pop()
        try:
            with os.scandir(here) as found:
                entries = sorted((e for e in found if not e.name.startswith(".")), key=lambda e: e.name)
        except OSError as error:
            wrong = f"cannot read the folder {here}: {error.strerror or error}"
            if here == folder:
                raise InvalidRequest(wrong, "inputs") from error
            yield Row(json_path(here), InvalidImage(wrong))
            continue
        folders += [Path(e.path) for e in reversed(entries) if e.is_dir(follow_symlinks=False)]
        for entry in entries:
            if not _is_file(entry):
                continue
            path = Path(entry.path)
            if not globs and path.suffix.lower() == ".tar":
                yield from tars.read_tar(path)
            elif _is_wanted(path, folder, globs):
                yield _file_row(path)


def _is_file(entry: "os.DirEntry[str]") -> bool:
    """Whether it is no folder, pipe or device. A link that leads nowhere is a picture that is missing."""
    try:
        return stat.S_ISREG(entry.stat().st_mode)
    except OSError:
        return True


def _is_wanted(path: Path, folder: Path, globs: Sequence[str]) -> bool:
    if not globs:
        return path.suffix.lower() in SUFFIXES
    return _is_chosen(path.relative_to(folder).as_posix(), globs)


def _is_chosen(inside: str, globs: Sequence[str]) -> bool:
    name = inside.rpartition("/")[2]
    return any(fnmatch.fnmatch(name, glob) or fnmatch.fnmatch(inside, glob) for glob in globs)


def _file_row(path: Path) -> Row:
    return Row(json_path(path), path, file=path)
