"""WebDataset: tar files whose members of one name, but for the ending, are a sample."""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from galago.batch.rows import SUFFIXES, Row
from galago.errors import InvalidImage, InvalidRequest
from galago.system.files import json_path

MAX_TEXT = 1 << 20
"""Bytes of a member that says something of a sample."""


@dataclass(frozen=True)
class Member:
    """A file in a tar file, read when it is needed."""

    tar: Path
    offset: int
    size: int

    def __call__(self) -> bytes:
        with self.tar.open("rb") as file:
            file.seek(self.offset)
            return file.read(self.size)


def read_tar(path: Path) -> Iterator[Row]:
    """The samples of a tar file that have an image or a video; what its texts and JSON say are columns.

    Raises InvalidRequest for a file that cannot be read; one that ends early gives the samples that are whole, and
    then a row with the error.
    """
    name = json_path(path)
    try:
        with tarfile.open(path, "r:") as tar:
            sample: list[tarfile.TarInfo] = []
            key = None
            for member in tar:
                if not member.isfile():
                    continue
                if _key(member.name) != key:
                    yield from _sample_rows(path, name, sample)
                    sample, key = [], _key(member.name)
                sample.append(member)
            yield from _sample_rows(path, name, sample)
    except (tarfile.TarError, EOFError) as error:
        yield Row(name, InvalidImage(f"{path} cannot be read to its end as a tar file that is not compressed: {error}"))
    except OSError as error:
        raise InvalidRequest(f"cannot read {path}: {error.strerror or error}", "inputs") from error


def _key(name: str) -> str:
    """Up to the first dot of the last part, as WebDataset has it."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def _suffix(name: str) -> str:
    return "." + name.rpartition(".")[2].lower()


def _sample_rows(path: Path, name: str, sample: list[tarfile.TarInfo]) -> Iterator[Row]:
    shown = next((m for m in sample if _suffix(m.name) in SUFFIXES), None)
    if shown is None:
        return
    columns: dict[str, Any] = {}
    for member in sample:
        if member is shown or member.size > MAX_TEXT:
            continue
        data = Member(path, member.offset_data, member.size)()
        if member.name.endswith(".json"):
            try:
                found = json.loads(data)
            except (ValueError, RecursionError):
                continue
            columns |= found if isinstance(found, dict) else {"json": found}
        elif member.name.endswith((".txt", ".cls")):
            columns[member.name.rpartition(".")[2]] = data.decode("utf-8", "replace")
    source = Member(path, shown.offset_data, shown.size)
    yield Row(f"{name}/{shown.name}", source, columns, unit=name)
