"""Reading an image, within bounds."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from galago.errors import InvalidImage
from galago.media.source import FileSource, opened

MAX_PIXELS = 64_000_000
# Not every format that Pillow knows: some of them start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")
KNOWN = f"an image of a known format ({', '.join(FORMATS)})"
STRIP = 64
"""Rows that are brought to RGB at a time, so that what lies between the two forms takes no memory to speak of."""
_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16L": 2, "I;16B": 2, "I;16N": 2}
"""What Pillow takes for a pixel by its mode; 4 for all others."""
_DECODER = {"WEBP": 16, "AVIF": 12}
"""What decoding takes for a pixel at its peak where that is more than the pixels; measured with Pillow 13."""
_PROGRESSIVE = 10
"""The same of a progressive JPEG, all of whose coefficients are kept."""
_RESIZING = 1
"""And what reducing it to what a model looks at takes besides, for each pixel of the whole."""


def load_image(source: Image.Image | FileSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image from a Pillow image, a path, bytes, an open file, an http(s) URL or a data: URL.

    The bytes decide what it is, not a name or MIME type. Of an animation the first frame is taken; alpha
    is composited over white; 16-bit greys are scaled to 8 bits. EXIF orientation is not applied: Moondream
    was trained without it. A Pillow image that is RGB already is given back itself, not a copy. Raises InvalidImage
    with the reason: missing, empty, undecodable, truncated, or more than `max_pixels`, which is judged from the header
    before anything is decoded.
    """
    if not isinstance(source, Image.Image):
        with opened(source) as (file, name):
            return read_image(file, name or "the image", max_pixels)
    with _told("the image", max_pixels, KNOWN):
        return _decoded(source, "the image", max_pixels)


def read_image(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, known: str = KNOWN) -> Image.Image:
    """The same of an open file. Errors call it by its name, and say what of is `known` where it is nothing of that."""
    with _told(name, max_pixels, known), _headed(file, name) as image:
        return _decoded(image, name, max_pixels)


@contextmanager
def header(file: BinaryIO, name: str, max_pixels: int) -> Iterator[Image.Image]:
    """An image of which no pixel is decoded yet, checked as far as its header tells. Raises InvalidImage."""
    with _told(name, max_pixels, KNOWN), _headed(file, name) as image:
        _check(image, name, max_pixels)
        yield image


@contextmanager
def _headed(file: BinaryIO, name: str) -> Iterator[Image.Image]:
    if not file.seek(0, io.SEEK_END):
        raise InvalidImage(f"{name} is empty")
    file.seek(0)
    with Image.open(file, formats=FORMATS) as image:
        yield image


@contextmanager
def _told(name: str, max_pixels: int, known: str) -> Iterator[None]:
    """Whatever goes wrong is an InvalidImage of one line."""
    try:
        yield
    except (InvalidImage, MemoryError):
        raise
    except Image.DecompressionBombError:
        raise InvalidImage(f"{name} has too many pixels; {max_pixels / 1e6:g} million are allowed") from None
    except UnidentifiedImageError:
        raise InvalidImage(f"{name} is not {known}") from None
    except Exception as error:
        # Pillow's decoders raise whatever comes on damaged bytes.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidImage(f"{name} cannot be decoded: {reason}") from error


def _decoded(image: Image.Image, name: str, max_pixels: int) -> Image.Image:
    _check(image, name, max_pixels)
    return to_rgb(image)


def _check(image: Image.Image, name: str, max_pixels: int) -> None:
    if image.width * image.height > max_pixels:
        raise InvalidImage(
            f"{name} has {image.width} x {image.height} pixels; {max_pixels / 1e6:g} million are allowed"
        )
    if not image.width or not image.height:
        raise InvalidImage(f"{name} has no pixels")


def decoding_bytes(image: Image.Image) -> int:
    """Bytes that decoding an image, bringing it to RGB and reducing it take at the most, told from its header."""
    own = _BYTES.get(image.mode, 4)
    both = own if _is_rgb(image) else own + 4
    progressive = _PROGRESSIVE if image.info.get("progressive") else 0
    most = max(both + _RESIZING, _DECODER.get(image.format or "", 0), progressive)
    return image.width * image.height * most


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in RGB, with alpha composited over white; itself, not a copy, where it is nothing else already."""
    image.load()
    if _is_rgb(image):
        return image
    flat = Image.new("RGB", image.size, "white")
    for top in range(0, image.height, STRIP):
        strip = image.crop((0, top, image.width, min(top + STRIP, image.height)))
        if image.has_transparency_data:
            strip = strip.convert("RGBA")
            flat.paste(strip, (0, top), strip.getchannel("A"))
            continue
        if image.mode.startswith("I;16"):
            # Pillow's own conversion cuts 16 bits off at 255.
            strip = strip.convert("I").point(lambda grey: grey / 256).convert("L")
        flat.paste(strip.convert("RGB"), (0, top))
    return flat


def _is_rgb(image: Image.Image) -> bool:
    # These two hold on to what they decoded with, which takes more than a copy of the pixels.
    return image.mode == "RGB" and not image.has_transparency_data and image.format not in ("WEBP", "AVIF")
