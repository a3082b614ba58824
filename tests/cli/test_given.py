"""Images and words reach a command by place or by option, and what is missing is named."""

from pathlib import Path
from typing import Any

import pytest

from galago.errors import shortened


@pytest.fixture
def on(checkpoint: Path) -> tuple[object, ...]:
    return "--model", checkpoint, "--device", "cpu", "--json"


@pytest.mark.parametrize(
    ("plain", "forms"),
    [
        ("caption PHOTO", ["caption --image PHOTO", "caption --image URL", "caption URL"]),
        (
            "query PHOTO what?",
            [
                "query --image PHOTO --prompt what?",
                "query --prompt what? PHOTO",
                "query --image PHOTO what?",
                "query URL what?",
            ],
        ),
        ("query what?", ["query --prompt what?"]),
        (
            "detect PHOTO cat",
            [
                "detect --image PHOTO --prompt cat",
                "detect --image PHOTO --object cat",
                "detect --image PHOTO cat",
                "detect PHOTO --prompt cat",
                "detect URL cat",
            ],
        ),
        ("point PHOTO cat", ["point --image PHOTO --prompt cat", "point --object cat PHOTO"]),
        ("gaze PHOTO --eye 0.5,0.5", ["gaze --image PHOTO --eye 0.5,0.5"]),
        ("caption PHOTO PHOTO", ["caption --image PHOTO --image PHOTO", "caption PHOTO --image PHOTO"]),
    ],
)
def test_by_place_and_by_option(galago: Any, photo: Path, on: Any, plain: str, forms: list[str]) -> None:
    names = {"PHOTO": str(photo), "URL": photo.as_uri()}
    wanted = galago(*(names.get(word, word) for word in plain.split()), *on)
    assert wanted.code == 0, wanted
    for form in forms:
        given = galago(*(names.get(word, word) for word in form.split()), *on)
        assert (given.code, given.out) == (0, wanted.out), form


@pytest.mark.parametrize(
    ("command", "said"),
    [
        ("detect PHOTO", "OBJECT is missing after PHOTO; as in: galago detect photo.jpg person"),
        ("detect PHOTO PHOTO", "OBJECT is missing after PHOTO"),
        ("detect none.jpg", "OBJECT is missing after none.jpg"),
        ("detect -", "OBJECT is missing after -"),
        ("detect https://example.org/a", "OBJECT is missing after https://example.org/a"),
        ("detect --image PHOTO", "OBJECT is missing after PHOTO"),
        ("detect person", "IMAGE is missing before 'person'"),
        ("detect --prompt person", "IMAGE is missing before 'person'"),
        ("detect", "OBJECT is missing; as in: galago detect photo.jpg person"),
        ("point PHOTO", "OBJECT is missing after PHOTO; as in: galago point photo.jpg person"),
        ("query PHOTO", "QUESTION is missing after PHOTO"),
        ("query", "QUESTION is missing"),
        ("caption", "IMAGE or VIDEO is missing"),
        ("gaze --eye 0.5,0.5", "IMAGE is missing"),
        ("watch clip.mp4", "QUESTION is missing after clip.mp4"),
        ("watch what?", "VIDEO is missing before 'what?'"),
        ("watch a.mp4 b.mp4 what?", "one video at a time, not 2"),
        ("caption FOLDER", "is a folder; name the files in it, as FOLDER/*.png"),
        ("caption file:///no/such.png", "/no/such.png"),
        ("caption file://elsewhere/photo.png", "another machine"),
        ("watch FOLDER what?", "is a folder"),
    ],
)
def test_what_is_missing_or_cannot_be_is_told(galago: Any, photo: Path, on: Any, command: str, said: str) -> None:
    names = {"PHOTO": str(photo), "FOLDER": str(photo.parent)}
    for name, meant in names.items():
        said = said.replace(name, shortened(meant))
    assert said in galago(*(names.get(word, word) for word in command.split()), *on).error


def test_a_file_url_has_spaces_and_letters_of_its_own(galago: Any, photo: Path, on: Any) -> None:
    moved = photo.rename(photo.with_name("so groß #1?.png"))
    assert [row["image"] for row in galago("caption", moved.as_uri(), *on).json] == [str(moved)]


def test_a_drawing_never_takes_the_place_of_a_picture_given_by_url(galago: Any, photo: Path, on: Any) -> None:
    assert "never overwritten" in galago("detect", photo.as_uri(), "cat", *on, "--draw", photo).error


def test_more_threads_than_the_machine_has_are_cut(galago: Any, photo: Path, on: Any, caplog: Any) -> None:
    assert galago("caption", photo, *on, "--threads", 9999, "--max-tokens", 1).code == 0
    assert "fewer than were asked for" in caplog.text
