"""Reading an image, within bounds."""

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
from PIL import Image

from galago.errors import InvalidImage
from galago.media import jpeg
from galago.media.formats import FORMATS, format_of, has_key_of_16_bits, lower_bytes, open_as, unwrap_icon
from galago.media.orientation import MIRRORED, TAG, UPRIGHT, read_orientation, turned_size
from galago.media.png import split_png
from galago.media.samples import is_rgb, to_rgb
from galago.media.source import FileSource, from_array, open_file

log = logging.getLogger(__name__)

MAX_PIXELS = 64_000_000
KNOWN = f"an image of a known format ({', '.join(FORMATS)})"
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""What Pillow takes for a pixel by its mode; 4 for all others."""
_DECODER = {"WEBP": 16, "AVIF": 12, "JPEG2000": 21, "HEIF": 12}
"""What decoding takes for a pixel at its peak where that is more than the pixels; measured with Pillow 13."""
_PROGRESSIVE = 10
"""The same of a progressive JPEG, all of whose coefficients are kept."""
PNG_END = b"IEND\xaeB`\x82"
_PLAIN = 14
"""And of the PNM files that Pillow reads number by number."""
_RESIZING = 1
"""And what reducing it to what a model looks at takes besides, for each pixel of the whole."""


@dataclass(frozen=True)
class ImageHeader:
    """What is known of an image before any pixel of it is decoded."""

    size: tuple[int, int]
    """width, height in pixels, as it is shown"""
    needs: int
    """bytes that decoding it takes at the most"""


@dataclass(frozen=True, eq=False)
class DecodedImage:
    """An RGB image, upright, and what of it could not be read, a sentence each."""

    image: Image.Image
    warnings: tuple[str, ...] = ()


def load_image(source: Image.Image | np.ndarray | FileSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image from a path, bytes, an open file, an http(s) URL or a data: URL, a Pillow image or an array.

    The bytes decide what it is, not a name or MIME type. It is turned and mirrored as its EXIF orientation says, which
    is how viewers show it; Pillow images and arrays (uint8 [height, width, 3]) are taken as they are. Of an animation
    the first frame is taken; alpha is composited over white, unless it hides everything; samples of other than 8 bits
    are scaled so that what the format calls white is white. Of a JPEG that lacks a few lines the rest is taken, and a
    warning logged. A Pillow image that is RGB already is given back itself, not a copy. Raises InvalidImage with the
    reason: missing, empty, undecodable, truncated, or more than `max_pixels`, which is judged from the header before
    anything is decoded.
    """
    if isinstance(source, np.ndarray):
        source = from_array(source)
    if not isinstance(source, Image.Image):
        with open_file(source) as (file, name):
            return read_image(file, name or "the image", max_pixels)
    with _as_invalid_image("the image"):
        _check_size(source.size, "the image", max_pixels)
        return to_rgb(source)


def read_image(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, known: str = KNOWN) -> Image.Image:
    """Like load_image, from an open file. Errors call it by `name`; `known` is what it should have been."""
    decoded = decode(file, name, max_pixels, known)
    for warning in decoded.warnings:
        log.warning(warning)
    return decoded.image


def decode(
    file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, known: str = KNOWN, mirrored: bool = False
) -> DecodedImage:
    """Like read_image, but returns warnings instead of logging them; `mirrored` exchanges left and right."""
    warnings: tuple[str, ...] = ()
    with _as_invalid_image(name), _open_header(file, name, max_pixels, known) as (image, orientation, file):
        low, region = lower_bytes(image, file), _frame_region(image)
        cut = ""
        try:
            image.load()
        except OSError as error:
            if image.format not in ("JPEG", "MPO") or not jpeg.ends_early(error):
                raise
            cut = str(error)
        if cut:  # out of the handler, since the error holds on to what was decoded
            image.fp = None  # type: ignore[attr-defined]  # so that the file stays open
            image.close()
            file.seek(0)
            found = jpeg.repair(file.read())
            if found is None:
                raise OSError(cut)
            image, missing = found
            lacks = f"up to {missing} of its last lines are" if missing else "the mark at its end is"
            warnings = (f"{name} is cut off: {lacks} missing",)
        rgb = to_rgb(image, MIRRORED[orientation] if mirrored else orientation, low)
        if region != (0, 0, *image.size):
            # Around the first frame of a GIF viewers show nothing; Pillow fills it with one of its colours.
            whole = Image.new("RGB", image.size, "white")
            whole.paste(rgb.crop(region), region[:2])
            rgb = whole
        return DecodedImage(rgb, warnings)


def is_plain(data: bytes) -> bool:
    """Whether every decoder shows a file the same: a whole JPEG or PNG, upright, opaque, in grey or RGB of 8 bits.

    Whether what lies between its ends is damaged is not looked at.
    """
    file = io.BytesIO(data)
    with _as_invalid_image("the image"), open_as(format_of(file) or "", file) as image:
        whole = {"JPEG": data.endswith(jpeg.END), "PNG": data.endswith(PNG_END) and data[24] == 8}
        still = getattr(image, "n_frames", 1) == 1 and "transparency" not in image.info
        return (
            whole.get(image.format or "", False)
            and still
            and image.mode in ("L", "RGB")
            and (orientation_of(image, file) == UPRIGHT)
        )


def read_header(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, known: str = KNOWN) -> ImageHeader:
    """Read and check the header alone; raises InvalidImage as load_image does."""
    with _as_invalid_image(name), _open_header(file, name, max_pixels, known) as (image, orientation, _):
        return ImageHeader(turned_size(image.size, orientation), decoding_bytes(image, orientation))


@contextmanager
def _open_header(file: BinaryIO, name: str, max_pixels: int, known: str) -> Iterator[tuple[Image.Image, int, BinaryIO]]:
    """Yield an image of which no pixel is decoded yet, its orientation, and the file that it is in."""
    if not file.seek(0, io.SEEK_END):
        raise InvalidImage(f"{name} is empty")
    file = unwrap_icon(file)
    kind = format_of(file)
    if kind is None:
        raise InvalidImage(f"{name} is not {known}")
    with open_as(kind, file) as image:
        _check_size(image.size, name, max_pixels)
        yield image, orientation_of(image, file), file


def orientation_of(image: Image.Image, file: BinaryIO) -> int:
    """The EXIF orientation that is left to apply once the image is decoded."""
    if image.format == "PNG":
        # Pillow would decode all of it to see whether there is something behind its pixels.
        return read_orientation(split_png(file).exif)
    # A TIFF it turns itself.
    return UPRIGHT if image.format == "TIFF" else read_orientation(image.info.get("exif"))


def _frame_region(image: Image.Image) -> tuple[int, int, int, int]:
    """The part of the image that its first frame covers: x0, y0, x1, y1."""
    tiles = getattr(image, "tile", ()) if image.format == "GIF" else ()
    return tiles[0].extents if tiles else (0, 0, *image.size)


@contextmanager
def _as_invalid_image(name: str) -> Iterator[None]:
    """Turn whatever goes wrong into an InvalidImage of one line."""
    try:
        yield
    except (InvalidImage, MemoryError):
        raise
    except Exception as error:
        # Pillow's decoders raise whatever comes on damaged bytes.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidImage(f"{name} cannot be decoded: {reason}") from error


def _check_size(size: tuple[int, int], name: str, max_pixels: int) -> None:
    width, height = size
    if width * height > max_pixels:
        raise InvalidImage(f"{name} has {width} x {height} pixels; {max_pixels / 1e6:g} million are allowed")
    if not width or not height:
        raise InvalidImage(f"{name} has no pixels")


def decoding_bytes(image: Image.Image, orientation: int = UPRIGHT) -> int:
    """Bytes that decoding an image, bringing it to RGB, turned, and reducing it take at the most, from its header."""
    own = _BYTES.get(image.mode, 4)
    both = own if orientation == UPRIGHT and is_rgb(image) else own + 4
    if has_key_of_16_bits(image):
        both += 4
    if image.format == "TIFF":
        # A strip may be all of it, and Pillow turns a copy while it still has that.
        turned = image.tag_v2.get(TAG, UPRIGHT) != UPRIGHT  # type: ignore[attr-defined]
        both = max(both, (3 if turned else 2) * own)
    progressive = _PROGRESSIVE if image.info.get("progressive") else 0
    plain = _PLAIN if any(tile[0].startswith("ppm") for tile in getattr(image, "tile", ())) else 0
    most = max(both + _RESIZING, _DECODER.get(image.format or "", 0), progressive, plain)
    return image.width * image.height * most
