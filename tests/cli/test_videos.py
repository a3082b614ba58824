"""galago caption and query of videos: as the model answers in Python, and what is told where it cannot be."""

import base64
import io
import sys
from pathlib import Path
from typing import Any

import clips
import pytest
import tiny_smolvlm as tiny
from websites import served

from galago.media.timeline import FrameSampling
from galago.media.video import load_clip

VIDEO = clips.encoded(clips.pictures(50))
ASKED = ("--temperature", 1, "--seed", 7, "--max-tokens", 12)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("video") / "tiny")


@pytest.fixture
def on(folder: Path) -> tuple[object, ...]:
    return "--model", folder, *ASKED


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    file = tmp_path / "clip.mp4"
    file.write_bytes(VIDEO)
    return file


def wanted(folder: Path, shown: Any, question: str | None = None) -> str:
    """What the model says in Python."""
    with tiny.open_model(folder) as model:
        if question is None:
            return model.caption(shown, settings=tiny.WARM)["caption"].strip()
        return model.query(shown, question, settings=tiny.WARM)["answer"].strip()


def test_caption_and_query_of_a_clip(galago, folder, clip, on):
    seen = load_clip(VIDEO)
    assert galago("caption", clip, *on).out == wanted(folder, seen) + "\n"
    assert galago("query", clip, "What moves?", *on).out == wanted(folder, seen, "What moves?") + "\n"
    assert galago("caption", clip, *on, "--stream").out.strip() == wanted(folder, seen)


def test_images_and_videos_beside_each_other_as_json(galago, clip, photo, on):
    answers = galago("caption", clip, photo, *on, "--json").json
    assert [a["image"] for a in answers] == [str(clip), str(photo)]
    assert all(set(a) == {"image", "caption"} for a in answers)
    [answer] = galago("query", clip, "What moves?", *on, "--json").json
    assert set(answer) == {"image", "answer"}


def test_wherever_it_comes_from_and_whatever_its_name(galago, clip, on, tmp_path, monkeypatch):
    [told] = galago("caption", clip, *on, "--json").json
    named = tmp_path / "photo.png"
    named.write_bytes(VIDEO)
    with served(VIDEO) as url:
        for source in (named, f"{url}/clip", "data:video/mp4;base64," + base64.b64encode(VIDEO).decode(), "-"):
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(VIDEO)))
            assert galago("caption", source, *on, "--json").json == [told | {"image": str(source)}]


@pytest.mark.parametrize("how", [{"fps": 0.5}, {"max_frames": 2}, {"fps": 1.4, "max_frames": 6}])
def test_which_frames(galago, folder, clip, on, how):
    options = [part for name, value in how.items() for part in (f"--{name.replace('_', '-')}", value)]
    assert galago("caption", clip, *on, *options).out.strip() == wanted(folder, load_clip(VIDEO, FrameSampling(**how)))


def test_an_animation_is_one(galago, folder, on, tmp_path):
    file = tmp_path / "clip.gif"
    file.write_bytes(clips.animated(clips.pictures(3), "GIF", 1000))
    assert galago("caption", file, *on).out.strip() == wanted(folder, load_clip(file))


def test_what_cannot_be_read_does_not_keep_the_others(galago, clip, photo, on, tmp_path):
    bad = {
        "sound.mp4": (clips.only_sound(), "has no pictures, only sound"),
        "none.webm": (None, "No such file"),
        "empty.mp4": (b"", "is empty"),
        "cut.mp4": (VIDEO[: len(VIDEO) // 2], "lacks its index"),
        "still.mp4": (clips.no_frames(), "has no frames"),
        "notes.mp4": (b"hello", "is not an image (JPEG"),
    }
    for name, (data, _) in bad.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
    ran = galago("caption", *(tmp_path / name for name in bad), clip, photo, *on, "--json")
    assert ran.code == 2 and [a["image"] for a in ran.json] == [str(clip), str(photo)]
    for line, (name, (_, said)) in zip(ran.err.splitlines(), bad.items(), strict=True):
        assert line.startswith("error: ") and name in line and said in line


def test_standard_input_that_is_nothing(galago, on, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(clips.only_sound())))
    assert "standard input: the video has no pictures" in galago("caption", "-", *on).error


def test_a_model_that_looks_at_images_says_what_to_do(galago, checkpoint, clip, photo):
    ran = galago("caption", clip, photo, "--model", checkpoint, "--max-tokens", 2, "--json")
    assert f"{clip} is a video" in ran.error and "galago watch" in ran.error
    assert [a["image"] for a in ran.json] == [str(photo)]
    assert "galago watch" in galago("query", clip, "What moves?", "--model", checkpoint).error
    assert "not an image" in galago("detect", clip, "cat", "--model", checkpoint).error


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--fps", 0), "fps must be"),
        (("--max-frames", 1000), "1..512"),
        (("--fps", 10, "--max-frames", 20), "takes 8 at most"),
        (("--model", "./nowhere"), "no folder or file"),
    ],
)
def test_one_line_says_what_was_wrong(galago, clip, on, options, said):
    assert said in galago("caption", clip, *on, *options).error
