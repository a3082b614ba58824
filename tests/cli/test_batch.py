"""galago batch: each input is one row, once, whatever is broken and whenever it is ended."""

import csv
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from batches import ASKED, BROKEN, OUTPUTS, draw, draw_photos, names, read, summary
from commands import Command
from PIL import Image


@pytest.fixture
def on(checkpoint: Path) -> tuple[Any, ...]:
    return "--model", checkpoint


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos")


def test_every_file_of_a_folder_is_a_row_and_what_is_broken_has_an_error(galago, on, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    ran = galago("batch", photos, *ASKED, *on, "--out", out)
    assert ran.code == 1
    rows = read(out)
    assert [Path(row["image"]).relative_to(photos).as_posix() for row in rows] == [
        *(f"{name}.png" for name in "abcdefg"),
        "2024/h.png",
    ]
    for row in rows:
        name = Path(row["image"]).name
        if name in BROKEN:
            assert BROKEN[name] in row["error"]["message"] and row["error"]["code"] == "invalid_image"
            assert any(name in line and BROKEN[name] in line for line in ran.err.splitlines())
            continue
        [alone] = galago("caption", row["image"], "--length", "short", "--max-tokens", 3, *on, "--json").json
        assert row["caption"] == alone["caption"].strip()
        [alone] = galago("detect", row["image"], "cat", "--max-objects", 2, *on, "--json").json
        assert row["objects"] == {"cat": alone["objects"]}
    assert galago("batch", photos, *ASKED, *on, "--out", tmp_path / "again.jsonl", "--keep-going").code == 0


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_formats_say_the_same(galago, on, photos, tmp_path, kind):
    first, other = tmp_path / "out.jsonl", tmp_path / OUTPUTS[kind]
    galago("batch", photos, *ASKED, *on, "--out", first)
    galago("batch", photos, *ASKED, *on, "--out", other)
    assert len(read(other)) == len(read(first)) == 8
    for row, same in zip(read(first), read(other), strict=True):
        assert row["image"] == same["image"]
        if "error" in row:
            told = same["error.message"] if kind == "csv" else same["error"]["message"]
            assert told == row["error"]["message"]
        elif kind == "csv":
            assert same["caption"] == row["caption"] and json.loads(same["objects.cat"]) == row["objects"]["cat"]
        else:
            assert same["caption"] == row["caption"] and same["objects"] == row["objects"]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["photos", first.name, other.name])


def test_webdataset_has_the_pictures_as_they_are(galago, on, photos, tmp_path):
    out = tmp_path / "out"
    ran = galago("batch", photos, *ASKED, *on, "--out", out, "--format", "webdataset", "--shard-rows", 3, "--json")
    assert summary(ran)["images"] == 8 and summary(ran)["errors"] == 3
    assert sorted(p.name for p in out.iterdir()) == ["errors.jsonl", "part-00000.tar", "part-00001.tar"]
    assert {Path(name).name for name in names(out / "errors.jsonl")} == set(BROKEN)
    with tarfile.open(out / "part-00000.tar") as tar:
        members = {m.name: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    keys = sorted({name.partition(".")[0] for name in members})
    assert len(keys) == 3 and len(members) == 9
    for key in keys:
        row = json.loads(members[f"{key}.json"])
        assert members[f"{key}.png"] == Path(row["image"]).read_bytes()
        assert members[f"{key}.txt"].decode() == row["caption"]
    # Which batch reads again.
    again = tmp_path / "again.jsonl"
    ran = galago("batch", out / "part-00000.tar", "--query", "what?", "--max-tokens", 2, *on, "--out", again)
    assert ran.code == 0 and [Path(name).parent.name for name in names(again)] == ["part-00000.tar"] * 3
    assert [row["caption"] for row in read(again)] == [json.loads(members[f"{key}.json"])["caption"] for key in keys]


def test_a_terminal_shows_how_far_it_is(checkpoint, tmp_path):
    for n in range(30):
        draw(tmp_path / "photos" / f"{n:03}.png", n)
    asked = ("batch", tmp_path / "photos", "--caption", "short", "--max-tokens", 3, "--model", checkpoint)
    with Command(*asked, "--out", tmp_path / "out.jsonl") as command:
        code, said = command.ended()
    assert code == 0 and "of 30 images" in said and " a minute" in said and " tokens" in said


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "txt"])
def test_lists(galago, on, photos, tmp_path, kind):
    """A file that is named twice is two rows; a row that names none is one with an error."""
    listed = ["a.png", "c.png", "", "a.png", "none.png"]
    rows = [{"path": name or None, "id": n} for n, name in enumerate(listed)]
    file = photos / f"list.{kind}"
    if kind == "csv":
        with file.open("w", newline="") as opened:
            made = csv.DictWriter(opened, ["path", "id"])
            made.writeheader()
            made.writerows(rows)
    elif kind == "jsonl":
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    else:
        file.write_text("\n".join(name or "?" for name in listed))
    out = tmp_path / "out.jsonl"
    asked = ("batch", file, "--caption", "short", "--max-tokens", 2, *on, "--out", out, "--json")
    assert summary(galago(*asked))["errors"] == 2
    made = read(out)
    assert [row["image"] for row in made if "error" not in row] == ["a.png", "c.png", "a.png"]
    assert ["error" in row for row in made] == [False, False, True, False, True]
    if kind != "txt":
        assert [int(row["id"]) for row in made] == [0, 1, 2, 3, 4]
    assert summary(galago(*asked))["asked"] == 0


def test_parquet_with_the_pictures_in_it(galago, on, photos, tmp_path):
    data = [(photos / f"{name}.png").read_bytes() for name in "ace"]
    plain, nested = tmp_path / "plain.parquet", tmp_path / "nested.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"bytes": data, "label": [1, 2, 3]}), plain)
    held = [{"bytes": d, "path": f"{n}.png"} for n, d in enumerate(data)]
    pyarrow.parquet.write_table(pyarrow.table({"image": held}), nested)
    for file, called in ((plain, [f"{plain}:{n}" for n in (1, 2, 3)]), (nested, ["0.png", "1.png", "2.png"])):
        out = file.with_suffix(".out.jsonl")
        assert galago("batch", file, "--caption", "short", "--max-tokens", 2, *on, "--out", out).code == 0
        assert names(out) == called
        assert all(len(json.dumps(row)) < 500 for row in read(out))


def test_where_shard_and_limit(galago, on, photos, tmp_path):
    rows = [
        {"image": f"{name}.png", "caption": text} for name, text in zip("aceg", ["", "known", "", None], strict=True)
    ]
    file = photos / "list.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    quick = ("--caption", "short", "--max-tokens", 2, *on)
    galago("batch", file, *quick, "--where", "caption=", "--out", tmp_path / "lacking.jsonl")
    assert names(tmp_path / "lacking.jsonl") == ["a.png", "e.png", "g.png"]
    galago("batch", file, *quick, "--where", "caption!=", "--out", tmp_path / "known.jsonl")
    assert names(tmp_path / "known.jsonl") == ["c.png"]
    parts = []
    for part in (1, 2, 3):
        galago("batch", photos, *quick, "--shard", f"{part}/3", "--out", tmp_path / f"{part}.jsonl")
        parts += names(tmp_path / f"{part}.jsonl") if (tmp_path / f"{part}.jsonl").exists() else []
    galago("batch", photos, *quick, "--out", tmp_path / "all.jsonl")
    assert sorted(parts) == sorted(names(tmp_path / "all.jsonl")) and len(parts) == 8
    galago("batch", photos, *quick, "--glob", "*/h.png", "--glob", "c.*", "--out", tmp_path / "two.jsonl")
    assert [Path(name).name for name in names(tmp_path / "two.jsonl")] == ["c.png", "h.png"]
    galago("batch", photos, *quick, "--limit", 3, "--out", tmp_path / "few.jsonl")
    assert len(names(tmp_path / "few.jsonl")) == 3


def test_a_list_from_standard_input(checkpoint, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    program = [sys.executable, "-m", "galago.cli.app", "batch", "-", "--caption", "short", "--max-tokens", "2"]
    given = f"{photos}/a.png\n\n{json.dumps({'path': str(photos / 'c.png'), 'id': 7})}\n"
    subprocess.run(
        [*program, "--model", str(checkpoint), "--out", str(out)],
        input=given.encode(), check=True, env=os.environ, capture_output=True,
    )  # fmt: skip
    assert [Path(row["image"]).name for row in read(out)] == ["a.png", "c.png"] and read(out)[1]["id"] == 7


def test_a_video_is_asked_about_frame_by_frame(galago, on, tmp_path):
    frames = [Image.new("RGB", (40, 30), (80 * n, 0, 0)) for n in range(3)]
    frames[0].save(tmp_path / "clip.gif", save_all=True, append_images=frames[1:], duration=1000)
    draw(tmp_path / "still.png", 1)
    out = tmp_path / "out.jsonl"
    ran = galago("batch", tmp_path, *ASKED, "--fps", 1, *on, "--out", out)
    assert ran.code == 0
    clip, still = read(out)
    assert "frames" not in still and "caption" in still
    spans = clip["frames"]["caption"]
    assert spans[0]["start"] == 0 and spans[-1]["end"] == 3 and set(spans[0]) == {"start", "end", "answer"}
    assert clip["frames"]["objects"].keys() == {"cat"}


def test_a_dry_run_writes_nothing(galago, on, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    ran = galago("batch", photos, *ASKED, *on, "--out", out, "--dry-run", "--json")
    assert ran.code == 0 and not out.exists()
    assert summary(ran)["total"] == 8 and summary(ran)["measured"] == 8 and summary(ran)["errors"] == 3
    assert summary(ran)["images_per_minute"] > 0


def test_links_and_folders_that_cannot_be_read_are_named(galago, on, photos, tmp_path):
    (photos / "gone.png").symlink_to("nowhere.png")
    (photos / "loop.png").symlink_to("loop.png")
    (photos / "elsewhere").symlink_to(photos / "2024")
    os.mkfifo(photos / "pipe.png")
    out = tmp_path / "out.jsonl"
    galago("batch", photos, *ASKED, *on, "--out", out)
    failed = {Path(row["image"]).name for row in read(out) if "error" in row}
    assert failed == {*BROKEN, "gone.png", "loop.png"} and len(read(out)) == 10


def test_names_that_are_not_utf_8_or_have_lines(galago, on, tmp_path):
    for name in (b"caf\xe9.png", b"two\nlines.png", 'kö,"x".png'.encode()):
        draw(tmp_path / "photos" / os.fsdecode(name), 1)
    for out in OUTPUTS.values():
        asked = ("batch", tmp_path / "photos", "--caption", "short", "--max-tokens", 2, *on, "--out", tmp_path / out)
        assert galago(*asked).code == 0
        assert len(names(tmp_path / out)) == 3
        assert summary(galago(*asked, "--json"))["asked"] == 0


WRONG = {
    (): "INPUT is missing",
    ("PHOTOS",): "where to?",
    ("PHOTOS", "--out", "OUT.txt"): "no .jsonl, .csv or .parquet file",
    ("PHOTOS", "--out", "OUT.jsonl", "--format", "csv"): "would be jsonl, not csv",
    ("PHOTOS", "--out", "OUT", "--format", "xml"): "--format must be jsonl, csv, parquet or webdataset",
    ("PHOTOS", "--out", "OUT.jsonl", "--shard-rows", "5"): "shards are files of a folder",
    ("PHOTOS", "--out", "OUT.jsonl", "--shard", "3/2"): "--shard must be i/n",
    ("PHOTOS", "--out", "OUT.jsonl", "--where", "caption"): "--where must be COLUMN=VALUE",
    ("PHOTOS", "--out", "OUT.jsonl", "--query", "a?", "--query", "a?"): "is asked twice",
    ("PHOTOS", "--out", "OUT.jsonl", "--caption", "huge"): "length must be",
    ("PHOTOS", "--out", "OUT.jsonl", "--query", ""): "question",
    ("nowhere", "--out", "OUT.jsonl"): "no file or folder nowhere",
    ("nowhere/*.png", "--out", "OUT.jsonl"): "--glob",
    ("PHOTOS", "--sidecar", "md"): "--sidecar must be txt, json, xmp",
    ("PHOTOS", "--out", "PHOTOS/out", "--format", "webdataset"): "lies in the input",
    ("PHOTOS/notes.csv", "--out", "OUT.jsonl"): "none of the columns image",
    ("PHOTOS/notes.csv", "--column", "z", "--out", "OUT.jsonl"): "no column 'z'",
    ("PHOTOS", "--out", "none/OUT.jsonl"): "No such file or directory",
}


@pytest.mark.parametrize("words", WRONG, ids=" ".join)
def test_wrong_words_are_one_line(galago, on, photos, tmp_path, monkeypatch, words):
    monkeypatch.chdir(tmp_path)
    (photos / "notes.csv").write_text("x,y\n1,2\n")
    given = [word.replace("PHOTOS", str(photos)).replace("OUT", str(tmp_path / "out")) for word in words]
    assert WRONG[words] in galago("batch", *given, *on).error
