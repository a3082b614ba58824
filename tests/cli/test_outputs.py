"""What commands write: no input is ever overwritten, nor another's file without --force."""

import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from galago.errors import InvalidRequest
from galago.system.outputs import check_folder, check_outputs, is_ours, replace_file, write_text


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to be in, with two pictures."""
    monkeypatch.chdir(tmp_path)
    for name, colour in (("a.png", "red"), ("b.png", "blue")):
        Image.new("RGB", (40, 30), colour).save(name)
    return tmp_path


@pytest.fixture
def find(galago: Any, checkpoint: Path) -> Any:
    """galago detect, with the model that knows nothing."""

    def run(*args: object) -> Any:
        return galago("detect", *args, "-m", checkpoint, "--max-objects", 1)

    return run


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


# --- drawings ---------------------------------------------------------------------------------


def test_drawings_in_the_folder_of_the_pictures_take_other_names(here: Path, find: Any) -> None:
    before = contents(here)
    for _ in range(2):  # the second time they replace our own
        assert find("a.png", "b.png", "red circle", "--draw", "./").code == 0
        after = contents(here)
        assert sorted(after) == ["a.png", "a.red-circle.png", "b.png", "b.red-circle.png"]
        assert {name: after[name] for name in before} == before
    assert find(*sorted(after), "red circle", "--draw", ".").code == 0
    assert {name: contents(here)[name] for name in after} == after


@pytest.mark.parametrize("name", ["a.png", "./a.png", "link.png", "hard.png", "sub/../a.png"])
def test_a_picture_is_not_drawn_over_by_any_name(here: Path, find: Any, name: str) -> None:
    (here / "sub").mkdir()
    (here / "link.png").symlink_to("a.png")
    os.link("a.png", "hard.png")
    before = contents(here)
    for force in ((), ("--force",)):
        assert "never overwritten" in find("a.png", "circle", "--draw", name, *force).error
    assert contents(here) == before


def test_others_files_take_force_and_what_they_link_to_is_written(here: Path, find: Any) -> None:
    (here / "notes.png").write_text("mine")
    (here / "link.png").symlink_to("notes.png")
    assert "--force" in find("a.png", "circle", "--draw", "link.png").error
    assert (here / "notes.png").read_text() == "mine"
    assert find("a.png", "circle", "--draw", "link.png", "--force").code == 0
    assert (here / "link.png").is_symlink() and is_ours(here / "notes.png")
    # In a folder another name is found.
    (here / "out").mkdir()
    (here / "out" / "a.png").write_text("mine")
    assert find("a.png", "circle", "--draw", "out").code == 0
    assert (here / "out" / "a.png").read_text() == "mine" and is_ours(here / "out" / "a.circle.png")
    assert find("a.png", "circle", "--draw", "out", "--force").code == 0 and is_ours(here / "out" / "a.png")


def test_pictures_of_one_name_in_several_folders_are_drawn_apart(here: Path, find: Any) -> None:
    for folder in ("x", "y", "z"):
        (here / folder).mkdir()
        shutil.copy("a.png", here / folder / ("A.png" if folder == "z" else "a.png"))
    assert find("x/a.png", "y/a.png", "z/A.png", "circle", "--draw", "drawn").code == 0
    assert sorted(os.listdir("drawn")) == ["A-3.png", "a-2.png", "a.png"]
    before = contents(here / "x")
    assert find("x/a.png", "y/a.png", "circle", "--draw", "x").code == 0
    assert sorted(os.listdir("x")) == ["a.circle-2.png", "a.circle.png", "a.png"]
    assert contents(here / "x")["a.png"] == before["a.png"]


def test_a_jpeg_that_is_ours_is_known_again(here: Path, find: Any) -> None:
    Image.new("RGB", (40, 30)).save("theirs.jpg")
    assert "--force" in find("a.png", "circle", "--draw", "theirs.jpg").error
    for _ in range(2):
        assert find("a.png", "circle", "--draw", "ours.jpg").code == 0


# --- files of every kind -----------------------------------------------------------------------


@pytest.mark.parametrize("command", ["detect", "point", "gaze", "bench", "eval", "quantize"])
def test_all_is_told_before_the_work(galago: Any, here: Path, command: str) -> None:
    """The model is one that would have to be downloaded, and cannot be."""
    (here / "theirs").mkdir()
    (here / "theirs" / "notes.txt").write_text("mine")
    before = contents(here)
    args = {
        "detect": ("detect", "a.png", "circle", "--draw", "a.png", "-m", "moondream2"),
        "point": ("point", "a.png", "circle", "--draw", "a.png", "-m", "moondream2"),
        "gaze": ("gaze", "a.png", "--eye", "0.5,0.5", "--draw", "a.png", "-m", "moondream2"),
        "bench": ("bench", "moondream2", "--save", "b.png"),
        "eval": ("eval", "scenes", "--plot", "a.png", "-m", "moondream2"),
        "quantize": ("quantize", "moondream2", "--to", "int8", "--out", "theirs"),
    }[command]
    assert "cannot write" in (error := galago(*args).error) or "is not empty" in error
    assert contents(here) == before


def test_what_is_read_is_not_written(galago: Any, here: Path) -> None:
    saved = here / "saved.json"
    saved.write_text(json.dumps([{"engine": "galago", "image": "1x1", "tokens": 1}], indent=1))
    assert is_ours(saved)
    assert "never overwritten" in galago("bench", "--compare", saved, "--save", saved).error
    assert "two outputs" in galago("bench", "--save", "x.json", "--plot", "./x.json").error
    answers = {"task": "scenes", "model": "m", "weights": "w"}
    for name in ("x.jsonl", "y.jsonl"):
        (here / name).write_text(json.dumps(answers) + "\n")
    assert "never overwritten" in galago("eval", "--compare", "x.jsonl", "y.jsonl", "--plot", "x.jsonl").error
    assert "two outputs" in galago("eval", "scenes", "--out", "z.jsonl", "--plot", "z.summary.json").error
    (here / "data").mkdir()
    (here / "data" / "labels.json").write_text("{}")
    for force in ((), ("--force",)):
        asked = ("eval", "pope", "--data", "data", "--plot", "data/labels.json", *force)
        assert "never overwritten" in galago(*asked).error
    assert (here / "data" / "labels.json").read_text() == "{}"


def test_an_eval_goes_on_with_its_own_answers_alone(galago: Any, here: Path, checkpoint: Path) -> None:
    asked = ("eval", "scenes", "-m", checkpoint, "--range", 1, "--count", 1)
    assert galago(*asked, "--out", "a.jsonl", "--plot", "a.svg").code == 0
    ran = galago(*asked, "--out", "a.jsonl", "--plot", "a.svg")
    assert ran.code == 0 and "goes on after" in ran.err
    (here / "mine.jsonl").write_text('{"mine": 1}\n')
    assert "--force" in galago(*asked, "--out", "mine.jsonl").error
    assert (here / "mine.jsonl").read_text() == '{"mine": 1}\n'
    assert galago(*asked, "--out", "mine.jsonl", "--force").code == 0
    assert is_ours(here / "mine.jsonl")


# --- the one function ----------------------------------------------------------------------------


def test_names_in_other_letters_are_one_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="two outputs"):
        check_outputs([tmp_path / "Grün.svg", tmp_path / "gru\u0308n.SVG"])


def test_places_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="it is a folder"):
        check_outputs([tmp_path])
    with pytest.raises(InvalidRequest, match="no folder"):
        check_outputs([tmp_path / "none" / "a.json"])
    if Path("/proc").is_dir():  # where nobody can, whatever their rights
        with pytest.raises(InvalidRequest, match="cannot write"):
            check_outputs([Path("/proc/a.json")])
        with pytest.raises(InvalidRequest, match="cannot write"):
            check_folder(Path("/proc/made/here"))
    check_outputs([Path(os.devnull), tmp_path / "a.json"], force=False)
    write_text("nothing", Path(os.devnull))
    assert not list(tmp_path.iterdir())


def test_what_ends_early_leaves_the_old_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    write_text("old", file)
    file.chmod(0o640)
    with pytest.raises(KeyboardInterrupt), replace_file(file) as out:
        out.write(b"half")
        raise KeyboardInterrupt
    assert contents(tmp_path) == {"old.json": b"old"}
    write_text("new", file)
    assert contents(tmp_path) == {"old.json": b"new"} and file.stat().st_mode & 0o777 == 0o640


def test_a_full_disk_leaves_the_old_file_whole(tmp_path: Path) -> None:
    file = tmp_path / "old.json"
    write_text("old", file)
    tried = (
        "import sys; from pathlib import Path\n"
        "from galago.system.outputs import write_text; from galago.errors import *\n"
        "try: write_text('x' * 100_000, Path(sys.argv[1]))\n"
        "except InvalidRequest as error: print(error)"
    )

    def small() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    ran = subprocess.run([sys.executable, "-c", tried, file], capture_output=True, text=True, preexec_fn=small)
    assert ran.stdout.startswith(f"cannot write {file}: ") and ran.stderr == ""
    assert contents(tmp_path) == {"old.json": b"old"}
