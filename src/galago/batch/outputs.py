"""Where the rows of a batch go, by the name of the output."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from galago.batch.formats import FORMATS, Record
from galago.batch.journal import write_error
from galago.batch.remote import RemotePath
from galago.batch.remote_shards import RemoteShards
from galago.batch.shards import PART, UNFINISHED, ConvertedFile, LinesFile, Shards
from galago.batch.webdataset import SUFFIX, TarShards
from galago.errors import InvalidRequest, quoted

WEBDATASET = "webdataset"
SHARD_ROWS = 10_000
REMOTE_SHARD_ROWS = 1_000
"""A kill loses the rows since the last shard."""


class Output(Protocol):
    """Rows that are done, and those that are still to be added."""

    @property
    def takes_images(self) -> bool:
        """Whether the files of the images are written too."""
        ...

    def __iter__(self) -> Iterator[Record]:
        """All rows so far."""
        ...

    def add(self, record: Record, image: bytes | None) -> None:
        """Add a row; `image` is the file of its image, where that is at hand and such are taken."""
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


def open_output(path: Path | RemotePath, format: str | None = None, shard_rows: int | None = None) -> Output:
    """The output at this path: a file by its ending, or a folder; of a URL a folder. Raises InvalidRequest.

    Of a folder the format is told, or that of the shards in it, else JSON lines.
    """
    if format is not None and format not in (*FORMATS, WEBDATASET):
        raise InvalidRequest(f"--format must be {', '.join(FORMATS)} or {WEBDATASET}, not {quoted(format)}", "format")
    if isinstance(path, RemotePath):
        return _open_remote(path, format, shard_rows or REMOTE_SHARD_ROWS)
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
    return _open_shards(
        path, _format_of(path, [file.name for file in path.iterdir()], format), shard_rows or SHARD_ROWS
    )


def _open_shards(folder: Path, format: str, rows: int) -> Shards | TarShards:
    return TarShards(folder, rows) if format == WEBDATASET else Shards(folder, FORMATS[format], rows)


def _open_remote(folder: RemotePath, format: str | None, rows: int) -> RemoteShards:
    if folder.suffix in {one.suffix for one in FORMATS.values()}:
        raise InvalidRequest(f"{folder} would be one file; of a URL, name a folder, which gets shards", "out")
    if folder.kind() == "file":
        raise InvalidRequest(f"{folder} is a file; name a folder", "out")
    kind = _format_of(folder, [file.name for file in folder.files(recursive=False)], format)
    return RemoteShards(folder, FORMATS.get(kind), lambda here: _open_shards(here, kind, rows))


def _format_of(folder: Path | RemotePath, names: Iterable[str], format: str | None) -> str:
    """That of the shards that are there, which must be the one that is wanted; else that, or JSON lines."""
    endings = {Path(name).suffix for name in names if PART.match(name) and not name.endswith(UNFINISHED)}
    there = next((name for name, one in FORMATS.items() if one.suffix in endings), None)
    there = WEBDATASET if SUFFIX in endings else there
    if there is not None and format not in (None, there):
        raise InvalidRequest(f"{folder} has shards of {there}, not {format}; name another folder", "format")
    return format or there or "jsonl"


class NoOutput:
    """For rows that are kept elsewhere, such as beside the pictures."""

    takes_images = False

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
