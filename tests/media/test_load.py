"""What is an image and what is a video, by how it begins."""

import io
import sys
from typing import Any

import clips
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galago.errors import InvalidImage, InvalidVideo, UnsupportedTask
from galago.media.clip import Clip
from galago.media.load import load_media
from galago.media.timeline import FrameSampling

VIDEOS = {
    "mp4": ("mp4", "libx264"),
    "mov": ("mov", "mpeg4"),
    "webm": ("webm", "libvpx-vp9"),
    "mkv": ("matroska", "libx264"),
    "avi": ("avi", "mpeg4"),
    "mpegts": ("mpegts", "libx264"),
    "m2ts": ("mpegts", "libx264"),
    "mpeg": ("mpeg", "mpeg1video"),
    "flv": ("flv", "flv1"),
    "wmv": ("asf", "mpeg4"),
}
ANIMATIONS = ("GIF", "WEBP", "PNG")
IMAGES = (*ANIMATIONS, "JPEG", "BMP", "TIFF", "PPM", "AVIF")


def video(name: str) -> bytes:
    kind, codec = VIDEOS[name]
    options = {"mpegts_m2ts_mode": "1"} if name == "m2ts" else {}
    return clips.encoded(clips.pictures(20), kind, codec=codec, fps=25, **options)


def image(kind: str) -> bytes:
    file = io.BytesIO()
    clips.numbered(3).save(file, kind)
    return file.getvalue()


def load(source: Any) -> Image.Image | Clip:
    return load_media(source, FrameSampling)


@pytest.mark.parametrize("name", VIDEOS)
def test_videos_are_known(name: str) -> None:
    data = video(name)
    clip = load(data)
    assert isinstance(clip, Clip) and clips.number_in(clip.frames[0]) == 0


@pytest.mark.parametrize("kind", ANIMATIONS)
def test_an_image_that_moves_is_a_video(kind: str) -> None:
    clip = load(clips.animated(clips.pictures(3), kind, 1000))
    assert isinstance(clip, Clip) and [clips.number_in(frame) for frame in clip.frames] == [0, 1, 2]


@pytest.mark.parametrize("kind", IMAGES)
def test_an_image_that_does_not_is_an_image(kind: str) -> None:
    found = load(image(kind))
    assert isinstance(found, Image.Image) and clips.number_in(found) == 3


@pytest.mark.parametrize("frames", [FrameSampling(fps=25), FrameSampling(fps=25, max_frames=5)])
def test_of_a_video_the_frames_that_are_asked_for(frames: FrameSampling) -> None:
    clip = load_media(video("mp4"), lambda: frames)
    assert isinstance(clip, Clip) and len(clip.frames) == min(20, frames.max_frames)


def test_which_frames_is_asked_of_videos_alone() -> None:
    def asked() -> FrameSampling:
        raise AssertionError

    for kind in IMAGES:
        load_media(image(kind), asked)


def test_where_videos_are_not_looked_at(tmp_path: Any) -> None:
    path = tmp_path / "clip"
    path.write_bytes(video("mp4"))
    with pytest.raises(UnsupportedTask, match="clip is a video, and this model looks at images only; `galago watch`"):
        load_media(path, lambda: None)
    for kind in ANIMATIONS:
        found = load_media(clips.animated(clips.pictures(3), kind, 100), lambda: None)
        assert isinstance(found, Image.Image) and clips.number_in(found) == 0


@pytest.mark.parametrize(
    ("source", "error", "said"),
    [
        (b"", InvalidImage, "the file is empty"),
        (b"hello", InvalidImage, r"the file is not an image \(JPEG, .*\) or a video \(MP4, .*\) of a known format"),
        (bytes(1000), InvalidImage, "not an image"),
        (b"\x00\x00\x00\x20ftypheic" + bytes(100), InvalidImage, "the file (cannot be decoded|is a HEIC picture)"),
        (image("PNG")[:80], InvalidImage, "cannot be decoded"),
        (image("GIF")[:20], InvalidImage, "the file"),
        (clips.only_sound(), InvalidVideo, "the video has no pictures, only sound"),
        (clips.no_frames(), InvalidVideo, "the video has no frames"),
        (video("mp4")[:300], InvalidVideo, "the video is not a video .*, or lacks its index"),
        ("/no/such/clip.mp4", InvalidImage, "cannot read /no/such/clip.mp4: No such file"),
    ],
)
def test_what_is_neither(source: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said) as told:
        load(source)
    assert "\n" not in str(told.value)


def test_images_need_no_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    data = video("mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    assert isinstance(load(image("JPEG")), Image.Image)
    with pytest.raises(UnsupportedTask, match="PyAV"):
        load(data)


@pytest.mark.filterwarnings("ignore::UserWarning")
@given(st.binary(max_size=500), st.sampled_from(["GIF", "PNG", "WEBP"]), st.integers(0, 80))
@settings(max_examples=60)
def test_damaged_bytes_never_do_worse_than_an_error(junk: bytes, kind: str, at: int) -> None:
    data = clips.animated(clips.pictures(2), kind, 100)
    for damaged in (junk, data[:at] + junk + data[at + len(junk) :]):
        try:
            found = load(damaged)
            frame = found.frames[0] if isinstance(found, Clip) else found
            assert np.asarray(frame).ndim == 3
        except (InvalidImage, InvalidVideo) as error:
            assert "\n" not in str(error)
