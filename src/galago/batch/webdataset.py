"""Writing WebDataset: tar files of samples, each an image with its caption and its row."""

import io
import json
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from galago.batch.formats import Record
from galago.batch.journal import Journal, write_error
from galago.batch.rows import NAME
from galago.batch.shards import finished_parts, next_part
from galago.errors import InvalidRequest
from galago.system.files import try_lock

SUFFIX = ".tar"
UNFINISHED = ".tar.unfinished"
ERRORS = "errors.jsonl"
"""The rows without an image, or whose image could not be read: a sample without one would stop who reads them."""
_END = 2 * tarfile.BLOCKSIZE
"""Bytes of zeros that end a tar file."""


class TarShards:
    """A folder of tar files of so many samples each. The one in progress has another name, and is added to.

    A sample is IMAGE, then its caption as .txt if there is one, then its row as .json, which makes it whole.
    """

    takes_images = True

    def __init__(self, folder: Path, rows: int) -> None:
        self.folder, self.rows = folder, rows
        self._errors = Journal(folder / ERRORS)
        self._begin()

    def _begin(self) -> None:
        self.number = next_part(self.folder, SUFFIX)
        self.path = self.folder / f"part-{self.number:05}{SUFFIX}"
        self._part = self.folder / f"part-{self.number:05}{UNFINISHED}"
        try:
            self._file: BinaryIO = self._part.open("r+b" if self._part.exists() else "w+b", buffering=0)
        except OSError as error:
            raise write_error(self._part, error) from error
        if not try_lock(self._file.fileno()):
            raise InvalidRequest(f"another run is writing to {self._part}; wait for it, or name another --out", "out")
        ends = [end for _, end in _whole_samples(self._part)]
        self.count, self._size = len(ends), ends[-1] if ends else 0
        self._file.truncate(self._size)

    def __iter__(self) -> Iterator[Record]:
        for path in (*finished_parts(self.folder, SUFFIX), self._part):
            yield from read_samples(path)
        yield from self._errors

    def add(self, record: Record, image: bytes | None) -> None:
        if image is None or "error" in record:
            self._errors.add(record)
            return
        key = f"{self.number:05}{self.count:06}"
        suffix = Path(record[NAME]).suffix.lower() or ".bin"
        members = [(key + suffix, image)]
        if isinstance(record.get("caption"), str):
            members.append((key + ".txt", record["caption"].encode("utf-8", "backslashreplace")))
        members.append((key + ".json", json.dumps(record).encode()))
        try:
            self._file.seek(self._size)
            for name, data in members:
                for piece in _member(name, data):
                    self._write(piece)
        except OSError as error:
            self._file.truncate(self._size)
            raise write_error(self._part, error) from error
        self._size = self._file.tell()
        self.count += 1
        if self.count >= self.rows:
            self._close_part()
            self._begin()

    def forget_errors(self) -> None:
        self._errors.forget_errors()

    def _write(self, data: bytes) -> None:
        left = memoryview(data)
        while left:
            left = left[self._file.write(left) :]

    def _close_part(self) -> None:
        try:
            if self.count:
                self._write(bytes(_END))
                os.fsync(self._file.fileno())
            self._file.close()
            if self.count:
                self._part.replace(self.path)
            else:
                self._part.unlink()
        except OSError as error:
            raise write_error(self._part, error) from error

    def finish(self) -> None:
        self._file.seek(self._size)
        self._close_part()
        self._errors.close()
        if not self._errors.rows:
            self._errors.remove()

    def close(self) -> None:
        self._file.close()
        self._errors.close()


def read_samples(path: Path) -> Iterator[Record]:
    """The rows of a tar file's whole samples."""
    return (record for record, _ in _whole_samples(path))


def _member(name: str, data: bytes) -> Iterator[bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(data), 0o644
    yield entry.tobuf(tarfile.USTAR_FORMAT)
    yield data
    yield bytes(-len(data) % tarfile.BLOCKSIZE)


def _whole_samples(path: Path) -> Iterator[tuple[Record, int]]:
    """The rows of a tar file's samples, and where each ends; what comes after the last whole one is left out."""
    with path.open("rb") as file:
        size = file.seek(0, io.SEEK_END)
        place = 0
        while place + tarfile.BLOCKSIZE <= size:
            file.seek(place)
            try:
                entry = tarfile.TarInfo.frombuf(file.read(tarfile.BLOCKSIZE), "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                return
            begin = place + tarfile.BLOCKSIZE
            place = begin + -(-entry.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
            if place > size:
                return
            if entry.name.endswith(".json"):
                file.seek(begin)
                try:
                    record = json.loads(file.read(entry.size))
                except ValueError:
                    return
                yield record, place
