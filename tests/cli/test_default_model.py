"""A command or a server that is given no model says which one answers, and why."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
import tiny_smolvlm
from clips import animated, pictures
from installed import install

EXAMPLE = Path(__file__).parents[2] / "examples" / "scene.png"


@pytest.fixture
def smolvlm(tmp_path: Path) -> None:
    """One that is installed and sees videos."""
    install("smolvlm2-256m", tiny_smolvlm.write(tmp_path / "tiny"))


def test_the_first_command_of_a_newcomer_says_what_answers_and_how_to_have_more(galago: Any) -> None:
    ran = galago("caption", EXAMPLE, "--max-tokens", 2, "--device", "cpu")
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert ran.err.startswith("no model was named: scenes answers about drawn scenes") and ran.out
    assert "not about photographs; `galago models pull " in ran.err


@pytest.mark.parametrize("command", ["caption PHOTO", "query PHOTO what?", "query what?"])
def test_what_is_installed_answers(galago: Any, photo: Path, smolvlm: None, command: str) -> None:
    words = [str(photo) if word == "PHOTO" else word for word in command.split()]
    ran = galago(*words, "--max-tokens", 2, "--device", "cpu", "--json")
    assert ran.code == 0
    assert ran.err.startswith("no model was named: smolvlm2-256m answers, the best that is installed and fits")


def test_objects_are_looked_for_by_a_model_that_can(galago: Any, smolvlm: None) -> None:
    for command in (("detect", EXAMPLE, "circle"), ("point", EXAMPLE, "circle"), ("gaze", EXAMPLE, "--eye", "0.5,0.5")):
        ran = galago(*command, "--device", "cpu")
        assert (ran.code, ran.err.startswith("no model was named: scenes answers")) == (0, True)


def test_what_moves_is_shown_to_a_model_that_sees_videos(galago: Any, tmp_path: Path) -> None:
    clip = tmp_path / "clip.gif"
    clip.write_bytes(animated(pictures(3), "GIF", 500))
    ran = galago("query", clip, "What moves?", "--device", "cpu", "--max-tokens", 2)
    assert (ran.code, ran.err.startswith("no model was named: motion answers about drawn clips")) == (0, True)


def test_a_model_of_the_environment_is_one_that_was_named(
    galago: Any, photo: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ("caption", photo, "--device", "cpu", "--max-tokens", 3)
    named = galago(*asked, "-m", checkpoint)
    monkeypatch.setenv("GALAGO_MODEL", f"{checkpoint},scenes")
    assert galago(*asked) == named and named.err == ""
    monkeypatch.setenv("GALAGO_MODEL", "no-such-model")
    assert "no-such-model" in galago(*asked).error


def test_a_server_says_it_in_its_log_and_in_its_health(galago: Any) -> None:
    command = [sys.executable, "-m", "galago.server", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("listening"):
                break
        try:
            health = httpx.get(f"{said[-1].split()[2]}/health").json()
        finally:
            process.send_signal(signal.SIGTERM)
    assert said[-1].endswith(" with scenes (float32)\n")
    assert any("no model was named: scenes answers" in line for line in said)
    assert health["model"] == "scenes" and health["model_choice"].startswith("no model was named: scenes answers")
    [told] = galago("config", "--json").json
    assert told["model"] == {"value": None, "from": "default"}


def test_a_server_that_was_named_one_says_nothing_of_it(checkpoint: Path) -> None:
    command = [sys.executable, "-m", "galago.server", "--port", "0", "--device", "cpu", str(checkpoint)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        assert process.stderr is not None
        line = next((said for said in process.stderr if said.startswith("listening")), "")
        try:
            assert "model_choice" not in httpx.get(f"{line.split()[2]}/health").json()
        finally:
            process.send_signal(signal.SIGTERM)


def test_doctor_tells_which_it_would_be(galago: Any, smolvlm: None) -> None:
    assert json.loads(galago("doctor", "--json").out)["default"] == "smolvlm2-256m"
