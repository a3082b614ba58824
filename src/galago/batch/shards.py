"""One file of rows, or a folder of files of so many rows each, which tell what is done already."""

import re
from collections.abc import Iterator
from pathlib import Path

from galago.batch.formats import FORMATS, Format, Record
from galago.batch.journal import Journal
from galago.errors import InvalidRequest
from galago.system.files import atomic_write

UNFINISHED = ".rows.jsonl"
"""What the journal of a file is called after it."""
PART = re.compile(r"part-(\d{5,})\.")


class LinesFile:
    """A file of JSON lines, which is its own journal."""

    takes_images = False

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


class ConvertedFile(LinesFile):
    """A file that cannot be added to: its rows are in a journal beside it, and it is written when all are there."""

    def __init__(self, path: Path, format: Format) -> None:
        self.path, self.format = path, format
        beside = path.with_name(path.name + UNFINISHED)
        if path.exists() and not beside.exists():
            with atomic_write(beside) as part:
                FORMATS["jsonl"].write(part, read_finished(format, path))
        super().__init__(beside)

    def finish(self) -> None:
        self._journal.close()
        self.format.write(self.path, self._journal)
        self._journal.remove()


class Shards:
    """A folder of files of so many rows each, written whole; the rows of the next one are in a journal."""

    takes_images = False

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
    found = (path for path in folder.iterdir() if PART.match(path.name) and path.name.endswith(suffix))
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
