"""Every encoded image is looked at as viewers show it; what is handed over as pixels is not touched."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from written import chunk, png, tiff

from galago.media.clip import Clip
from galago.media.image import decoding_bytes, load_image, read_header
from galago.media.load import load_media
from galago.media.orientation import MIRRORED
from galago.media.picture import open_picture
from galago.media.samples import STRIP, to_rgb
from galago.media.timeline import FrameSampling

W, H = 37, STRIP + 9
FLAT = np.random.default_rng(5).integers(0, 256, (H // 4 + 1, W // 4 + 1, 3), np.uint8)
UPRIGHT = FLAT.repeat(4, 0).repeat(4, 1)[:H, :W]
ORIENTATIONS = range(1, 9)


def turned_away(upright: np.ndarray, orientation: int) -> np.ndarray:
    """Rows and columns of a file from what the tag says of its first row and column."""
    row, column = {
        1: ("top", "left"),
        2: ("top", "right"),
        3: ("bottom", "right"),
        4: ("bottom", "left"),
        5: ("left", "top"),
        6: ("right", "top"),
        7: ("right", "bottom"),
        8: ("left", "bottom"),
    }[orientation]
    pixels = upright.swapaxes(0, 1) if row in ("left", "right") else upright
    pixels = pixels[::-1] if row in ("bottom", "right") else pixels
    return pixels[:, ::-1] if column in ("bottom", "right") else pixels


def exif(orientation: Any, kind: int = 3) -> bytes:
    return b"MM\0*\0\0\0\x08\0\x01" + struct.pack(">HHIHHI", 274, kind, 1, orientation, 0, 0)


def saved(pixels: np.ndarray, kind: str, orientation: int) -> bytes:
    out = io.BytesIO()
    told = Image.Exif()
    told[274] = orientation
    options = {
        "WEBP": {"lossless": True},
        "JPEG": {"quality": 100, "subsampling": 0},
        "AVIF": {"quality": 100, "subsampling": "4:4:4"},
    }
    Image.fromarray(np.ascontiguousarray(pixels)).save(out, kind, exif=told, **options.get(kind, {}))
    return out.getvalue()


def files(orientation: int) -> dict[str, bytes]:
    pixels = turned_away(UPRIGHT, orientation)
    found = {kind: saved(pixels, kind, orientation) for kind in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF")}
    wide, grey = pixels.astype(np.uint32), pixels[..., :1].astype(np.uint32)
    found["PNG by hand"] = png(wide, before=chunk(b"eXIf", exif(orientation)))
    found["PNG, told at its end"] = png(wide, after=chunk(b"eXIf", exif(orientation)))
    found["PNG of 16 bits"] = png(wide * 257, 16, before=chunk(b"eXIf", exif(orientation)))
    found["grey PNG of 16 bits"] = png(grey * 257, 16, before=chunk(b"eXIf", exif(orientation)))
    found["TIFF by hand"] = tiff(wide, tags={274: [orientation]})
    found["TIFF of 16 bits"] = tiff(grey * 257, 16, tags={274: [orientation]})
    return found


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_every_format_is_turned(orientation: int) -> None:
    for name, data in files(orientation).items():
        expected = UPRIGHT[..., :1].repeat(3, -1) if "grey" in name or name == "TIFF of 16 bits" else UPRIGHT
        picture = open_picture(data)
        assert picture.size == (W, H) == read_header(io.BytesIO(data), name).size, name
        far = 40 if name in ("JPEG", "AVIF") else 0
        for image, wanted in ((load_image(data), expected), (picture.mirror().decode(), expected[:, ::-1])):
            assert image.size == (W, H), name
            off = np.abs(np.asarray(image).astype(int) - wanted)
            assert off.max() <= far and off.mean() < 3, (name, orientation, off.max())
        assert np.array_equal(picture.decode(), load_image(data))
        assert np.array_equal(picture.mirror().mirror().decode(), load_image(data))


def test_what_turning_takes_is_counted() -> None:
    for orientation in ORIENTATIONS:
        for name, data in files(orientation).items():
            with Image.open(io.BytesIO(data)) as image:
                own = {"L": 1, "I;16": 2}.get(image.mode, 4)
            copy = 0 if orientation == 1 and name.startswith(("JPEG", "PNG")) else 4
            copy = 0 if orientation == 1 and name.startswith("TIFF") and "16" not in name else copy
            assert open_picture(data).needs >= W * H * (own + copy), (name, orientation)
    upright, turned = (Image.open(io.BytesIO(files(o)["JPEG"])) for o in (1, 6))
    assert decoding_bytes(turned, 6) > decoding_bytes(upright)


@pytest.mark.parametrize(
    "said", [exif(0), exif(9), exif(65535), exif(6, kind=2), b"nonsense", b"", b"MM\0*\0\0\0\xff" * 9, exif(6)[:15]]
)
def test_what_makes_no_sense_is_upright(said: bytes) -> None:
    image = load_image(png(UPRIGHT.astype(np.uint32), before=chunk(b"eXIf", said)))
    assert np.array_equal(np.asarray(image), UPRIGHT)


def test_images_and_arrays_are_taken_as_they_are() -> None:
    data = files(6)["JPEG"]
    with Image.open(io.BytesIO(data)) as image:
        assert load_image(image).size == (H, W) and image.getexif()[274] == 6
    assert np.array_equal(np.asarray(load_image(turned_away(UPRIGHT, 6))), turned_away(UPRIGHT, 6))


@pytest.mark.parametrize("kind", ["WEBP", "PNG"])
def test_what_moves_is_turned_as_its_first_frame_is(kind: str) -> None:
    told, out = Image.Exif(), io.BytesIO()
    told[274] = 6
    frames = [Image.fromarray(np.ascontiguousarray(turned_away(p, 6))) for p in (UPRIGHT, 255 - UPRIGHT)]
    frames[0].save(out, kind, save_all=True, append_images=frames[1:], exif=told, duration=500, lossless=True)
    clip = load_media(out.getvalue(), lambda: FrameSampling(fps=2))
    assert isinstance(clip, Clip) and [frame.size for frame in clip.frames] == [(W, H)] * 2
    assert np.array_equal(np.asarray(clip.frames[0]), np.asarray(load_image(out.getvalue())))
    assert np.array_equal(np.asarray(clip.frames[1]), 255 - UPRIGHT)


def test_mirroring_is_another_orientation() -> None:
    image = Image.fromarray(UPRIGHT)
    for orientation in ORIENTATIONS:
        both = [np.asarray(to_rgb(image, o)) for o in (orientation, MIRRORED[orientation])]
        assert np.array_equal(both[0], both[1][:, ::-1])
