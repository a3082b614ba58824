"""Standard streams that are closed, full, endless or read no further end in one line and the documented code."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from galago.media import source

COMMAND = [sys.executable, "-m", "galago.cli.app"]
FULL = Path("/dev/full")
needs_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


def ran(script: str, *, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[bytes]:
    """A line of shell in which $G is the command."""
    ours = {"G": " ".join(COMMAND), **(env or {})}
    return subprocess.run(["sh", "-c", script], capture_output=True, env={**os.environ, **ours}, check=False)


def error(done: subprocess.CompletedProcess[bytes]) -> str:
    said = done.stderr.decode()
    assert done.returncode == 2 and said.count("\n") == 1 and said.startswith("error: "), done
    return said


@needs_full
@pytest.mark.parametrize("command", ["models", "config --json", "models list --json", "--version"])
def test_standard_output_on_a_full_disk(command: str) -> None:
    assert "cannot write to standard output: No space left on device" in error(ran(f"$G {command} >/dev/full"))


def test_standard_output_that_is_closed() -> None:
    assert "cannot write to standard output: it is closed" in error(ran("$G models >&-"))


def test_whoever_reads_the_output_may_have_enough_of_it() -> None:
    command = [*COMMAND, "models", "--json"]
    reading, writing = os.pipe()
    os.close(reading)
    try:
        done = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    finally:
        os.close(writing)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


@needs_full
def test_what_is_wrong_on_a_full_disk_has_its_code_still() -> None:
    assert ran("$G models pull no-such-model 2>/dev/full").returncode == 2
    assert ran("$G models pull no-such-model 2>&-").returncode == 2


def test_standard_input_that_is_closed() -> None:
    assert "standard input: it is closed" in error(ran("$G caption - -m scenes <&-"))


def test_standard_input_that_does_not_end() -> None:
    done = ran(f"{sys.executable} -c 'while True: print(\"\\211PNG\" * 9999)' 2>/dev/null | $G caption - -m scenes")
    assert f"more than {source.MAX_BYTES >> 20} MiB came out of a pipe" in error(done)


@pytest.mark.parametrize("kind", ["/dev/zero", "/dev/null"])
def test_standard_input_that_holds_nothing(kind: str) -> None:
    assert "standard input: " in error(ran(f"$G caption - -m scenes <{kind}"))


def test_a_pipe_as_large_as_an_upload_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_BYTES", 10)
    for size in (10, 11):
        reading, writing = os.pipe()
        os.write(writing, b"x" * size)
        os.close(writing)
        with os.fdopen(reading, "rb") as file:
            if size == 10:
                with source.open_file(file) as (found, _):
                    assert found.read() == b"x" * size
            else:
                with pytest.raises(source.InvalidImage, match="came out of a pipe"), source.open_file(file):
                    pass


def test_what_nobody_thought_of_is_one_line(tmp_path: Path) -> None:
    script = (
        "import typer, galago.cli.app as app\n"
        "@app.app.command()\n"
        "def broken() -> None:\n    raise KeyError('a\\nb')\n"
        "app.run(['broken'])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert "a fault of galago's, in <string> line 4: KeyError" in error(done)


# --- names ---------------------------------------------------------------------------------------


@pytest.fixture
def strange(photo: Path) -> bytes:
    """A picture under a name that is not UTF-8."""
    name = os.fsencode(photo.parent) + b"/caf\xe9.png"
    try:
        Path(os.fsdecode(name)).write_bytes(photo.read_bytes())
    except OSError:
        pytest.skip("this file system takes UTF-8 alone")
    return name


def test_a_name_that_is_not_utf_8_comes_back_as_one_that_finds_the_file(strange: bytes, checkpoint: Path) -> None:
    asked = [*COMMAND, "caption", strange, "--json", "-m", checkpoint, "--max-tokens", "2", "--device", "cpu"]
    first = subprocess.run(asked, capture_output=True, check=True)
    name = json.loads(first.stdout.decode("utf-8"))["image"]
    assert name.startswith("file:///") and name.endswith("/caf%E9.png")
    again = subprocess.run([*asked[:4], name, *asked[5:]], capture_output=True, check=True)
    assert again.stdout == first.stdout


def test_a_name_that_is_not_utf_8_is_printed_as_it_is(strange: bytes, photo: Path, checkpoint: Path) -> None:
    asked = [*COMMAND, "caption", strange, photo, "-m", checkpoint, "--max-tokens", "2", "--device", "cpu"]
    done = subprocess.run(asked, capture_output=True, check=True)
    assert done.stdout.startswith(strange + b": ")


def test_json_is_json_in_whatever_letters_the_terminal_has(photo: Path, checkpoint: Path) -> None:
    umlaut = photo.rename(photo.with_name("größe.png"))
    asked = [*COMMAND, "caption", umlaut, "--json", "-m", checkpoint, "--max-tokens", "2", "--device", "cpu"]
    done = subprocess.run(asked, capture_output=True, check=True, env={**os.environ, "PYTHONIOENCODING": "ascii"})
    assert json.loads(done.stdout.decode("ascii"))["image"] == str(umlaut)


def test_a_terminal_without_the_letters_of_a_name(galago: Any, tmp_path: Path) -> None:
    done = ran("$G caption größe.png -m scenes", env={"PYTHONIOENCODING": "ascii"})
    assert "e.png" in error(done)
