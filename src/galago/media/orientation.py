"""EXIF orientation (tag 274): reading it, and turning images upright."""

from typing import Literal

from PIL import Image
from PIL.Image import Transpose

TAG = 274
UPRIGHT = 1
_TURNS = {
    2: Transpose.FLIP_LEFT_RIGHT,
    3: Transpose.ROTATE_180,
    4: Transpose.FLIP_TOP_BOTTOM,
    5: Transpose.TRANSPOSE,
    6: Transpose.ROTATE_270,
    7: Transpose.TRANSVERSE,
    8: Transpose.ROTATE_90,
}
MIRRORED = {1: 2, 2: 1, 3: 4, 4: 3, 5: 6, 6: 5, 7: 8, 8: 7}
"""The orientation that shows what another does with left and right exchanged."""


def read_orientation(exif: bytes | None) -> int:
    """The orientation in EXIF data, 1..8; 1, which is upright, where it is missing or makes no sense."""
    data = (exif or b"").removeprefix(b"Exif\0\0")
    order: Literal["little", "big"] = "little" if data[:2] == b"II" else "big"

    def number(at: int, size: int) -> int:
        return int.from_bytes(data[at : at + size], order)

    first = number(4, 4)
    for at in range(first + 2, first + 2 + 12 * number(first, 2), 12):
        # One number of 16 bits, as all viewers want it.
        if (number(at, 2), number(at + 2, 2), number(at + 4, 4)) == (TAG, 3, 1):
            found = number(at + 8, 2)
            return found if found in _TURNS else UPRIGHT
    return UPRIGHT


def turned_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """Width and height after turning."""
    return size if orientation < 5 else (size[1], size[0])


def paste_turned(whole: Image.Image, strip: Image.Image, top: int, orientation: int) -> None:
    """Paste rows of an image, from its row `top` on, where they belong in the turned whole."""
    if orientation == UPRIGHT:
        whole.paste(strip, (0, top))
        return
    turned = strip.transpose(_TURNS[orientation])
    length = whole.height if orientation < 5 else whole.width
    # These put the first row last: at the bottom, or on the right.
    along = length - top - strip.height if orientation in (3, 4, 6, 7) else top
    whole.paste(turned, (0, along) if orientation < 5 else (along, 0))
