"""The right frames of real video files, within bounds, and in one line what is wrong with the others."""

import io
import logging
import subprocess
import sys
from pathlib import Path

import av
import clips
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galago.errors import InvalidRequest, InvalidVideo, UnsupportedTask
from galago.media.clip import Clip
from galago.media.timeline import FrameSampling, VideoLimits
from galago.media.video import load_clip

KINDS = {
    "mp4": lambda images: clips.encoded(images, "mp4"),
    "mp4-sound": lambda images: clips.encoded(images, "mp4", sound=8.0),
    "mov-mpeg4": lambda images: clips.encoded(images, "mov", codec="mpeg4"),
    "webm": lambda images: clips.encoded(images, "webm", codec="libvpx-vp9"),
    "webm-vp8": lambda images: clips.encoded(images, "webm", codec="libvpx"),
    "mkv": lambda images: clips.encoded(images, "matroska"),
    "avi": lambda images: clips.encoded(images, "avi", codec="mpeg4"),
    "mpegts": lambda images: clips.encoded(images, "mpegts"),
    "gif": lambda images: clips.animated(images, "GIF", 100),
    "webp": lambda images: clips.animated(images, "WEBP", 100, quality=80),
    "apng": lambda images: clips.animated(images, "PNG", 100),
}


def numbers(clip: Clip) -> list[int]:
    return [clips.number_in(frame) for frame in clip.frames]


@pytest.fixture(scope="module")
def video() -> bytes:
    """50 frames, 10 of them a second."""
    return clips.encoded(clips.pictures(50))


@pytest.fixture(autouse=True)
def no_warnings(request, caplog):
    """Whole files are read without one."""
    yield
    if "cut" not in request.node.name:
        assert not caplog.records


# --- which frames ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_frames_of_every_format(kind):
    clip = load_clip(KINDS[kind](clips.pictures(50)))
    assert numbers(clip) == [0, 12, 24, 36, 49]
    assert clip.times == pytest.approx([0, 1.2, 2.4, 3.6, 4.9], abs=2e-3)
    assert clip.duration == pytest.approx(5, abs=2e-3)
    assert {(f.mode, f.size) for f in clip.frames} == {("RGB", clips.SIZE)}


@pytest.mark.parametrize(
    ("sampling", "wanted"),
    [
        # As computed by hand from SmolVLM2's rule.
        (FrameSampling(), [0, 12, 24, 36, 49]),
        (FrameSampling(fps=2), [0, 5, 10, 16, 21, 27, 32, 38, 43, 49]),
        (FrameSampling(fps=0.1), [0]),
        (FrameSampling(fps=1000), list(range(50))),
        (FrameSampling(max_frames=3), [0, 24, 49]),
        # Longer than that by more than two seconds, so those are left out.
        (FrameSampling(max_frames=2), [10, 40]),
        (FrameSampling(max_frames=1), [10]),
    ],
)
def test_how_many_frames_and_where(video, sampling, wanted):
    clip = load_clip(video, sampling)
    assert numbers(clip) == wanted
    assert clip.times == pytest.approx([n / 10 for n in wanted])


@pytest.mark.parametrize(("kind", "codec"), [("mp4", "libx264"), ("webm", "libvpx-vp9")])
def test_a_variable_frame_rate_is_sampled_by_time(kind, codec):
    # By count nearly all would be of the first second.
    times = [i / 20 for i in range(20)] + [1.0, 3.0, 5.0, 7.0, 9.0]
    clip = load_clip(clips.encoded(clips.pictures(25), kind, codec=codec, times=times))
    found = numbers(clip)
    assert clip.times == pytest.approx([times[n] for n in found], abs=2e-3)
    assert found[0] == 0 and set(found) >= {20, 21, 22, 23, 24} and len(found) < 9


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_frames_of_an_animation_last_as_long_as_they_say(kind):
    clip = load_clip(clips.animated(clips.pictures(4), kind, [1000, 3000, 500, 500]))
    assert (numbers(clip), clip.times, clip.duration) == ([0, 1, 3], (0, 1, 4.5), 5)


def test_an_animation_that_claims_no_time_is_shown_as_browsers_do():
    assert load_clip(clips.animated(clips.pictures(30), "GIF", 0)).duration == pytest.approx(3)


@pytest.mark.parametrize(("kind", "gop"), [("mp4", 20), ("mp4", 300), ("matroska", 20), ("mpegts", 100)])
def test_ten_minutes(kind, gop):
    data = clips.encoded(clips.pictures(6000, (32, 32)), kind, gop=gop)
    clip = load_clip(data)
    wanted = np.linspace(10, 5990, 64).astype(int).tolist()
    assert numbers(clip) == wanted
    assert clip.times == pytest.approx([n / 10 for n in wanted], abs=2e-3)
    assert clip.duration == pytest.approx(600, abs=2e-3)


# --- what a frame looks like -----------------------------------------------------------------


STORED = {
    90: Image.Transpose.ROTATE_90,
    180: Image.Transpose.ROTATE_180,
    270: Image.Transpose.ROTATE_270,
    "mirrored": Image.Transpose.FLIP_LEFT_RIGHT,
}


@pytest.mark.parametrize("turn", STORED)
def test_a_video_is_turned_as_it_says(turn):
    stored = [clips.numbered(1000 + i, (64, 96)).transpose(STORED[turn]) for i in range(10)]
    data = clips.turned(clips.encoded(stored), clips.MATRICES[turn])
    clip = load_clip(data)
    assert (numbers(clip), clip.frames[0].size) == ([1000], (64, 96))
    with av.open(io.BytesIO(data)) as container:
        # FFmpeg counts the other way round.
        angle = next(container.decode(video=0)).rotation
    assert turn == "mirrored" or (angle + turn) % 360 == 0


def test_no_frame_is_larger_than_asked(video):
    assert load_clip(video, FrameSampling(longest_edge=48)).frames[0].size == (48, 32)
    assert load_clip(video, FrameSampling(longest_edge=97)).frames[0].size == clips.SIZE


def see_through() -> list[Image.Image]:
    """Red with a hole, which moves."""
    images = []
    for left in (16, 20):
        image = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
        image.paste((0, 0, 0, 0), (left, 16, left + 24, 48))
        images += [image] * 5
    return images


@pytest.mark.parametrize(
    "data",
    [
        clips.encoded(see_through(), "mov", codec="qtrle", pixels="argb"),
        clips.encoded(see_through(), "webm", codec="libvpx-vp9", pixels="yuva420p"),
        clips.animated(see_through(), "WEBP", 200),
        clips.animated(see_through(), "PNG", 200),
        clips.animated(see_through(), "GIF", 200, disposal=2),
    ],
    ids=["mov", "webm", "webp", "apng", "gif"],
)
def test_what_is_transparent_is_white(data):
    first = np.asarray(load_clip(data).frames[0]).astype(int)
    assert abs(first[32, 8] - (200, 0, 0)).max() < 16 and abs(first[32, 28] - 255).max() < 16


# --- bounds ----------------------------------------------------------------------------------

PEAK = """
import resource, sys
from galago.media.timeline import FrameSampling
from galago.media.video import load_clip

def peak(path):
    load_clip(path, FrameSampling(longest_edge=64))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(peak(sys.argv[1]), peak(sys.argv[2]))
"""


def test_frames_are_not_held(tmp_path):
    """Of ten times as many frames, ten times as many looked at, next to nothing more is in memory."""
    for seconds in (6, 60):
        data = clips.encoded(clips.pictures(10 * seconds, (640, 480)))
        (tmp_path / f"{seconds}.mp4").write_bytes(data)
    ran = subprocess.run(
        [sys.executable, "-c", PEAK, tmp_path / "6.mp4", tmp_path / "60.mp4"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    few, many = (int(n) * (1 if sys.platform == "darwin" else 1024) for n in ran.stdout.split())
    # All frames would be 550 MB, those that are looked at 55.
    assert many - few < 30e6


@pytest.mark.parametrize("kind", ["mp4", "gif"])
@pytest.mark.parametrize(
    ("limits", "said"),
    [
        (VideoLimits(bytes=1000), "has 0 MiB; .* are allowed"),
        (VideoLimits(seconds=4), "is 5 s long; 4 are allowed"),
        (VideoLimits(frames=49), "frames"),
        (VideoLimits(pixels=96 * 64 - 1), "has 96 x 64 pixels; .* million are allowed"),
    ],
)
def test_what_is_too_large_is_refused(kind, limits, said):
    with pytest.raises(InvalidVideo, match=said):
        load_clip(KINDS[kind](clips.pictures(50)), limits=limits)


@pytest.mark.parametrize(
    "wrong",
    [
        {"fps": 0}, {"fps": -1.0}, {"fps": float("nan")}, {"fps": float("inf")}, {"fps": "1"}, {"max_frames": 0},
        {"max_frames": 513}, {"max_frames": 1.5}, {"longest_edge": 0},
    ],
)  # fmt: skip
def test_settings_out_of_range(wrong):
    with pytest.raises(InvalidRequest) as error:
        FrameSampling(**wrong)
    assert error.value.param in wrong


# --- what is damaged, or not a video ---------------------------------------------------------


def cut(data: bytes) -> bytes:
    return data[: len(data) * 6 // 10]


@pytest.mark.parametrize("kind", ["mp4", "mkv", "mpegts", "gif", "apng"])
def test_of_what_is_cut_off_the_rest_is_used(kind, caplog, tmp_path):
    data = KINDS[kind](clips.pictures(100))
    clip = load_clip(cut(clips.index_first(data, tmp_path) if kind == "mp4" else data))
    found = numbers(clip)
    assert found[0] == 0 and 20 < found[-1] < 80 and len(found) > 2
    assert clip.times == pytest.approx([n / 10 for n in found], abs=2e-3)
    assert clip.times[-1] < clip.duration < 8
    # Transport streams do not say how long they are.
    told = [record.levelno for record in caplog.records]
    assert told == ([] if kind == "mpegts" else [logging.WARNING])


def test_damage_in_the_middle_is_cut_out(video, caplog):
    damaged = bytearray(clips.encoded(clips.pictures(50), gop=10))
    middle = len(damaged) // 2
    damaged[middle : middle + 200] = bytes(200)
    clip = load_clip(bytes(damaged), FrameSampling(fps=10))
    assert 30 < len(clip.frames) <= 50 and clip.duration == 5


def playlist(folder: Path) -> bytes:
    (folder / "part.ts").write_bytes(KINDS["mpegts"](clips.pictures(20)))
    return f"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\n{folder}/part.ts\n#EXT-X-ENDLIST\n".encode()


def concatenation(folder: Path) -> bytes:
    (folder / "part.mp4").write_bytes(KINDS["mp4"](clips.pictures(20)))
    return b"ffconcat version 1.0\nfile part.mp4\n"


@pytest.mark.parametrize("make", [playlist, concatenation])
@pytest.mark.parametrize("name", ["list.m3u8", "list.mp4", "list.ffconcat"])
def test_playlists_are_not_followed(make, name, tmp_path):
    path = tmp_path / name
    path.write_bytes(make(tmp_path))
    for source in (path, path.read_bytes()):
        with pytest.raises(InvalidVideo, match="is not a video of a known format"):
            load_clip(source)


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (b"", "the video is empty"),
        (b"hello", "is not a video of a known format"),
        (bytes(100_000), "is not a video of a known format"),
        (np.random.default_rng(0).bytes(50_000), "is not a video of a known format"),
        (clips.only_sound(), "has no pictures, only sound"),
        (clips.only_sound("matroska"), "has no pictures, only sound"),
        (clips.no_frames(), "has no frames"),
        (cut(clips.encoded(clips.pictures(20))), "lacks its index"),
        (clips.animated([clips.numbered(3)], "GIF", 100), "is a still image"),
        (clips.animated([clips.numbered(3)], "WEBP", 100), "is a still image"),
        ("/no/such/file.mp4", "No such file"),
        ("with\0zero.mp4", "cannot read"),
        ("/", "cannot read /"),
        ("concat:/etc/hostname", "cannot read concat"),
        ("http://127.0.0.1:9/clip.mp4", "could not fetch http"),
        ("ftp://127.0.0.1/clip.mp4", "cannot read ftp"),
        ("data:video/mp4,AAAA", "must look like data:video/mp4;base64"),
        ("data:video/mp4;base64,", "the video is empty"),
        ("data:video/mp4;base64,aGVsbG8=", "the video is not a video"),
        (7, "not int"),
    ],
)
def test_what_is_no_video_is_told_why(source, said):
    with pytest.raises(InvalidVideo, match=said) as error:
        load_clip(source)
    assert "\n" not in str(error.value)


def test_errors_name_the_file(tmp_path):
    path = tmp_path / "clip.mp4"
    path.write_bytes(clips.only_sound())
    with pytest.raises(InvalidVideo, match=r"clip\.mp4 has no pictures"):
        load_clip(path)


@pytest.mark.parametrize("kind", ["mp4", "webm", "avi", "gif", "webp"])
def test_damaged_bytes_never_do_worse_than_a_cut_or_an_error(kind):
    whole = KINDS[kind](clips.pictures(10))

    @given(st.integers(0, len(whole)), st.binary(min_size=1, max_size=40))
    @settings(max_examples=40)
    def damaged(at: int, junk: bytes) -> None:
        try:
            clip = load_clip(whole[:at] + junk + whole[at + len(junk) :], limits=VideoLimits(pixels=100_000))
            assert clip.frames and len(clip.frames) == len(clip.times)
        except InvalidVideo as error:
            assert "\n" not in str(error)

    damaged()


def test_without_pyav_it_is_named_and_animations_are_read(video, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(UnsupportedTask, match=r"pip install 'galago\[video\]'"):
        load_clip(video)
    assert numbers(load_clip(KINDS["gif"](clips.pictures(20)))) == [0, 19]


@pytest.mark.parametrize("start", [3, 20_000, 80_000])
@pytest.mark.parametrize(
    ("kind", "codec"),
    [("matroska", "libx264"), ("webm", "libvpx-vp9"), ("asf", "mpeg4"), ("mp4", "libx264"), ("mov", "libx264"),
     ("mpegts", "libx264"), ("flv", "flv1")],
)  # fmt: skip
def test_a_clock_that_does_not_begin_at_zero(kind, codec, start, caplog):
    """As in what a camera's recorder cuts out of a day."""
    images = clips.pictures(70)
    data = clips.encoded(images, kind, codec=codec, times=[start + i / 10 for i in range(70)])
    clip = load_clip(data, FrameSampling(fps=1), VideoLimits(seconds=8))
    assert clip.duration == pytest.approx(7, abs=0.15) and clip.times[0] == 0 and clip.times[-1] == pytest.approx(6.9)
    assert [clips.number_in(frame) for frame in clip.frames] == [round(10 * time) for time in clip.times]
    assert not clip.warnings and not caplog.messages
    if kind not in ("mp4", "mov", "asf"):  # they lack their index then, or half of the file is one
        short = load_clip(data[: len(data) // 2], FrameSampling(fps=1))
        assert short.duration < 6 and (short.warnings or kind in ("mpegts", "flv"))
    with pytest.raises(InvalidVideo, match="is 7 s long; 5 are allowed"):
        load_clip(data, limits=VideoLimits(seconds=5))
