"""Reading an image from a path, bytes, URL or data URL, within bounds."""

import base64
import io
import re
from contextlib import suppress
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from galago.errors import InvalidImage

MAX_PIXELS = 64_000_000
_USUAL = {"image": "png", "video": "mp4"}
# Not every format that Pillow knows: some of them start other programs.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "PPM")


def load_image(source: Image.Image | Path | str | bytes, *, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """An RGB image from a Pillow image, a path, bytes, an http(s) URL or a data: URL.

    The bytes decide what it is, not a name or MIME type. Of an animation the first frame is taken; alpha
    is composited over white; 16-bit greys are scaled to 8 bits. EXIF orientation is not applied: Moondream
    was trained without it. Raises InvalidImage with the reason: missing, empty, undecodable, truncated, or
    more than `max_pixels`, which is judged from the header before anything is decoded.
    """
    data, name = (b"", "the image") if isinstance(source, Image.Image) else _read(source)
    try:
        if isinstance(source, Image.Image):
            return _decoded(source, name, max_pixels)
        if not data:
            raise InvalidImage(f"{name} is empty")
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            return _decoded(image, name, max_pixels)
    except InvalidImage:
        raise
    except Image.DecompressionBombError:
        raise InvalidImage(f"{name} has too many pixels; {max_pixels / 1e6:g} million are allowed") from None
    except UnidentifiedImageError:
        raise InvalidImage(f"{name} is not an image of a known format ({', '.join(FORMATS)})") from None
    except Exception as error:
        # Pillow's decoders raise whatever comes on damaged bytes.
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InvalidImage(f"{name} cannot be decoded: {reason}") from error


def decode_data_url(text: str, what: str = "image") -> bytes:
    """The bytes of a `data:` URL or of bare base64; its MIME type is ignored. Errors call it by `what` it should be.

    Whitespace and the URL-safe alphabet are tolerated, padding is optional. Raises InvalidImage if it is
    not base64 or empty.
    """
    if text[:5].lower() == "data:":
        head, comma, text = text.partition(",")
        if not comma or not head.lower().endswith(";base64"):
            raise InvalidImage(f"a data: URL must look like data:{what}/{_USUAL[what]};base64,...")
    try:
        data = _base64(text)
    except ValueError:
        raise InvalidImage(f"the {what} is not valid base64") from None
    if not data:
        raise InvalidImage(f"the {what} is empty")
    return data


def _base64(text: str) -> bytes:
    # Nearly all need none of the repairs, which take ten times as long as the decoding.
    with suppress(ValueError):
        return base64.b64decode(text, validate=True)
    compact = re.sub(r"\s+", "", text).rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(compact + "=" * (-len(compact) % 4), validate=True)


def _read(source: Path | str | bytes) -> tuple[bytes, str]:
    if isinstance(source, bytes):
        return source, "the image"
    if isinstance(source, str):
        if source[:5].lower() == "data:":
            return decode_data_url(source), "the image"
        if source[:8].lower().startswith(("http://", "https://")):
            # Imported late: most images are files.
            from galago.media.fetch import fetch

            return fetch(source), source
    try:
        return Path(source).read_bytes(), str(source)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidImage(f"cannot read {source}: {reason}") from error


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
