"""galago batch: each input is one row, once, whatever is broken and whenever it is ended."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from commands import Command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

ASKED = ("--caption", "short", "--detect", "cat", "--max-tokens", 3, "--max-objects", 2)
BROKEN = {"b.png": "is not an image", "d.png": "truncated", "f.png": "is empty"}
OUTPUTS = {"jsonl": "out.jsonl", "csv": "out.csv", "parquet": "out.parquet"}


def draw(path: Path, n: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.linear_gradient("L").rotate(20 * n).resize((70 + n, 50)).convert("RGB").save(path)


@pytest.fixture
def on(checkpoint: Path) -> tuple[Any, ...]:
    return "--model", checkpoint


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Eight pictures in two folders, three of them broken, and files that are none."""
    folder = tmp_path / "photos"
    for n, name in enumerate("abcdefg"):
        draw(folder / f"{name}.png", n)
    draw(folder / "2024" / "h.png", 9)
    (folder / "b.png").write_text("hello")
    (folder / "d.png").write_bytes((folder / "d.png").read_bytes()[:300])
    (folder / "f.png").write_bytes(b"")
    (folder / "notes.md").write_text("no picture")
    (folder / ".hidden.png").write_text("no picture")
    return folder


def read(path: Path) -> list[dict[str, Any]]:
    """The rows of an output, with texts where a format has nothing else."""
    if path.is_dir():
        return [row for part in sorted(path.iterdir()) for row in read(part)]
    if path.suffix == ".jsonl":
        return [json.loads(line) for line in path.read_bytes().splitlines()]
    if path.suffix == ".csv":
        return list(csv.DictReader(io.StringIO(path.read_text())))
    if path.suffix == ".tar":
        with tarfile.open(path) as tar:
            return [json.load(tar.extractfile(m)) for m in tar if m.name.endswith(".json")]  # type: ignore[arg-type]
    return pyarrow.parquet.read_table(path).to_pylist()


def names(path: Path) -> list[str]:
    return [row["image"] for row in read(path)]


def summary(ran: Any) -> dict[str, Any]:
    return ran.json[-1]


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


@pytest.mark.parametrize("out", [*OUTPUTS.values(), "parquet", "webdataset"])
def test_what_is_done_is_not_asked_again(galago, on, photos, tmp_path, out):
    options = ("--format", out, "--shard-rows", 3) if "." not in out else ()
    asked = ("batch", photos, *ASKED, *on, "--out", tmp_path / out, "--json", *options)
    assert summary(galago(*asked))["asked"] == 8
    before = sorted(names(tmp_path / out))
    again = galago(*asked)
    assert summary(again)["asked"] == 0 and summary(again)["errors"] == 3 and again.code == 1
    draw(photos / "c2.png", 5)
    draw(photos / "b.png", 6)
    assert summary(galago(*asked))["asked"] == 1
    assert sorted(names(tmp_path / out)) == sorted([*before, str(photos / "c2.png")])
    retried = summary(galago(*asked, "--retry-errors"))
    assert retried["asked"] == 3 and retried["errors"] == 2
    assert sorted(names(tmp_path / out)) == sorted([*before, str(photos / "c2.png")])


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(cut=st.floats(0, 1), out=st.sampled_from(["out.jsonl", "out.csv", "out.parquet", "parquet", "webdataset"]))
def test_a_file_that_ends_anywhere_is_gone_on_with(galago, on, photos, tmp_path_factory, cut, out):
    """As a kill or a power cut leaves it: the journal ends somewhere, and in the end all is as without."""
    folder = tmp_path_factory.mktemp("cut")
    options = ("--format", out, "--shard-rows", 100) if "." not in out else ()
    asked = ("batch", photos, "--caption", "short", "--max-tokens", 3, *on, "--json", *options)
    whole = folder / f"whole-{out}"
    galago(*asked, "--out", whole)
    # What is there before the end: the first five rows, in the form that they have then.
    part = folder / out
    galago(*asked, "--out", part, "--limit", 5)
    if out == "webdataset":
        (journal,) = part.glob("*.tar")
        journal = journal.rename(journal.with_name(journal.name + ".unfinished"))
    elif out == "out.jsonl":
        journal = part
    else:
        rows = read(galago_rows(galago, asked, folder))[:5]
        journal = part.with_name(part.name + ".rows.jsonl") if "." in out else part / "part-00000.rows.jsonl"
        journal.write_text("".join(json.dumps(row) + "\n" for row in rows))
        for old in [part] if "." in out else part.glob("*.parquet"):
            old.unlink()
    with journal.open("r+b") as file:
        file.truncate(int(cut * journal.stat().st_size))
    galago(*asked, "--out", part)
    key = lambda row: row["image"]  # noqa: E731
    assert sorted(read(part), key=key) == sorted(read(whole), key=key)


def galago_rows(galago: Any, asked: tuple[Any, ...], folder: Path) -> Path:
    out = folder / "rows.jsonl"
    galago(*asked[: asked.index("--json")], "--json", "--out", out)
    return out


def test_a_kill_loses_nothing_and_does_nothing_twice(checkpoint, tmp_path):
    for n in range(150):
        draw(tmp_path / "photos" / f"{n:03}.png", n)
    asked = ("batch", tmp_path / "photos", "--caption", "short", "--max-tokens", 3, "--model", checkpoint)
    out = tmp_path / "out.jsonl"
    kills = 0
    for wanted in (10, 60, 110):
        with Command(*asked, "--out", out) as command:
            while command.process.poll() is None and (not out.exists() or out.read_bytes().count(b"\n") < wanted):
                os.sched_yield()
            command.send(signal.SIGKILL)
            command.process.wait()
            kills += command.process.returncode == -signal.SIGKILL
    assert kills >= 2
    program = [sys.executable, "-m", "galago.cli.app", *map(str, asked)]
    subprocess.run([*program, "--out", str(out)], check=True, env=os.environ)
    subprocess.run([*program, "--out", str(tmp_path / "whole.jsonl")], check=True, env=os.environ)
    assert read(out) == read(tmp_path / "whole.jsonl")


def test_a_terminal_shows_how_far_it_is(checkpoint, tmp_path):
    for n in range(30):
        draw(tmp_path / "photos" / f"{n:03}.png", n)
    asked = ("batch", tmp_path / "photos", "--caption", "short", "--max-tokens", 3, "--model", checkpoint)
    with Command(*asked, "--out", tmp_path / "out.jsonl") as command:
        code, said = command.ended()
    assert code == 0 and "of 30 images" in said and " a minute" in said and " tokens" in said


def test_an_interrupt_says_how_to_go_on(checkpoint, tmp_path):
    for n in range(200):
        draw(tmp_path / "photos" / f"{n:03}.png", n)
    out = tmp_path / "out.jsonl"
    with Command("batch", tmp_path / "photos", "--max-tokens", 20, "--model", checkpoint, "--out", out) as command:
        while command.process.poll() is None and (not out.exists() or not out.read_bytes().count(b"\n")):
            os.sched_yield()
        command.send(signal.SIGINT)
        code, said = command.ended()
    assert code == 130 and "the same command goes on" in said
    assert out.read_bytes().endswith(b"\n")


def test_another_model_or_question_is_no_going_on(galago, on, photos, tmp_path):
    out = tmp_path / "out.jsonl"
    galago("batch", photos, "--caption", "short", "--max-tokens", 2, *on, "--out", out)
    before = out.read_bytes()
    assert "no answers.what?" in galago("batch", photos, "--query", "what?", *on, "--out", out).error
    assert "has answers of" in galago("batch", photos, "--caption", "short", "--model", "scenes", "--out", out).error
    assert out.read_bytes() == before


def test_what_is_no_output_of_ours_is_left_alone(galago, on, photos, tmp_path):
    for name, text in {"a.jsonl": '{"mine": 1}\n', "a.csv": "mine\n1\n"}.items():
        (tmp_path / name).write_text(text)
        assert "name another --out" in galago("batch", photos, *on, "--out", tmp_path / name).error
        assert (tmp_path / name).read_text() == text


def test_two_runs_do_not_write_to_one_output(galago, on, photos, tmp_path):
    fcntl = pytest.importorskip("fcntl")
    with (tmp_path / "out.jsonl").open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "another run is writing" in galago("batch", photos, *on, "--out", tmp_path / "out.jsonl").error


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


def test_a_full_disk_is_one_line_and_it_goes_on(checkpoint, tmp_path):
    resource = pytest.importorskip("resource")
    for n in range(30):
        draw(tmp_path / "photos" / f"{n:03}.png", n)
    out = tmp_path / "out.jsonl"
    program = [sys.executable, "-m", "galago.cli.app", "batch", str(tmp_path / "photos"), "--caption", "short"]
    program += ["--max-tokens", "3", "--model", str(checkpoint), "--out", str(out)]

    def full() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))

    ran = subprocess.run(program, preexec_fn=full, env=os.environ, capture_output=True, text=True)
    assert ran.returncode == 2 and "give the same command: it goes on" in ran.stderr.splitlines()[-1]
    assert out.read_bytes().endswith(b"\n") and 0 < len(read(out)) < 30
    subprocess.run(program, check=True, env=os.environ, capture_output=True)
    assert len(set(names(out))) == len(names(out)) == 30
