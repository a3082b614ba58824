"""Images come from anywhere, and what is none is told in one line."""

import base64
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galago.errors import InvalidImage
from galago.media.image import load_image
from galago.media.source import decode_data_url


def encoded(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF", "JPEG", "WEBP", "AVIF"])
def test_every_format_by_bytes_and_by_a_path_with_another_name(kind, tmp_path):
    file = tmp_path / "image.txt"
    file.write_bytes(encoded(picture(), kind))
    for source in (file, str(file), file.read_bytes()):
        image = load_image(source)
        assert (image.mode, image.size) == ("RGB", (30, 20))
        if kind in ("PNG", "BMP", "TIFF", "PPM"):
            assert np.array_equal(np.asarray(image), np.asarray(picture()))


def test_a_pillow_image_passes_through():
    assert np.array_equal(np.asarray(load_image(picture())), np.asarray(picture()))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "CMYK", "YCbCr", "HSV", "F", "I"])
def test_every_mode_becomes_rgb(mode):
    assert load_image(Image.new(mode, (3, 2))).mode == "RGB"


def test_alpha_is_composited_over_white():
    image = Image.new("RGBA", (3, 1))
    for x, pixel in enumerate([(10, 20, 30, 255), (0, 0, 0, 0), (0, 0, 0, 128)]):
        image.putpixel((x, 0), pixel)
    assert np.asarray(load_image(encoded(image)))[0].tolist() == [[10, 20, 30], [255] * 3, [127] * 3]


@pytest.mark.parametrize("mode", ["LA", "PA", "RGBa"])
def test_transparency_of_other_modes_is_white_too(mode):
    assert load_image(Image.new(mode, (1, 1))).getpixel((0, 0)) == (255, 255, 255)


def test_a_palette_with_a_transparent_colour_is_white_there():
    image = Image.new("P", (2, 1), 1)
    image.putpalette([0, 0, 0, 200, 100, 50])
    image.putpixel((0, 0), 0)
    pixels = np.asarray(load_image(encoded(image, transparency=0)))[0]
    assert pixels.tolist() == [[255, 255, 255], [200, 100, 50]]


def test_sixteen_bit_greys_are_scaled():
    image = Image.fromarray(np.array([[0, 256, 32768, 65535]], dtype=np.uint16))
    assert np.asarray(load_image(encoded(image)))[0, :, 0].tolist() == [0, 1, 128, 255]


def test_the_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), c) for c in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


def test_too_many_pixels_are_refused_from_the_header():
    # No pixels follow these headers, so decoding would fail.
    with pytest.raises(InvalidImage, match=r"8001 x 8000 pixels; 64 million"):
        load_image(png_header(8001, 8000))
    with pytest.raises(InvalidImage, match="60000 x 60000 pixels; 64 million"):
        load_image(png_header(60000, 60000))
    with pytest.raises(InvalidImage, match=r"30 x 20 pixels"):
        load_image(picture(), max_pixels=599)
    assert load_image(encoded(picture()), max_pixels=600).size == (30, 20)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP"])
def test_truncated_bytes_are_refused(kind):
    data = encoded(picture(), kind)
    with pytest.raises(InvalidImage):
        load_image(data[: len(data) * 2 // 3])


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"", "is empty"),
        (b"hello", "not an image of a known format"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not an image of a known format"),
        ("/no/such/file.png", "No such file"),
        ("with\0zero.png", "cannot read"),
        ("/", "cannot read /"),
        ("data:image/png;base64,", "is empty"),
        ("data:image/png,hello", "data: URL"),
        ("ftp://example.com/a.png", "cannot read"),
    ],
)
def test_what_is_no_image_is_told_why(source, said):
    with pytest.raises(InvalidImage, match=said):
        load_image(source)


def test_errors_have_one_line_and_name_the_file(tmp_path: Path):
    file = tmp_path / "photo.png"
    file.write_bytes(encoded(picture())[:60])
    with pytest.raises(InvalidImage) as error:
        load_image(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


KINDS = ("PNG", "GIF", "BMP", "WEBP", "TIFF", "PPM", "JPEG", "JPEG2000", "ICO", "TGA")


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(
    st.binary(max_size=200),
    st.sampled_from(KINDS),
    st.integers(0, 60),
)
@settings(max_examples=200)
def test_damaged_bytes_never_do_worse_than_invalid_image(junk, kind, at):
    data = encoded(picture(), kind)
    for damaged in (junk, data[:at] + junk + data[at + len(junk) :]):
        try:
            assert load_image(damaged).mode == "RGB"
        except InvalidImage as error:
            assert "\n" not in str(error)


DATA = bytes(range(250)) + b"?>~~"


@pytest.mark.parametrize("head", ["", "data:image/png;base64,", "data:text/plain;charset=x;base64,", "DATA:;BASE64,"])
@pytest.mark.parametrize("spell", [base64.b64encode, base64.urlsafe_b64encode, base64.encodebytes])
@pytest.mark.parametrize("strip", ["", "="])
def test_base64_in_every_spelling(head, spell, strip):
    text = head + spell(DATA).decode()
    assert decode_data_url(text.strip().rstrip(strip) if strip else text) == DATA


@pytest.mark.parametrize("text", ["", "   ", "data:", "data:image/png", "data:image/png;base64", "a", "ab*d", "äöüä"])
def test_what_is_not_base64(text):
    with pytest.raises(InvalidImage):
        decode_data_url(text)


def test_a_data_url_is_an_image_whatever_type_it_claims():
    url = "data:image/jpeg;base64," + base64.b64encode(encoded(picture())).decode()
    assert load_image(url).size == (30, 20)


@pytest.mark.parametrize("text", ["P1 is a point", "P6", "P5\x00", "BM", "\x00\x00\x01\x00", "Please look", "II*"])
def test_text_is_no_image(text: str) -> None:
    with pytest.raises(InvalidImage):
        load_image(text.encode())
