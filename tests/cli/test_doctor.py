"""galago doctor: what the machine has, what it can run, and what would make it quicker."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from installed import install

from galago import load
from galago.backends.memory_estimate import memory_needed
from galago.kernels import kernels
from galago.store.catalog import entries
from galago.system.device import pick_device
from galago.system.machine import SETS, instruction_sets, usable_cores

on_a_cpu = pytest.mark.skipif(pick_device(None).type != "cpu", reason="needs a machine without an accelerator")


@pytest.fixture
def found(galago: Any) -> dict[str, Any]:
    [said] = galago("doctor", "--json").json
    return said


def commands(found: dict[str, Any]) -> str:
    return " | ".join(str(advice["command"]) for advice in found["advice"])


def test_it_tells_what_is_true(found: dict[str, Any]) -> None:
    assert (found["pytorch"], found["pytorch_error"]) == (torch.__version__, None)
    assert found["device"] == str(pick_device(None))
    assert found["processor"]["cores"] == usable_cores()
    assert found["processor"]["hardware_threads"] <= found["processor"]["machine_threads"]
    assert 0 < found["memory"]["for_models_bytes"] < found["memory"]["free_bytes"] or found["device"] != "cpu"
    assert all(disk["free_bytes"] > 0 and disk["writable"] for disk in found["disk"])


def test_a_model_fits_where_it_needs_no_more_than_there_is(found: dict[str, Any]) -> None:
    most, device = found["memory"]["for_models_bytes"], found["device"].partition(":")[0]
    assert [model["id"] for model in found["models"]] == [entry.id for entry in entries()]
    for model in found["models"]:
        for name, needs in model["needs"].items():
            assert needs == memory_needed(model["id"], precision=name, device=device)
            assert (name in model["fits"]) == (needs <= most)


@on_a_cpu
def test_instruction_sets_are_those_that_the_kernels_find(found: dict[str, Any]) -> None:
    if (running := kernels()) is None:
        pytest.skip("needs the kernels (apt install g++)")
    assert found["kernels"] == running.name
    assert set(instruction_sets()) <= set(SETS) and running.name in instruction_sets()


def test_the_command_that_mends_it_is_told(galago: Any, found: dict[str, Any]) -> None:
    assert found["recommended"] is None or f"galago models pull {found['recommended']['model']}" in commands(found)
    install("smolvlm-256m")
    [again] = galago("doctor", "--json").json
    assert "galago models pull" not in commands(again)


@on_a_cpu
def test_what_turns_kernels_and_threads_down_is_told(galago: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAGO_KERNELS", "none")
    [said] = galago("doctor", "--json").json
    assert said["kernels"] is None and "unset GALAGO_KERNELS" in commands(said)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("galago.cli.diagnosis.usable_cores", lambda: torch.get_num_threads() + 1)
    assert "unset OMP_NUM_THREADS" in commands(galago("doctor", "--json").json[0])


@on_a_cpu
@pytest.mark.skipif(not instruction_sets(), reason="needs a processor that there are kernels for")
def test_an_installation_without_kernels_tells_how_to_have_them(
    galago: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.delenv("GALAGO_KERNELS", raising=False)
    monkeypatch.setattr("galago.kernels.load", lambda name: None)
    monkeypatch.setenv("PATH", "")
    [mended] = [
        a["command"] for a in galago("doctor", "--json").json[0]["advice"] if "own kernels do not run" in a["what"]
    ]
    assert "g++" in mended or sys.platform == "darwin"
    assert Path(mended.split()[-1]).name == "build.py" and Path(mended.split()[-1]).is_file()
    model = load("scenes")
    model.close()
    assert [("install a wheel" in said, "g++" in said) for said in model.fallbacks] == [(True, True)]
    assert model.fallbacks[0] in caplog.text


def test_a_cache_that_cannot_be_written_is_told(galago: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    [said] = galago("doctor", "--json").json
    assert "export GALAGO_CACHE=" in commands(said) and "export HF_HOME=" in commands(said)


def test_it_is_read_at_80_columns(galago: Any) -> None:
    said = galago("doctor").out
    assert all(name in said for name in ("processor", "cores", "kernels", "memory", "disk", "recommended"))
    table = [line for line in said.splitlines() if line.startswith(tuple(entry.id for entry in entries()))]
    assert len(table) == len(entries()) and all(len(line) <= 80 for line in table)


def test_without_pytorch_it_says_so_and_the_rest(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing\\nsecond line')")
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    command = [sys.executable, "-m", "galago.cli.app", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env=env, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    told = json.loads(done.stdout)
    assert told["pytorch"] is None and told["pytorch_error"] == "ImportError: libtorch.so is missing"
    assert "pip install torch" in commands(told) and told["models"] and told["memory"]["free_bytes"]
