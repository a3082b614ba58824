"""Repairing JPEG files whose end is missing."""

import hashlib
import io
import re
from collections.abc import Iterator

from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile

END = b"\xff\xd9"
MOST_LINES = 32
"""Lines that may be missing, and no more than a quarter: two rows of the blocks that a JPEG is made of."""
ROWS = 8
"""Lines that are compared at a time: those of a block."""
NOISE = b"\x5a\xa5\x3c\xc3" * 64
_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_RESTART = re.compile(rb"\xff[\xd0-\xd7]")


def ends_early(error: Exception) -> bool:
    """Whether this is what Pillow raises for a file whose end is missing."""
    return isinstance(error, OSError) and "truncated" in str(error)


def repair(data: bytes) -> tuple[Image.Image, int] | None:
    """Decode a truncated JPEG: the image, and how many of its last lines are missing; None if too many.

    What is missing is what changes when the data goes on in one way or another.
    """
    data = data.rstrip(b"\xff")
    if not _is_complete_enough(data):
        return None
    last = [*_RESTART.finditer(data)][-1:]
    restart = bytes([0xFF, 0xD0 + (data[last[0].start() + 1] - 0xD0 + 1) % 8 if last else 0xD0])
    plain = [*_line_digests(data + END)]
    whole = len(plain)
    for more in (NOISE, restart + NOISE):
        whole = min(whole, _common_prefix(plain, _line_digests(data + more + END)))
    image = JpegImageFile(io.BytesIO(data + END))
    missing = max(0, image.height - whole * ROWS)
    if missing > min(MOST_LINES, image.height // 4):
        return None
    image.load()
    return image, missing


def _common_prefix(lines: list[bytes], others: Iterator[bytes]) -> int:
    """The length of the common prefix."""
    return next((i for i, (a, b) in enumerate(zip(lines, others, strict=True)) if a != b), len(lines))


def _line_digests(data: bytes) -> Iterator[bytes]:
    """Digests of the lines of a picture, ROWS at a time."""
    with JpegImageFile(io.BytesIO(data)) as image:
        image.load()
        for top in range(0, image.height, ROWS):
            part = image.crop((0, top, image.width, min(top + ROWS, image.height)))
            yield hashlib.blake2b(part.tobytes(), digest_size=16).digest()


def _is_complete_enough(data: bytes) -> bool:
    """Whether every coefficient of every component is in a scan that has begun, to its last bit (ITU T.81, B.2)."""
    components: dict[int, set[int]] = {}
    at = 2
    try:
        while found := _MARKER.search(data, at):
            at = found.end()
            kind, length = data[at - 1], int.from_bytes(data[at : at + 2])
            if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
                components = {data[at + 8 + 3 * i]: set() for i in range(data[at + 7])}
            elif kind == 0xDA:
                scanned = data[at + 2]
                first, last, bits = data[at + 3 + 2 * scanned : at + 6 + 2 * scanned]
                for i in range(scanned):
                    if not bits & 15:
                        components[data[at + 3 + 2 * i]] |= set(range(first, last + 1))
            at += length
    except (IndexError, KeyError, ValueError):
        return False
    return bool(components) and all(len(done) == 64 for done in components.values())
