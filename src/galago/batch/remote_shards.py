"""A folder of shards on another file system: each is made here, and sent when it is whole."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from galago.batch.formats import Format, Record, read_json_lines
from galago.batch.remote import RemotePath
from galago.batch.shards import PART, Shards, finished_parts
from galago.batch.webdataset import ERRORS, SUFFIX, TarShards, read_samples
from galago.errors import GalagoError, InvalidRequest


class RemoteShards:
    """Rows are kept when their shard was sent: a kill loses those since the last one, which are then asked about again.

    An end that is no kill sends the shard under way as it is. Nothing keeps two runs from writing to one folder.
    """

    def __init__(
        self, folder: RemotePath, format: Format | None, open_here: Callable[[Path], Shards | TarShards]
    ) -> None:
        """Without a format it is WebDataset. `open_here` opens the shards of a folder of this machine."""
        self.folder, self._format = folder, format
        self._suffix = format.suffix if format else SUFFIX
        self._stage = TemporaryDirectory(prefix="galago-shards-")
        self._here = Path(self._stage.name)
        self._errors = self._here / ERRORS
        if parts := self._sent():
            # Empty, so that the next one has the number after it.
            (self._here / parts[-1].name).touch()
        if format is None and (folder / ERRORS).exists():
            self._errors.write_bytes((folder / ERRORS)())
        self._shards = open_here(self._here)
        self._is_open = True

    @property
    def takes_images(self) -> bool:
        return self._format is None

    def _sent(self) -> list[RemotePath]:
        found = self.folder.files(recursive=False)
        return [file for file in found if PART.match(file.name) and file.suffix == self._suffix]

    def _fetched(self) -> Iterator[tuple[RemotePath, Path]]:
        """The shards that were sent, each with a file that it was fetched into."""
        path = self._here / f"fetched{self._suffix}"
        for part in self._sent():
            path.write_bytes(part())
            yield part, path

    def __iter__(self) -> Iterator[Record]:
        for part, path in self._fetched():
            try:
                for record in self._format.read(path) if self._format else read_samples(path):
                    if "model" not in record:
                        raise ValueError("a row names no model")
                    yield record
            except (OSError, ValueError, KeyError) as error:
                raise InvalidRequest(f"{part} has no rows of galago batch ({error}); name another --out") from error
        if self._errors.exists():
            yield from read_json_lines(self._errors)

    def add(self, record: Record, image: bytes | None) -> None:
        self._shards.add(record, image)
        self._send()

    def _send(self) -> None:
        for path in finished_parts(self._here, self._suffix):
            if path.stat().st_size:
                (self.folder / path.name).send(path)
                path.write_bytes(b"")
                self._send_errors()

    def _send_errors(self) -> None:
        if self._errors.exists():
            (self.folder / ERRORS).send(self._errors)

    def forget_errors(self) -> None:
        if self._format is None:
            self._shards.forget_errors()
            self._send_errors()
            return
        for part, path in self._fetched():
            self._format.write(path, [record for record in self._format.read(path) if "error" not in record])
            part.send(path)

    def finish(self) -> None:
        self._is_open = False
        self._shards.finish()
        self._send()
        self._send_errors()

    def close(self) -> None:
        try:
            if self._is_open:
                with suppress(GalagoError):
                    self.finish()
            self._shards.close()
        finally:
            self._stage.cleanup()
