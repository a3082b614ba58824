"""JPEG files that lack their end: a few lines may be missing, and that is told."""

import io
import logging
from typing import Any

import numpy as np
import pytest
from PIL import Image

from galago.errors import InvalidImage
from galago.media.image import DecodedImage, decode, load_image


def photo(**options: Any) -> bytes:
    """Detail everywhere, 16 rows of blocks."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (32, 32, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    out = io.BytesIO()
    Image.fromarray(rows).save(out, "JPEG", quality=85, **options)
    return out.getvalue()


JPEGS = {
    "plain": photo(),
    "without subsampling": photo(subsampling=0),
    "progressive": photo(progressive=True),
    "restarting": photo(restart_marker_rows=1),
    "restarting often": photo(restart_marker_blocks=1),
    "restarting rarely": photo(restart_marker_rows=5),
}


@pytest.mark.parametrize("name", JPEGS)
def test_a_jpeg_without_its_mark_at_the_end_is_whole(name: str, caplog: pytest.LogCaptureFixture) -> None:
    data = JPEGS[name]
    expected = np.asarray(load_image(data))
    assert not caplog.messages
    for cut in (1, 2):
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            assert np.array_equal(np.asarray(load_image(data[:-cut])), expected)
        assert caplog.messages == ["the image is cut off: the mark at its end is missing"]


@pytest.mark.parametrize("name", [name for name in JPEGS if name != "progressive"])
def test_a_few_lines_may_be_missing_and_no_more(name: str) -> None:
    data = JPEGS[name]
    expected = np.asarray(load_image(data)).astype(int)

    def tried(share: float) -> DecodedImage | None:
        try:
            return decode(io.BytesIO(data[: int(len(data) * share)]), "photo")
        except InvalidImage as error:
            assert "truncated" in str(error).lower()
            return None

    few = tried(0.97)
    said = {f"photo is cut off: up to {n} of its last lines are missing" for n in (8, 16, 24, 32)}
    assert few and len(few.warnings) == 1 and few.warnings[0] in said
    assert np.array_equal(np.asarray(few.image)[:224], expected[:224].astype(np.uint8))
    assert all(tried(share) is None for share in (0.8, 0.5, 0.2, 0.05))


def test_a_progressive_jpeg_lacks_nothing_or_is_refused() -> None:
    data = JPEGS["progressive"]
    expected = np.asarray(load_image(data)).astype(int)
    for share in (0.99, 0.97, 0.9, 0.7, 0.4, 0.2):
        try:
            image = decode(io.BytesIO(data[: int(len(data) * share)]), "photo").image
        except InvalidImage:
            continue
        off = np.abs(np.asarray(image).astype(int) - expected)[:224]
        assert off.max() == 0, share


def test_a_blank_jpeg_cut_in_the_middle_is_refused() -> None:
    """What is missing looks like what is there."""
    out = io.BytesIO()
    Image.new("RGB", (2000, 2000)).save(out, "JPEG")
    data = out.getvalue()
    body = data.index(b"\xff\xda")
    with pytest.raises(InvalidImage, match="truncated"):
        load_image(data[: body + (len(data) - body) // 2])


@pytest.mark.parametrize("side", [1, 7, 8, 9, 16, 17])
def test_small_jpegs(side: int) -> None:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(1).integers(0, 256, (side, side, 3), np.uint8)).save(out, "JPEG")
    assert np.array_equal(load_image(out.getvalue()[:-2]), load_image(out.getvalue()))
