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


def load_image(source: Image.Image | FileSource, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image from a Pillow image, a path, bytes, an open file, an http(s) URL or a data: URL.

    The bytes decide what it is, not a name or MIME type. Of an animation the first frame is taken; alpha
    is composited over white; 16-bit greys are scaled to 8 bits. EXIF orientation is not applied: Moondream
    was trained without it. Raises InvalidImage with the reason: missing, empty, undecodable, truncated, or
    more than `max_pixels`, which is judged from the header before anything is decoded.
    """
    if not isinstance(source, Image.Image):
        with opened(source) as (file, name):
            return read_image(file, name or "the image", max_pixels)
    with _told("the image", max_pixels, KNOWN):
        return _decoded(source, "the image", max_pixels)


def read_image(file: BinaryIO, name: str, max_pixels: int = MAX_PIXELS, known: str = KNOWN) -> Image.Image:
    """The same of an open file. Errors call it by its name, and say what of is `known` where it is nothing of that."""
    with _told(name, max_pixels, known):
        if not file.seek(0, io.SEEK_END):
            raise InvalidImage(f"{name} is empty")
        file.seek(0)
        with Image.open(file, formats=FORMATS) as image:
            return _decoded(image, name, max_pixels)


@contextmanager
def _told(name: str, max_pixels: int, known: str) -> Iterator[None]:
    """Whatever goes wrong is an InvalidImage of one line."""
    try:
        yield
    except InvalidImage:
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
    if image.width * image.height > max_pixels:
        raise InvalidImage(
            f"{name} has {image.width} x {image.height} pixels; {max_pixels / 1e6:g} million are allowed"
        )
    if not image.width or not image.height:
        raise InvalidImage(f"{name} has no pixels")
    return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """A copy of the image in RGB, with alpha composited over white."""
    if image.has_transparency_data:
        image = image.convert("RGBA")
        flat = Image.new("RGB", image.size, "white")
        flat.paste(image, mask=image.getchannel("A"))
        return flat
    if image.mode.startswith("I;16"):
        # Pillow's own conversion cuts 16 bits off at 255.
        image = image.convert("I").point(lambda grey: grey / 256).convert("L")
    return image.convert("RGB")
