"""Files as phones, browsers and image generators write them: what is around the pixels does no harm."""

import io
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written import chunk, ico, png

from galago.errors import InvalidImage
from galago.media.image import load_image
from galago.media.load import load_media
from galago.media.picture import open_picture
from galago.media.png import split_png

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
LARGE = zlib.compress(bytes(3 << 20))


def saved(kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, kind, **options)
    return out.getvalue()


TEXTS = {
    "zTXt": chunk(b"zTXt", b"prompt\0\0" + LARGE),
    "iTXt": chunk(b"iTXt", b"parameters\0\1\0\0\0" + LARGE),
    "iCCP": chunk(b"iCCP", b"profile\0\0" + LARGE),
    "tEXt": chunk(b"tEXt", b"workflow\0" + bytes(70 << 20)),
    "many": chunk(b"zTXt", b"prompt\0\0" + zlib.compress(bytes(1 << 20))) * 80,
}


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("place", ["before", "after"])
def test_texts_and_profiles_of_a_png_are_left_out(name: str, place: str) -> None:
    data = png(PIXELS.astype(np.uint32), **{place: TEXTS[name]})
    assert np.array_equal(np.asarray(load_image(data)), PIXELS)
    assert np.array_equal(np.asarray(open_picture(data).decode()), PIXELS)
    image = load_media(data, lambda: None)
    assert isinstance(image, Image.Image) and np.array_equal(np.asarray(image), PIXELS)


def test_a_png_without_its_texts_is_a_png() -> None:
    plain = png(PIXELS.astype(np.uint32))
    noted = png(
        PIXELS.astype(np.uint32), before=chunk(b"tEXt", b"a\0b") * 2, after=chunk(b"pHYs", bytes(9)) + TEXTS["zTXt"]
    )
    left = split_png(io.BytesIO(noted)).pixels
    assert left.read() == png(PIXELS.astype(np.uint32), after=chunk(b"pHYs", bytes(9)))
    assert left.seek(-4, io.SEEK_END) == len(plain) + 21 - 4 and left.tell() == len(plain) + 17
    assert split_png(io.BytesIO(plain)).pixels.read() == plain


@pytest.mark.parametrize("share", [0.1, 0.3, 0.6, 0.9, 0.99])
def test_a_cut_png_stays_one(share: float) -> None:
    data = png(PIXELS.astype(np.uint32), before=chunk(b"tEXt", b"a\0b") * 20)
    with pytest.raises(InvalidImage):
        load_image(data[: int(len(data) * share) - 20])


@pytest.mark.parametrize("kind", ["JPEG2000", "TGA", "ICO"])
def test_further_formats(kind: str) -> None:
    data = saved(kind, **({"sizes": [(30, 20)]} if kind == "ICO" else {}))
    assert np.array_equal(np.asarray(load_image(data)), PIXELS)
    assert open_picture(data).size == (30, 20)
    for cut in (len(data) // 2, len(data) // 4):
        with pytest.raises(InvalidImage):
            load_image(data[:cut])


def test_a_codestream_of_jpeg_2000() -> None:
    data = saved("JPEG2000", no_jp2=True)
    assert data.startswith(b"\xff\x4f") and np.array_equal(np.asarray(load_image(data)), PIXELS)


def test_a_compressed_tga_needs_its_footer() -> None:
    data = saved("TGA", compression="tga_rle")
    assert np.array_equal(np.asarray(load_image(data)), PIXELS)
    with pytest.raises(InvalidImage, match="known format"):
        load_image(data[:-26])


@pytest.mark.parametrize("seed", range(40))
def test_noise_is_no_image(seed: int) -> None:
    """Formats without a mark at their beginning are not found everywhere."""
    noise = bytearray(np.random.default_rng(seed).integers(0, 12, 3000, np.uint8).tobytes())
    noise[0], noise[16] = 0, 24
    with pytest.raises(InvalidImage, match="is not an image of a known format"):
        load_image(bytes(noise))


def test_an_icon_may_hold_more_than_it_says_but_no_more_than_is_allowed() -> None:
    large = np.zeros((300, 300, 3), np.uint32)
    data = ico((300 % 256, 300 % 256, png(large)))
    assert open_picture(data).size == (300, 300) == load_image(data).size
    with pytest.raises(InvalidImage, match="300 x 300 pixels"):
        open_picture(data, max_pixels=1000)


def test_several_pictures_in_one_jpeg() -> None:
    """As cameras write them beside a preview (MPO)."""
    out = io.BytesIO()
    first = Image.fromarray(PIXELS.repeat(8, 0).repeat(8, 1))
    first.save(out, "MPO", save_all=True, append_images=[first.resize((30, 20))], quality=95)
    assert load_image(out.getvalue()).size == (240, 160)


# --- HEIC ------------------------------------------------------------------------------------


def heic(orientation: int = 1) -> bytes:
    heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif (pip install 'galago[heic]')")
    file = heif.from_pillow(Image.fromarray(PIXELS.repeat(4, 0).repeat(4, 1)))
    out, exif = io.BytesIO(), Image.Exif()
    exif[274] = orientation
    file.save(out, quality=-1, chroma=444, exif=exif.tobytes())
    return out.getvalue()


def test_heic() -> None:
    wide = PIXELS.repeat(4, 0).repeat(4, 1).astype(int)
    data = heic()
    assert open_picture(data).size == (120, 80)
    for image in (load_image(data), open_picture(data).decode(), load_media(data, lambda: None)):
        assert isinstance(image, Image.Image) and np.abs(np.asarray(image) - wide).mean() < 3
    assert open_picture(heic(6)).size == load_image(heic(6)).size == (80, 120)
    with pytest.raises(InvalidImage):
        load_image(data[: len(data) // 2])


def test_heic_without_what_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif.as_plugin", None)
    data = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100)
    for load in (load_image, open_picture, lambda data: load_media(data, lambda: None)):
        with pytest.raises(InvalidImage, match=r"a HEIC picture, .* pip install 'galago\[heic\]', or save it as JPEG"):
            load(data)
