"""Rows of a batch as they are made: a file of JSON lines that a kill leaves whole but for its last line."""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from galago.batch.formats import Record, json_line
from galago.batch.rows import NAME
from galago.errors import InvalidRequest
from galago.system.files import atomic_write, try_lock


class Journal:
    """An open file of rows. Each is in the system's hands when `add` returns, so that a kill loses none.

    Raises InvalidRequest for a file that another run writes, that holds something else, or that cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._open()

    def _open(self) -> None:
        self.rows, path = 0, self.path
        try:
            self._file: BinaryIO = path.open("ab", buffering=0)
        except OSError as error:
            raise write_error(path, error) from error
        try:
            if not try_lock(self._file.fileno()):
                raise InvalidRequest(f"another run is writing to {path}; wait for it, or name another --out", "out")
            self._size = self._whole()
            self._file.truncate(self._size)
        except BaseException:
            self._file.close()
            raise

    def _whole(self) -> int:
        """The size of the file without a last line that was cut off; checks and counts the others."""
        size = 0
        with self.path.open("rb") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if not _is_row(line):
                    # What a power cut leaves at the end of a file.
                    if not line.strip(b"\0\n"):
                        break
                    raise InvalidRequest(
                        f"line {self.rows + 1} of {self.path} is no row of galago batch; name another --out", "out"
                    )
                size += len(line)
                self.rows += 1
        return size

    def add(self, record: Record) -> None:
        """Append a row. Where that fails, the file is as it was before."""
        line = memoryview(json_line(record))
        written = 0
        try:
            while written < len(line):
                written += os.write(self._file.fileno(), line[written:])
        except OSError as error:
            self._file.truncate(self._size)
            raise write_error(self.path, error) from error
        self._size += len(line)
        self.rows += 1

    def forget_errors(self) -> None:
        """Leave out the rows with an error."""
        with atomic_write(self.path) as part, part.open("wb") as file:
            file.writelines(json_line(record) for record in self if "error" not in record)
        self._file.close()
        self._open()

    def __iter__(self) -> Iterator[Record]:
        with self.path.open("rb") as file:
            yield from map(json.loads, file)

    def close(self) -> None:
        """Wait until all rows are on the disk."""
        if not self._file.closed:
            try:
                os.fsync(self._file.fileno())
            except OSError as error:
                raise write_error(self.path, error) from error
            finally:
                self._file.close()

    def remove(self) -> None:
        self._file.close()
        self.path.unlink(missing_ok=True)


def _is_row(line: bytes) -> bool:
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and isinstance(found.get(NAME), str) and "model" in found


def write_error(path: Path, error: OSError) -> InvalidRequest:
    why = error.strerror or str(error)
    return InvalidRequest(f"cannot write {path}: {why}; mend that, and give the same command: it goes on", "out")
