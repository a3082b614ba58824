"""A batch that was ended goes on, whenever that was, and mixes nothing up."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from batches import ASKED, OUTPUTS, draw, draw_photos, names, read, summary
from commands import Command
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


@pytest.fixture
def on(checkpoint: Path) -> tuple[Any, ...]:
    return "--model", checkpoint


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return draw_photos(tmp_path / "photos")


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
