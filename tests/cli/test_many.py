"""Commands over many images: in order, together, whatever one of them holds."""

import signal
from pathlib import Path
from typing import Any

import pytest
from commands import Command
from PIL import Image


@pytest.fixture
def on(checkpoint: Path) -> tuple[Any, ...]:
    return "--model", checkpoint


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Twelve pictures: one is text, one ends in its middle, one is empty, one is missing, one a folder."""
    paths = [tmp_path / f"{i:02}.png" for i in range(12)]
    for i, path in enumerate(paths):
        Image.linear_gradient("L").rotate(20 * i).resize((70 + i, 50)).convert("RGB").save(path)
    paths[2].write_text("hello")
    paths[4].write_bytes(paths[4].read_bytes()[:300])
    paths[6].write_bytes(b"")
    paths[7].unlink()
    paths[9].unlink()
    paths[9].mkdir()
    return paths


WRONG = {2: "is not an image", 4: "truncated", 6: "is empty", 7: "No such file", 9: "is a folder"}
ASKED = {
    "caption": (("caption", "FILES"), ("--max-tokens", 3)),
    "query": (("query", "FILES", "what?"), ("--max-tokens", 3)),
    "detect": (("detect", "FILES", "cat"), ("--max-objects", 2)),
    "point": (("point", "FILES", "cat"), ("--max-objects", 2)),
    "gaze": (("gaze", "FILES", "--eye", "0.4,0.5"), ()),
}


def words(command: str, files: list[Path]) -> list[Any]:
    given, options = ASKED[command]
    return [*(w for one in given for w in (files if one == "FILES" else [one])), *options]


@pytest.mark.parametrize("command", ASKED)
def test_what_is_broken_is_named_and_the_others_are_answered_in_order(galago, on, files, command):
    ran = galago(*words(command, files), *on, "--json")
    errors = ran.err.splitlines()
    assert ran.code == 2 and len(errors) == len(WRONG)
    for line, (place, said) in zip(errors, WRONG.items(), strict=True):
        assert line.startswith("error: ") and files[place].name in line and said in line
    good = [file for i, file in enumerate(files) if i not in WRONG]
    assert [answer["image"] for answer in ran.json] == list(map(str, good))
    alone = [galago(*words(command, [file]), *on, "--json").json for file in good]
    assert [[answer] for answer in ran.json] == alone


def test_streams_come_one_after_the_other(galago, on, files):
    whole = galago(*words("caption", files), *on)
    streamed = galago(*words("caption", files), *on, "--stream")
    assert streamed.code == 2 and streamed.err == whole.err

    def texts(out: str) -> list[str]:
        return [line.replace(": ", ":").replace(" ", "") for line in out.splitlines()]

    assert texts(streamed.out) == texts(whole.out) and len(texts(whole.out)) == len(files) - len(WRONG)


def test_drawings_of_many(galago, on, files, tmp_path):
    ran = galago(*words("point", files), *on, "--draw", tmp_path / "drawn")
    good = [file.name for i, file in enumerate(files) if i not in WRONG]
    assert ran.code == 2 and sorted(f.name for f in (tmp_path / "drawn").iterdir()) == good
    with Image.open(tmp_path / "drawn" / "11.png") as drawn:
        assert drawn.size == (81, 50)


def test_what_is_wrong_with_the_model_is_told_once(galago, files, tmp_path):
    assert "no folder or file" in galago("caption", files[0], files[1], "--model", tmp_path / "none").error


def test_an_interrupt_ends_it(checkpoint, tmp_path):
    paths = [tmp_path / f"{i:03}.png" for i in range(300)]
    for i, path in enumerate(paths):
        Image.new("RGB", (40, 40), (i % 256, 0, 0)).save(path)
    for broken in (paths[5], paths[-1]):
        broken.write_text("hello")
    with Command("caption", *paths, "-m", checkpoint, "--max-tokens", 200) as command:
        command.until("005.png")
        command.send(signal.SIGINT)
        code, said = command.ended()
    assert code == 130 and [line for line in said.splitlines() if "005.png" not in line] == []
