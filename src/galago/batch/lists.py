"""Lists of images and videos: CSV, JSON lines, Parquet, or a path or URL a line."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from galago.batch.remote import RemotePath, is_remote
from galago.batch.rows import Row
from galago.errors import InvalidImage, InvalidRequest, quoted
from galago.media.source import FileSource
from galago.system.files import json_path

COLUMNS = ("image", "path", "file", "file_name", "filename", "image_path", "url", "image_url", "video", "bytes")
"""Where --column does not say it, the first of these that a list has."""
MAX_LINE = 64 << 20
"""Bytes of a line, which may hold an image as a data: URL."""
PARQUET_ROWS = 32
"""They are in memory together, with the images that they hold."""


def read_csv(path: Path, column: str | None = None) -> Iterator[Row]:
    """The rows of a CSV file whose first line names its columns. Paths are relative to its folder.

    Raises InvalidRequest for a file that cannot be read, or that lacks the column.
    """
    csv.field_size_limit(MAX_LINE)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = csv.DictReader(file)
            names = list(lines.fieldnames or [])
            chosen = _column(names, column, str(path))
            for number, found in enumerate(lines, start=1):
                extra = found.pop(None, None)
                if extra or None in found.values():
                    why = f"row {number} of {path} has not the {len(names)} fields of the first line"
                    yield Row(f"{json_path(path)}:{number}", InvalidImage(why))
                    continue
                yield _list_row(found, chosen, path.parent, f"{json_path(path)}:{number}")
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise _unreadable(path, error) from error


def read_json_lines(path: Path, column: str | None = None) -> Iterator[Row]:
    """The rows of a file with a JSON object, or a path or URL, a line; paths are relative to its folder.

    A line that is neither is a row with an error. Raises InvalidRequest for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            yield from read_lines(file, json_path(path), path.parent, column)
    except OSError as error:
        raise _unreadable(path, error) from error


def read_lines(file: BinaryIO, name: str, folder: Path, column: str | None = None) -> Iterator[Row]:
    """The rows of an open file with a JSON object, or a path or URL, a line."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        place = f"{name}:{number}"
        text = line.decode("utf-8", "surrogateescape").strip("\r\n\ufeff")
        if len(line) > MAX_LINE:
            raise InvalidRequest(f"line {number} of {name} is longer than {MAX_LINE >> 20} MiB", "inputs")
        if not text.strip():
            continue
        if not text.lstrip().startswith("{"):
            yield source_row(text.strip(), {}, folder, place)
            continue
        try:
            found = json.loads(text)
            chosen = _column(found, column, place)
        except (ValueError, RecursionError, InvalidRequest) as error:
            yield Row(place, InvalidImage(f"{place} names no image: {error}"))
            continue
        yield _list_row(found, chosen, folder, place)


def read_parquet(path: Path | RemotePath, column: str | None = None) -> Iterator[Row]:
    """The rows of a Parquet file, with a column of paths, URLs, bytes, or {"bytes", "path"} as Hugging Face has it.

    Raises InvalidRequest for a file that cannot be read, and where pyarrow is not installed.
    """
    arrow = import_parquet()
    name, folder = json_path(str(path)), path.parent
    try:
        with arrow.ParquetFile(path.open() if isinstance(path, RemotePath) else path) as file:
            chosen = _column(file.schema_arrow.names, column, str(path))
            number = 0
            for batch in file.iter_batches(batch_size=PARQUET_ROWS):
                for found in batch.to_pylist():
                    number += 1
                    yield _list_row(found, chosen, folder, f"{name}:{number}", unit=name)
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from error


def import_parquet() -> Any:
    """pyarrow.parquet. Raises InvalidRequest, saying how to get it."""
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise InvalidRequest("Parquet needs pyarrow: pip install 'galago[parquet]'", "inputs") from error
    return pyarrow.parquet


READERS: Mapping[str, Callable[[Path, str | None], Iterator[Row]]] = {
    ".csv": read_csv,
    ".jsonl": read_json_lines,
    ".ndjson": read_json_lines,
    ".txt": read_json_lines,
    ".parquet": read_parquet,
}
"""By the ending of a file's name."""


def _column(names: Iterable[str], wanted: str | None, where: str) -> str:
    names = list(names)
    if wanted is not None and wanted in names:
        return wanted
    if wanted is None and (known := next((name for name in COLUMNS if name in names), None)):
        return known
    there = ", ".join(map(quoted, names[:20])) or "none"
    what = f"no column {quoted(wanted)}" if wanted else "none of the columns " + ", ".join(COLUMNS)
    raise InvalidRequest(f"{where} has {what}; there are {there}: name one with --column", "column")


def _list_row(
    found: Mapping[str, Any], column: str, folder: Path | RemotePath, place: str, unit: str | None = None
) -> Row:
    rest = {name: value for name, value in found.items() if name != column}
    return source_row(found[column], rest, folder, place, unit)


def source_row(
    value: Any, columns: Mapping[str, Any], folder: Path | RemotePath, place: str, unit: str | None = None
) -> Row:
    """The row of what stands in a list's column."""
    columns = {name: held for name, value in columns.items() if (held := _plain(value)) is not _LEFT_OUT}
    if isinstance(value, Mapping) and {"bytes", "path"} & set(value):
        name = value.get("path") or place
        value = value.get("bytes") or value.get("path")
        return (
            Row(name, value, columns, unit=unit)
            if isinstance(value, bytes)
            else source_row(value, columns, folder, place, unit)
        )
    if isinstance(value, bytes):
        return Row(place, value, columns, unit=unit)
    if not isinstance(value, str) or not value:
        wrong = "nothing" if value in (None, "") else quoted(value)
        return Row(place, InvalidImage(f"{place} names {wrong}; it must be a path, a URL or bytes"), columns, unit=unit)
    if value[:5].lower() == "data:":
        return Row(place, value, columns, unit=unit)
    if "://" in value:
        source: FileSource | RemotePath = RemotePath(value) if is_remote(value) else value
        return Row(value, source, columns, unit=unit)
    path = folder / value
    if isinstance(path, RemotePath):
        return Row(str(path), path, columns, unit=unit)
    return Row(json_path(value), path, columns, file=path, unit=unit)


_LEFT_OUT = object()


def _plain(value: Any) -> Any:
    """A value as JSON can hold it; bytes, and what holds them, are left out."""
    match value:
        case bytes():
            return _LEFT_OUT
        case None | bool() | int() | float() | str():
            return value
        case Mapping():
            held = {str(name): _plain(inner) for name, inner in value.items()}
            return {name: inner for name, inner in held.items() if inner is not _LEFT_OUT}
        case list() | tuple():
            return [inner for one in value if (inner := _plain(one)) is not _LEFT_OUT]
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


def _unreadable(path: Path | RemotePath, error: Exception) -> InvalidRequest:
    reason = getattr(error, "strerror", None) or str(error)
    return InvalidRequest(f"cannot read {path}: {reason}", "inputs")
