"""Reading a PNG without its comments and colour profiles, which may unpack to any size."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, cast

PNG = b"\x89PNG\r\n\x1a\n"
"""How each begins."""
LEFT_OUT = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")


@dataclass(frozen=True, eq=False)
class PngParts:
    """The chunks of a PNG that matter."""

    pixels: BinaryIO
    """the file, but for the chunks that are LEFT_OUT; reads from the whole, of which nothing is copied"""
    exif: bytes | None
    """the first eXIf chunk's"""


def split_png(file: BinaryIO) -> PngParts:
    """Leave out the chunks that do not matter. A file that is damaged or truncated stays so."""
    spans: list[tuple[int, int]] = []
    exif, begin, end = None, 0, len(PNG)
    for kind, at, length in _chunks(file):
        end = at + length + 12
        if kind == b"eXIf" and exif is None:
            file.seek(at + 8)
            exif = file.read(length)
        elif kind in LEFT_OUT:
            spans.append((begin, at))
            begin = end
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    if not spans:
        return PngParts(file, exif)
    spans.append((begin, max(begin, size)))
    return PngParts(cast(BinaryIO, io.BufferedReader(_SplicedFile(file, spans))), exif)


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, int, int]]:
    """Type, offset and length of each chunk that is complete."""
    size = file.seek(0, io.SEEK_END)
    at = len(PNG)
    while at + 12 <= size:
        file.seek(at)
        head = file.read(8)
        length = int.from_bytes(head[:4])
        if at + 12 + length > size:
            return
        yield head[4:], at, length
        at += 12 + length


class _SplicedFile(io.RawIOBase):
    """Spans of a file, (begin, end) each, read as if they were one file."""

    def __init__(self, file: BinaryIO, spans: list[tuple[int, int]]) -> None:
        self._file, self._spans, self._at = file, spans, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at}.get(whence, sum(end - begin for begin, end in self._spans))
        self._at = max(0, base + offset)
        return self._at

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        passed = 0
        for begin, end in self._spans:
            if self._at < passed + end - begin:
                self._file.seek(begin + self._at - passed)
                data = self._file.read(min(len(buffer), passed + end - begin - self._at))
                buffer[: len(data)] = data
                self._at += len(data)
                return len(data)
            passed += end - begin
        return 0
