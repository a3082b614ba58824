"""Where the rows of a batch go: one file, or a folder of shards, which tell what is done already."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from galago.batch.formats import FORMATS, Format, Record
from galago.batch.journal import Journal, write_error
from galago.errors import InvalidRequest, quoted
from galago.system.files import atomic_write

WEBDATASET = "webdataset"
SHARD_ROWS = 10_000
UNFINISHED = ".rows.jsonl"
"""What the journal of a file is called after it."""
_PART = re.compile(r"part-(\d{5,})\.")


class Output(Protocol):
    """Rows that are done, and those that are still to be added."""

    def __iter__(self) -> Iterator[Record]:
        """All rows so far."""
        ...

    def add(self, record: Record, image: bytes | None) -> None:
        """Add a row; `image` is the file of its image, where that is at hand."""
        ...

    def forget_errors(self) -> None:
        """Leave out the rows with an error, so that they are asked about again."""
        ...

    def finish(self) -> None:
        """Write what is to be read by others, once all rows are there."""
        ...

    def close(self) -> None:
        """Leave what is there for a later run to go on with."""
        ...


def open_output(path: Path, format: str | None = None, shard_rows: int | None = None) -> Output:
    """The output at this path: a file by its ending, or a folder. Raises InvalidRequest.

    Of a folder the format is told, or that of the shards in it, else JSON lines.
    """
    if format is not None and format not in (*FORMATS, WEBDATASET):
        raise InvalidRequest(f"--format must be {', '.join(FORMATS)} or {WEBDATASET}, not {quoted(format)}", "format")
    by_ending = next((name for name, one in FORMATS.items() if path.suffix.lower() == one.suffix), None)
    if by_ending is not None and not path.is_dir():
        if format not in (None, by_ending):
            raise InvalidRequest(f"{path} would be {by_ending}, not {format}; name a folder or another file", "format")
        if shard_rows is not None:
            raise InvalidRequest(f"shards are files of a folder; {path} is one file", "shard_rows")
        return LinesFile(path) if by_ending == "jsonl" else ConvertedFile(path, FORMATS[by_ending])
    if path.suffix and not path.is_dir():
        raise InvalidRequest(f"{path} is no .jsonl, .csv or .parquet file, and no folder", "out")
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise write_error(path, error) from error
    there = _format_of(path)
    if there is not None and format not in (None, there):
        raise InvalidRequest(f"{path} has shards of {there}, not {format}; name another folder", "format")
    format = format or there or "jsonl"
    if format == WEBDATASET:
        from galago.batch.webdataset import TarShards

        return TarShards(path, shard_rows or SHARD_ROWS)
    return Shards(path, FORMATS[format], shard_rows or SHARD_ROWS)


def _format_of(folder: Path) -> str | None:
    finished = (path for path in folder.iterdir() if _PART.match(path.name) and not path.name.endswith(UNFINISHED))
    endings = {path.suffix for path in finished}
    if ".tar" in endings:
        return WEBDATASET
    return next((name for name, one in FORMATS.items() if one.suffix in endings), None)


class LinesFile:
    """A file of JSON lines, which is its own journal."""

    def __init__(self, path: Path) -> None:
        self._journal = Journal(path)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._journal)

    def add(self, record: Record, image: bytes | None) -> None:
        self._journal.add(record)

    def forget_errors(self) -> None:
        self._journal.forget_errors()

    def finish(self) -> None:
        pass

    def close(self) -> None:
        self._journal.close()


class ConvertedFile:
    """A file that cannot be added to: its rows are in a journal beside it, and it is written when all are there."""

    def __init__(self, path: Path, format: Format) -> None:
        self.path, self.format = path, format
        beside = path.with_name(path.name + UNFINISHED)
        if path.exists() and not beside.exists():
            with atomic_write(beside) as part:
                FORMATS["jsonl"].write(part, read_finished(format, path))
        self._journal = Journal(beside)

    def __iter__(self) -> Iterator[Record]:
        return iter(self._journal)

    def add(self, record: Record, image: bytes | None) -> None:
        self._journal.add(record)

    def forget_errors(self) -> None:
        self._journal.forget_errors()

    def finish(self) -> None:
        self._journal.close()
        self.format.write(self.path, self._journal)
        self._journal.remove()

    def close(self) -> None:
        self._journal.close()


class Shards:
    """A folder of files of so many rows each, written whole; the rows of the next one are in a journal."""

    def __init__(self, folder: Path, format: Format, rows: int) -> None:
        self.folder, self.format, self.rows = folder, format, rows
        self._begin()

    def _begin(self) -> None:
        number = next_part(self.folder, self.format.suffix)
        self.path = self.folder / f"part-{number:05}{self.format.suffix}"
        for left in self.folder.glob(f"part-*{UNFINISHED}"):
            # Of a shard that was written whole before its journal could be removed.
            if left.name < self.path.name:
                left.unlink()
        self._journal = Journal(self.folder / f"part-{number:05}{UNFINISHED}")

    def __iter__(self) -> Iterator[Record]:
        for path in finished_parts(self.folder, self.format.suffix):
            yield from read_finished(self.format, path)
        yield from self._journal

    def add(self, record: Record, image: bytes | None) -> None:
        self._journal.add(record)
        if self._journal.rows >= self.rows:
            self.finish()
            self._begin()

    def forget_errors(self) -> None:
        for path in finished_parts(self.folder, self.format.suffix):
            kept = [record for record in read_finished(self.format, path) if "error" not in record]
            self.format.write(path, kept)
        self._journal.forget_errors()

    def finish(self) -> None:
        self._journal.close()
        if self._journal.rows:
            self.format.write(self.path, self._journal)
        self._journal.remove()

    def close(self) -> None:
        self._journal.close()


def finished_parts(folder: Path, suffix: str) -> list[Path]:
    found = (path for path in folder.iterdir() if _PART.match(path.name) and path.name.endswith(suffix))
    return sorted(path for path in found if not path.name.endswith(UNFINISHED))


def next_part(folder: Path, suffix: str) -> int:
    """The number of the first shard that is not finished."""
    parts = finished_parts(folder, suffix)
    return int(parts[-1].name[len("part-") :].partition(".")[0]) + 1 if parts else 0


def read_finished(format: Format, path: Path) -> Iterator[Record]:
    """The rows of a file that was written whole. Raises InvalidRequest where it cannot be read, or is another's."""
    try:
        for record in format.read(path):
            if "model" not in record:
                raise ValueError("a row names no model")
            yield record
    except (OSError, ValueError, KeyError) as error:
        raise InvalidRequest(f"{path} has no rows of galago batch ({error}); name another --out", "out") from error


class NoOutput:
    """For rows that are kept elsewhere, such as beside the pictures."""

    def __iter__(self) -> Iterator[Record]:
        return iter(())

    def add(self, record: Record, image: bytes | None) -> None:
        pass

    def forget_errors(self) -> None:
        pass

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass
