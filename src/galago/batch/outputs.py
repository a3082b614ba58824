"""Where the rows of a batch go, by the name of the output."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from galago.batch.formats import FORMATS, Record
from galago.batch.journal import write_error
from galago.batch.shards import PART, UNFINISHED, ConvertedFile, LinesFile, Shards
from galago.batch.webdataset import TarShards
from galago.errors import InvalidRequest, quoted

WEBDATASET = "webdataset"
SHARD_ROWS = 10_000


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
        return TarShards(path, shard_rows or SHARD_ROWS)
    return Shards(path, FORMATS[format], shard_rows or SHARD_ROWS)


def _format_of(folder: Path) -> str | None:
    finished = (path for path in folder.iterdir() if PART.match(path.name) and not path.name.endswith(UNFINISHED))
    endings = {path.suffix for path in finished}
    if ".tar" in endings:
        return WEBDATASET
    return next((name for name, one in FORMATS.items() if one.suffix in endings), None)


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
