"""An input of a batch: an image or a video, what it is called, and what its list says of it."""

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from galago.errors import InvalidImage, InvalidRequest, quoted
from galago.media.source import FileSource

if TYPE_CHECKING:
    from PIL import Image

T = TypeVar("T")
NAME = "image"
"""The member of a row that says which input it is of."""

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        *("jpg", "jpeg", "jpe", "jfif", "png", "gif", "webp", "bmp", "dib", "tif", "tiff", "avif", "heic", "heif"),
        *("jp2", "ico", "ppm", "pgm", "pbm", "pnm", "mp4", "m4v", "webm", "mkv", "mov", "avi"),
    )
)
"""Of the files of a folder that are taken for images and videos; others are no mistakes."""


@dataclass(frozen=True)
class Row:
    """One input."""

    name: str
    """what it is called in the output: a path, a URL, or its place in the file that holds it"""
    source: FileSource | Callable[[], "bytes | Image.Image"] | InvalidImage
    """where it is read from, what reads it, or why it cannot be read"""
    columns: Mapping[str, Any] = field(default_factory=dict)
    """what its list says of it besides, as JSON can hold it"""
    file: Path | None = None
    """where it lies by itself, with room for files beside it"""
    unit: str | None = None
    """which part of the input it is in, where parts are read one by one: a file of a data set"""


Rows = Iterable[Row]


@dataclass(frozen=True)
class Rereadable(Generic[T]):
    """What can be gone through again: for a count, or a second pass."""

    begin: Callable[[], Iterator[T]]

    def __iter__(self) -> Iterator[T]:
        return self.begin()


Condition = Callable[[Row], bool]


def parse_condition(text: str) -> Condition:
    """`NAME=VALUE` or `NAME!=VALUE` of --where: whether a row's column is that; a missing one is empty.

    Raises InvalidRequest.
    """
    name, equals, value = text.partition("=")
    negated = name.endswith("!")
    name = name.removesuffix("!").strip()
    if not equals or not name:
        raise InvalidRequest(
            f"--where must be COLUMN=VALUE or COLUMN!=VALUE, as caption= for those without one, not {quoted(text)}",
            "where",
        )

    def holds(row: Row) -> bool:
        held = row.columns.get(name)
        plain = "" if held is None else str(held).strip()
        return (plain == value.strip()) != negated

    return holds


@dataclass(frozen=True)
class Share:
    """The part i of n of the inputs, 1..n: each is in one of them, on whatever machine it is computed."""

    part: int
    of: int

    def holds(self, row: Row) -> bool:
        """By a digest of its name, so that a file which is added moves no other; data sets are shared file by file."""
        return zlib.crc32((row.unit or row.name).encode()) % self.of == self.part - 1


def parse_share(text: str) -> Share:
    """`i/n` of --shard. Raises InvalidRequest."""
    part, slash, of = text.partition("/")
    if slash and part.isascii() and part.isdigit() and of.isascii() and of.isdigit() and 1 <= int(part) <= int(of):
        return Share(int(part), int(of))
    raise InvalidRequest(f"--shard must be i/n with i in 1..n, as 2/8, not {quoted(text)}", "shard")


def select(rows: Rows, conditions: Iterable[Condition] = (), share: Share | None = None) -> Iterator[Row]:
    """The rows of a share for which all conditions hold."""
    conditions = tuple(conditions)
    for row in rows:
        if (share is None or share.holds(row)) and all(condition(row) for condition in conditions):
            yield row
