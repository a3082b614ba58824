"""Recognising image formats by their first bytes, and opening a file as that format and no other."""

import io
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, BinaryIO

from PIL import Image

from galago.errors import InvalidImage
from galago.media.png import PNG, split_png
from galago.media.samples import BITS

# Not every format that Pillow knows: some of them start other programs.
_OPENERS = {
    "JPEG": "PIL.JpegImagePlugin.jpeg_factory",
    "PNG": "PIL.PngImagePlugin.PngImageFile",
    "WEBP": "PIL.WebPImagePlugin.WebPImageFile",
    "GIF": "PIL.GifImagePlugin.GifImageFile",
    "BMP": "PIL.BmpImagePlugin.BmpImageFile",
    "TIFF": "PIL.TiffImagePlugin.TiffImageFile",
    "AVIF": "PIL.AvifImagePlugin.AvifImageFile",
    "PPM": "PIL.PpmImagePlugin.PpmImageFile",
    "JPEG2000": "PIL.Jpeg2KImagePlugin.Jpeg2KImageFile",
    "ICO": "PIL.IcoImagePlugin.IcoImageFile",
    "TGA": "PIL.TgaImagePlugin.TgaImageFile",
    "HEIC": "pillow_heif.as_plugin.HeifImageFile",
}
FORMATS = tuple(_OPENERS)
_STARTS = (
    (b"\xff\xd8\xff", "JPEG"),
    (PNG, "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\0", "TIFF"),
    (b"MM\0*", "TIFF"),
    (b"II+\0", "TIFF"),
    (b"MM\0+", "TIFF"),
    *((bytes((80, kind, blank)), "PPM") for kind in b"123456f" for blank in b" \t\r\n"),
    (b"\xff\x4f\xff\x51", "JPEG2000"),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG2000"),
    (b"\0\0\1\0", "ICO"),
)
_HEIC = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1", b"miaf")
_REASONS = {
    "not identified by this driver": "it has no pixels, or pixels of a kind that does not exist",
    "unknown pixel mode": "its kind of pixels, such as floating point colours, is not supported; save it with 8 bits",
}
_NATIVE = {"I;16BS": "I;16S", "I;32BS": "I;32S", "F;32BF": "F;32F"} if sys.byteorder == "little" else {}
NO_HEIC = "is a HEIC picture, which is read by pillow-heif: pip install 'galago[heic]', or save it as JPEG"


def format_of(file: BinaryIO) -> str | None:
    """The name of the file's format, or None if it is none of FORMATS."""
    file.seek(0)
    head = file.read(64)
    if head[4:8] == b"ftyp":
        brands = {head[8:12], *(head[at : at + 4] for at in range(16, min(int.from_bytes(head[:4]), len(head)), 4))}
        return "AVIF" if brands & {b"avif", b"avis"} else "HEIC" if head[8:12] in _HEIC else None
    if (head[:4], head[8:12]) == (b"RIFF", b"WEBP"):
        return "WEBP"
    known = next((name for start, name in _STARTS if head.startswith(start)), None)
    return known or ("TGA" if _is_tga(file, head) else None)


def _is_tga(file: BinaryIO, head: bytes) -> bool:
    """Whether it is a TGA, which has no signature: its header must make sense, and its pixels or footer be there."""
    if len(head) < 18 or head[1] > 1 or head[2] not in (1, 2, 3, 9, 10, 11) or (head[2] in (1, 9)) != head[1]:
        return False
    width, height, bits = int.from_bytes(head[12:14], "little"), int.from_bytes(head[14:16], "little"), head[16]
    if bits not in ((8,) if head[2] in (1, 3, 9, 11) else (15, 16, 24, 32)) or not width or not height:
        return False
    size = file.seek(0, io.SEEK_END)
    file.seek(max(0, size - 18))
    if file.read(16) == b"TRUEVISION-XFILE":
        return True
    table = int.from_bytes(head[5:7], "little") * -(-head[7] // 8)
    # Without its footer only one that is not compressed can be told from anything else.
    return head[2] < 9 and size >= 18 + head[0] + table + width * height * -(-bits // 8)


def unwrap_icon(file: BinaryIO) -> BinaryIO:
    """The picture in an icon, if it is a PNG, of which Pillow would believe what the icon says; else the file itself.

    Raises ValueError for an icon whose picture is larger than it says.
    """
    if format_of(file) != "ICO":
        return file
    file.seek(4)
    entries = [file.read(16) for _ in range(int.from_bytes(file.read(2), "little"))]
    sized = [((e[0] or 256) * (e[1] or 256), e) for e in entries if len(e) == 16]
    largest = [e for size, e in sized if size == max(sized)[0]]
    for entry in largest:
        length, at = (int.from_bytes(entry[i : i + 4], "little") for i in (8, 12))
        file.seek(at)
        head = file.read(16)
        if head.startswith(PNG):
            return io.BytesIO(head + file.read(length - 16))
        # A bitmap without its file header, and as high again for its mask.
        width, height = (int.from_bytes(head[i : i + 4], "little", signed=True) for i in (4, 8))
        if abs(width * height) > 2 * 256 * 256:
            raise ValueError("its picture is larger than an icon's can be")
    file.seek(0)
    return file


def open_as(kind: str, file: BinaryIO) -> Image.Image:
    """The image, of which nothing is decoded yet. Raises whatever Pillow does, and InvalidImage for what has to be
    installed."""
    file.seek(0)
    try:
        image = _opener(kind)(split_png(file).pixels if kind == "PNG" else file, "")
    except SyntaxError as error:
        raise ValueError(_REASONS.get(str(error), str(error))) from error
    tiles = getattr(image, "tile", None)
    if tiles and kind == "PNG":
        _scale_key(image, tiles[0].args)
    if tiles and kind == "TIFF":
        image.tile = [_fix_tile(tile, image) for tile in tiles]  # type: ignore[attr-defined]
    return image


def _opener(kind: str) -> Callable[..., Image.Image]:
    module, _, name = _OPENERS[kind].rpartition(".")
    try:
        opener: Callable[..., Image.Image] = getattr(import_module(module), name)
    except ImportError:
        if kind != "HEIC":
            raise
        raise InvalidImage(NO_HEIC) from None
    return opener


# --- what Pillow reads wrongly ---------------------------------------------------------------


def _scale_key(image: Image.Image, rawmode: Any) -> None:
    """The transparent grey of a PNG, which is a sample of its own bits, as the 8 bits that it becomes."""
    bits = {"L;2": 2, "L;4": 4, "L": 8}.get(rawmode)
    if bits and isinstance(key := image.info.get("transparency"), int):
        image.info["transparency"] = (key & (2**bits - 1)) * 255 // (2**bits - 1)


def has_key_of_16_bits(image: Image.Image) -> bool:
    """Whether it is a PNG, not yet decoded, one of whose colours of 16 bits in each band is transparent."""
    tiles = getattr(image, "tile", None)
    return bool(image.format == "PNG" and tiles and tiles[0].args == "RGB;16B" and "transparency" in image.info)


def lower_bytes(image: Image.Image, file: BinaryIO) -> Image.Image | None:
    """The lower bytes of the samples of such a PNG, of which Pillow keeps the upper ones alone; None of others."""
    if not has_key_of_16_bits(image):
        return None
    with open_as("PNG", file) as low:
        # The other byte of each comes where the samples are told to have the little end first.
        low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]  # type: ignore[attr-defined]
        low.load()
        low.info.pop("transparency")
        return low


def _fix_tile(tile: Any, image: Image.Image) -> Any:
    """A tile of a TIFF with the right byte order."""
    rawmode, *more = tile.args
    if tile.codec_name == "libtiff":
        # It has put the bytes in the machine's order already.
        return tile._replace(args=(_NATIVE.get(rawmode, rawmode), *more))
    tags = image.tag_v2  # type: ignore[attr-defined]
    if len(rawmode) == 1 and rawmode in "RGBA" and tags.get(BITS, (8,))[0] == 16:
        return tile._replace(args=(f"{rawmode};16{'L' if tags.prefix == b'II' else 'B'}", *more))
    return tile
