"""Opening the inputs of a batch ahead of their turn, in threads, so that the model never waits for a disk."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from galago.batch.remote import RemotePath, is_remote
from galago.batch.rows import Row
from galago.errors import GalagoError, InvalidImage, InvalidRequest
from galago.media.clip import Clip
from galago.media.load import open_media
from galago.media.picture import Picture
from galago.media.timeline import FrameSampling

THREADS = 4
AHEAD = 32
"""Inputs that are open, or being opened, before their turn."""
AHEAD_BYTES = 256 << 20
"""And what they hold in memory, at which no further one is opened."""


@dataclass(frozen=True)
class Opened:
    """An input that can be looked at, or why it cannot."""

    row: Row
    media: "Image.Image | Picture | Clip | GalagoError"


def open_ahead(rows: Iterable[Row], sampling: FrameSampling) -> Iterator[Opened]:
    """Yield each row with its image or the frames of its video, in order, opened ahead of their turn.

    What cannot be read is yielded with its error. Raises InvalidRequest where the folder of an input has vanished.
    """
    upcoming = iter(rows)
    waiting: deque[Future[Opened]] = deque()
    with ThreadPoolExecutor(THREADS, "galago-reading") as threads:
        try:
            while True:
                while len(waiting) < AHEAD and _held(waiting) < AHEAD_BYTES:
                    if (row := next(upcoming, None)) is None:
                        break
                    waiting.append(threads.submit(_open, row, sampling))
                if not waiting:
                    return
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _held(waiting: Iterable["Future[Opened]"]) -> int:
    return sum(_bytes(future.result()) for future in waiting if future.done() and not future.exception())


def _bytes(opened: Opened) -> int:
    match opened.media:
        case Picture():
            return len(opened.media.data)
        case Clip():
            return sum(3 * frame.width * frame.height for frame in opened.media.frames)
        case GalagoError():
            return 0
    return 3 * opened.media.width * opened.media.height


def _open(row: Row, sampling: FrameSampling) -> Opened:
    if isinstance(row.source, InvalidImage):
        return Opened(row, row.source)
    try:
        source = row.source() if callable(row.source) else row.source
        if isinstance(source, Image.Image):
            return Opened(row, source)
        return Opened(row, open_media(source, lambda: sampling))
    except OSError as error:
        return Opened(row, InvalidImage(f"cannot read {row.name}: {error.strerror or error}"))
    except GalagoError as error:
        return Opened(row, error)


@dataclass(frozen=True)
class Roots:
    """The folders that inputs lie in, and on which devices these are: a disk that is taken away leaves its folder."""

    given: tuple[Path, ...]
    devices: dict[Path, int]
    urls: tuple[str, ...] = ()
    """of other file systems"""

    @staticmethod
    def of(given: Iterable[str]) -> "Roots":
        given = list(given)
        urls = tuple(source for source in given if is_remote(source))
        given = [source for source in given if source != "-" and "://" not in source]
        found = {}
        for source in given:
            path = Path(source)
            with suppress(OSError):
                folder = path if path.is_dir() else path.absolute().parent
                found[folder] = os.stat(folder).st_dev
        return Roots(tuple(map(Path, given)), found, urls)

    def check(self) -> None:
        """Raise InvalidRequest where one is no longer there."""
        for folder, device in self.devices.items():
            try:
                there = os.stat(folder).st_dev == device and os.access(folder, os.R_OK | os.X_OK)
            except OSError:
                there = False
            if not there:
                raise InvalidRequest(
                    f"{folder} is no longer there; mount it again, and give the same command", "inputs"
                )

    def check_output(self, out: Path | RemotePath) -> None:
        """Raise InvalidRequest for an output that would be read as an input again."""
        if isinstance(out, RemotePath):
            if any(f"{out}/".startswith(f"{RemotePath(one)}".rstrip("/") + "/") for one in self.urls):
                raise InvalidRequest(f"{out} lies in an input; name a folder beside it", "out")
            return
        for path in self.given:
            if out.exists() and path.exists() and out.samefile(path):
                raise InvalidRequest(f"{out} is an input; name another --out", "out")
            if path.is_dir() and not out.suffix and out.resolve().is_relative_to(path.resolve()):
                raise InvalidRequest(f"{out} lies in the input {path}; name a folder beside it", "out")
