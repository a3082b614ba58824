"""The command as a process of its own: how fast help answers, serving, and interrupts."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

COMMAND = [sys.executable, "-m", "galago.cli.app"]
COMMANDS = (
    "caption", "query", "detect", "point", "gaze", "watch", "serve", "worker", "config", "bench", "models", "jobs",
    "show", "quantize", "doctor",
)  # fmt: skip


def cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def test_help_answers_at_once_and_without_torch():
    """In a few times as long as the library of its command line takes to be imported."""

    def run(code: str) -> tuple[float, str]:
        before = cpu_seconds()
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return cpu_seconds() - before, ran.stdout

    checked = "import sys; from galago.cli.app import main; main(['--help'])"
    checked += "; assert not {'torch', 'sqlalchemy'} & {*sys.modules}"
    least, _ = run("import asyncio, typer.main")
    took, said = run(checked)
    assert took < 6 * least, "torch alone takes twenty times as long"
    assert all(c in said for c in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(galago, command):
    assert galago(command, "--help").out.startswith(f"Usage: galago {command}")


def test_version(galago):
    assert galago("--version").out.startswith("galago")


def serve(*args: str | Path) -> subprocess.Popen[str]:
    def heed_interrupts() -> None:
        # What a shell runs in the background inherits that they are ignored.
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    command = [*COMMAND, "serve", *map(str, args), "--port", "0"]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ, preexec_fn=heed_interrupts)


def test_serve_answers_and_an_interrupt_ends_it(checkpoint):
    with serve("--model", checkpoint) as process:
        assert process.stderr is not None
        line = process.stderr.readline()
        try:
            assert line.startswith("listening on http://127.0.0.1:"), line
            assert httpx.get(f"{line.split()[2]}/v1/models").status_code == 200
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait() == 130
        request, *stopping = process.stderr.read().splitlines()
    assert "path=/v1/models status=200" in request
    assert [line.split(maxsplit=2)[1:] for line in stopping] == [
        ["INFO", "stopping: 0 requests under way have 6 s"],
        ["INFO", "stopped: 0 requests finished, 0 cancelled"],
    ]


def told(*args):
    """The line of a server that listens, and its health; it is interrupted then."""
    with serve(*args) as process:
        assert process.stderr is not None
        # Where there are no kernels, warnings come first.
        line = next((said for said in process.stderr if said.startswith("listening")), "")
        try:
            health = httpx.get(f"{line.split()[2]}/health").json()
        finally:
            process.send_signal(signal.SIGINT)
        assert process.wait() == 130
    return line, health


@pytest.mark.parametrize(
    ("args", "name"),
    [(("scenes-int8",), "scenes-int8"), (("scenes", "--profile", "optimized", "--device", "cpu"), "scenes")],
)
def test_serve_in_int8_by_name_and_by_profile(args, name):
    line, health = told(*args)
    assert (health["model"], health["precision"]) == (name, "int8"), line


def test_serve_several_models():
    line, health = told("scenes", "scenes-int8", "--device", "cpu")
    assert line.endswith(" with scenes (float32), scenes-int8 (int8)\n")
    assert health["model"] == "scenes" and len(health["models"]) == 2


def test_a_model_that_breaks_in_its_load_ends_the_server_with_its_error(checkpoint, tmp_path):
    folder = tmp_path / "broken"
    shutil.copytree(checkpoint, folder)
    (folder / "tokenizer.json").write_text("{}")
    with serve(folder) as process:
        assert process.stderr is not None
        *_, last = process.stderr.read().splitlines()
        assert process.wait() == 2
    assert last.startswith("error: ") and "tokenizer.json" in last


def test_a_port_that_is_taken_is_named_before_the_model_is_looked_for(galago):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        error = galago("serve", "--port", port, "--model", "no-such-model").error
    assert f"port {port} is in use" in error and "--port" in error
