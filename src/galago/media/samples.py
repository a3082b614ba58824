"""Converting samples of any depth and kind to 8-bit RGB, strip by strip, which takes hardly any memory."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, cast

import numpy as np
from PIL import Image

from galago.media.orientation import UPRIGHT, paste_turned, turned_size

STRIP = 64
"""Rows that are converted at a time."""
StripConverter = Callable[[Image.Image, int], Image.Image]
"""Converts rows of an image to RGB; called with a strip and the index of its first row."""

PHOTOMETRIC, BITS, SAMPLE_FORMAT = 262, 258, 339
"""TIFF's tags: what 0 stands for, bits of a sample, and what kind of number it is."""
SLACK = 0.001
"""So much do floating point samples reach past 0..1 where they were computed."""
SCALE_IT = "scale it to 8 bits, or to 0..65535, or floating point to 0..1"


def is_rgb(image: Image.Image) -> bool:
    """Whether an image can be used as it is, without a copy."""
    # These two hold on to what they decoded with, which takes more than a copy of the pixels.
    return image.mode == "RGB" and not image.has_transparency_data and image.format not in ("WEBP", "AVIF")


def to_rgb(image: Image.Image, orientation: int = UPRIGHT, low: Image.Image | None = None) -> Image.Image:
    """The image in RGB, turned, with alpha composited over white; itself, not a copy, where it is that already.

    `low` are the lower halves of samples of 16 bits, where a transparent colour is to be told from others. Raises
    ValueError where nothing says how bright its samples are.
    """
    image.load()
    if orientation == UPRIGHT and is_rgb(image):
        return image
    convert = _make_converter(image, low)
    flat = Image.new("RGB", turned_size(image.size, orientation), "white")
    for top, strip in _strips(image):
        paste_turned(flat, convert(strip, top), top, orientation)
    return flat


def _strips(image: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    for top in range(0, image.height, STRIP):
        yield top, image.crop((0, top, image.width, min(top + STRIP, image.height)))


def _make_converter(image: Image.Image, low: Image.Image | None) -> StripConverter:
    tags = getattr(image, "tag_v2", {})
    signed_bytes = image.mode == "L" and tags.get(SAMPLE_FORMAT, (1,))[0] == 2
    if image.mode in ("I", "F") or image.mode.startswith("I;16") or signed_bytes:
        return _grey_converter(image, tags)
    if low is not None:
        return _key_converter(image, low)
    if image.has_transparency_data and not _is_fully_transparent(image):
        return _over_white
    return lambda strip, top: strip.convert("RGB")


def _over_white(strip: Image.Image, top: int) -> Image.Image:
    """Alpha over white."""
    if strip.mode == "La":
        strip = strip.convert("LA")
    strip = strip.convert("RGBA")
    flat = Image.new("RGB", strip.size, "white")
    flat.paste(strip, (0, 0), strip.getchannel("A"))
    return flat


def _is_fully_transparent(image: Image.Image) -> bool:
    """Whether alpha is 0 everywhere and there are colours behind it, as in what Windows' clipboard gives."""
    if image.mode not in ("LA", "RGBA"):
        return False
    *colours, alpha = (most for _, most in cast("tuple[tuple[int, int], ...]", image.getextrema()))
    return not alpha and any(colours)


def _key_converter(image: Image.Image, low: Image.Image) -> StripConverter:
    """A converter that makes the transparent colour of a 16-bit RGB image white."""
    key = np.array(image.info["transparency"])

    def convert(strip: Image.Image, top: int) -> Image.Image:
        high = np.array(strip)
        both = high.astype(np.uint16) << 8 | np.asarray(low.crop((0, top, low.width, top + strip.height)))
        high[(both == key).all(-1)] = 255
        return Image.fromarray(high)

    return convert


# --- greys of other than 8 bits --------------------------------------------------------------


def _grey_converter(image: Image.Image, tags: Any) -> StripConverter:
    """A converter that scales grey samples so that what the format calls white is white."""
    whole = tags.get(SAMPLE_FORMAT, (1,))[0] == 1
    unsigned = whole and tags.get(BITS, (0,))[0] == 32  # Pillow takes them for signed ones
    key = image.info.get("transparency")

    def samples(strip: Image.Image) -> np.ndarray:
        values = np.asarray(strip)
        return values.view(np.uint32) if unsigned else values.view(np.int8) if values.dtype == np.uint8 else values

    white = _white_value(image, tags, (samples(strip) for _, strip in _strips(image)))
    black = 255.0 if tags.get(PHOTOMETRIC) == 0 else 0.0

    def convert(strip: Image.Image, top: int) -> Image.Image:
        values = samples(strip)
        shade = np.abs(black - np.clip(values * np.float32(255 / white), 0, 255))
        shade = (shade + np.float32(0.5)).astype(np.uint8)
        if key is not None:
            shade[values == key] = 255
        return Image.fromarray(shade).convert("RGB")

    return convert


def _white_value(image: Image.Image, tags: Any, samples: Iterable[np.ndarray]) -> float:
    """The value that is shown white; 0 is black. Raises ValueError where nothing says so.

    Where the format does not tell (whole numbers of 32 bits, Pillow's modes I and F), 255 if nothing is above, else
    65535, else the largest number there is; floating point goes to 1.
    """
    bits = tags.get(BITS, (0,))[0]
    if image.mode.startswith("I;16"):
        return 4095 if bits == 12 else 65535
    if image.format == "PPM" and image.mode == "I":
        return 65535
    least, most, whole = _extremes(samples)
    ladder: tuple[float, ...] = {8: (127,), 16: (32767,)}.get(bits, (255, 65535, 2**31 - 1, 2**32 - 1))
    if image.mode == "F":
        least, ladder = least + SLACK, (1 + SLACK, 255, 65535) if whole else (1 + SLACK,)
    white = next((white for white in ladder if least >= 0 and most <= white), None)
    if white is None:
        raise ValueError(f"its samples go from {least:g} to {most:g}, and nothing says how bright they are; {SCALE_IT}")
    return min(white, 1.0) if white < 2 else white


def _extremes(samples: Iterable[np.ndarray]) -> tuple[float, float, bool]:
    """The least, the largest (NaN where any sample is), and whether all are whole numbers."""
    least, most, whole = np.inf, -np.inf, True
    for values in samples:
        # minimum and maximum, unlike min and max, keep what is not a number
        least, most = float(np.minimum(least, values.min())), float(np.maximum(most, values.max()))
        whole = whole and bool((values == np.floor(values)).all())
    return least, most, whole
