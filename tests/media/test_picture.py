"""An image that waits as its file: what is told of it, and that its pixels are those of load_image."""

import io
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from galago.errors import InvalidImage
from galago.media.image import decoding_bytes, load_image
from galago.media.picture import open_picture
from galago.media.samples import STRIP

WIDTH, HEIGHT = 131, 2 * STRIP + 7
RNG = np.random.default_rng(1)
RGB = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
ALPHA = Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH), np.uint8))
GREY16 = Image.fromarray(RNG.integers(0, 65536, (HEIGHT, WIDTH)).astype(np.uint16))


def with_alpha(image: Image.Image) -> Image.Image:
    image = image.copy()
    image.putalpha(ALPHA)
    return image


def saved(image: Image.Image, kind: str, **more: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


FILES: dict[str, bytes] = {
    "png": saved(RGB, "PNG"),
    "png alpha": saved(with_alpha(RGB), "PNG"),
    "png grey alpha": saved(with_alpha(RGB.convert("L")), "PNG"),
    "png palette": saved(RGB.quantize(64), "PNG"),
    "png palette, one colour clear": saved(RGB.quantize(64), "PNG", transparency=3),
    "png palette with alphas": saved(RGB.quantize(64), "PNG", transparency=bytes(range(64))),
    "png 16 bit": saved(GREY16, "PNG"),
    "png bilevel": saved(RGB.convert("1"), "PNG"),
    "jpeg": saved(RGB, "JPEG"),
    "jpeg progressive": saved(RGB, "JPEG", progressive=True),
    "jpeg cmyk": saved(RGB.convert("CMYK"), "JPEG"),
    "webp": saved(RGB, "WEBP"),
    "webp alpha": saved(with_alpha(RGB), "WEBP"),
    "gif": saved(RGB.quantize(64), "GIF"),
    "tiff": saved(RGB, "TIFF"),
    "tiff on its side": saved(RGB, "TIFF", tiffinfo={274: 6}),
    "bmp": saved(RGB, "BMP"),
}


def whole(data: bytes) -> Image.Image:
    """Brought to RGB all at once."""
    with Image.open(io.BytesIO(data)) as image:
        image.load()
        if image.has_transparency_data:
            image = image.convert("RGBA")
            flat = Image.new("RGB", image.size, "white")
            flat.paste(image, mask=image.getchannel("A"))
            return flat
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) / 65535 * 255).round().astype(np.uint8)).convert("RGB")
        return image.convert("RGB")


@pytest.mark.parametrize("name", FILES)
def test_the_pixels_of_every_kind(name: str) -> None:
    data = FILES[name]
    picture, expected = open_picture(data), whole(data)
    image = picture.decode()
    assert picture.size == image.size == expected.size and image.mode == "RGB"
    assert image.tobytes() == load_image(data).tobytes() == expected.tobytes()
    assert picture.mirror().decode().tobytes() == ImageOps.mirror(expected).tobytes()
    assert picture.mirror().mirror().decode().tobytes() == expected.tobytes()


@pytest.mark.parametrize("name", FILES)
def test_what_decoding_needs_is_told_before(name: str) -> None:
    with Image.open(io.BytesIO(FILES[name])) as image:
        needs = decoding_bytes(image)
        image.load()
        own = {"1": 1, "L": 1, "P": 1, "I;16": 2}.get(image.mode, 4)
    copied = 0 if image.mode == "RGB" and name not in ("webp", "webp alpha") else 4
    assert needs >= WIDTH * HEIGHT * (own + copied)
    assert open_picture(FILES[name]).mirror().needs > needs


def test_only_the_header_is_read_at_first() -> None:
    data = FILES["png"]
    cut = open_picture(data[: len(data) // 2], param="messages.0")
    assert cut.size == (WIDTH, HEIGHT)
    with pytest.raises(InvalidImage, match="truncated") as said:
        cut.decode()
    assert said.value.param == "messages.0"
    for broken, why in ((b"", "empty"), (b"nothing", "not an image")):
        with pytest.raises(InvalidImage, match=why):
            open_picture(broken)
    with pytest.raises(InvalidImage, match="pixels"):
        open_picture(data, max_pixels=100)


def test_an_image_that_is_rgb_is_not_copied() -> None:
    assert load_image(RGB) is RGB


def test_memory_that_runs_out_is_not_the_images_fault() -> None:
    class Full(io.BytesIO):
        def read(self, *sizes: Any) -> bytes:
            if self.tell() > 1000:
                raise MemoryError
            return super().read(*sizes)

    with pytest.raises(MemoryError):
        load_image(Full(FILES["png"]))


@pytest.mark.parametrize(
    ("size", "most", "seen"), [((400, 100), 200, (200, 50)), ((90, 300), 100, (30, 100)), ((5, 9), 9, (5, 9))]
)
def test_a_side_is_limited(size: tuple[int, int], most: int, seen: tuple[int, int]) -> None:
    image = Image.new("RGB", size, "red")
    image.paste("blue", (0, 0, size[0] // 2, size[1]))
    out = io.BytesIO()
    image.save(out, "PNG")
    for picture in (open_picture(out.getvalue()), open_picture(out.getvalue()).mirror()):
        limited = picture.limit_side(most)
        left = limited.decode()
        assert limited.size == left.size == seen and (limited is picture) == (size == seen)
        assert left.getpixel((0, 0)) == picture.decode().getpixel((0, 0))
    assert picture.limit_side(most).limit_side(most - 1).decode().size[0] <= seen[0]


@pytest.mark.parametrize("kind", FILES)
def test_only_what_every_decoder_shows_the_same_is_plain(kind: str) -> None:
    assert open_picture(FILES[kind]).is_plain == (kind in ("png", "jpeg", "jpeg progressive"))


def test_what_is_turned_cut_off_or_made_smaller_is_not_plain() -> None:
    exif = Image.Exif()
    exif[274] = 6
    for kind in ("PNG", "JPEG"):
        data = saved(RGB, kind)
        plain = open_picture(data)
        assert plain.is_plain and plain.limit_side(HEIGHT).is_plain and open_picture(saved(ALPHA, kind)).is_plain
        assert not plain.mirror().is_plain and not plain.limit_side(HEIGHT - 1).is_plain
        assert not open_picture(saved(RGB, kind, exif=exif)).is_plain
        assert not open_picture(data[:-3]).is_plain
    moving = saved(RGB, "PNG", save_all=True, append_images=[RGB.rotate(180)])
    clear = saved(RGB, "PNG", transparency=(1, 2, 3))
    deep = bytearray(saved(RGB.convert("L"), "PNG"))
    deep[24] = 4  # bits of a sample
    deep[29:33] = zlib.crc32(deep[12:29]).to_bytes(4, "big")
    assert not any(open_picture(bytes(data)).is_plain for data in (moving, clear, deep))
