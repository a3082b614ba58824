"""The check of a GPU, carried out on the CPU with tiny models: what it finds, and what it says of what cannot run."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from vectors import VECTORS

ROOT = Path(__file__).parents[2]
GOLDEN = ("moondream2-tiny/small", "smolvlm2-tiny/a1_wide_split", "smolvlm2-tiny/model_a")


def checked(folder: Path, *arguments: str) -> tuple[int, str, dict[str, Any]]:
    """Its exit code, what it prints, and what it writes."""
    out = folder / "gpu.json"
    command = [sys.executable, ROOT / "benchmarks" / "gpu_check.py", "--out", out, *arguments]
    done = subprocess.run([*map(str, command)], capture_output=True, text=True)
    assert done.stderr == ""
    return done.returncode, done.stdout, json.loads(out.read_text())


@pytest.mark.slow
def test_all_parts_on_the_cpu(tmp_path: Path) -> None:
    for name in GOLDEN:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).symlink_to(VECTORS / name)
    few = ("--models", "scenes", "nothing-like-it", "--precisions", "float32", "--at-once", "1", "2", "--tokens", "2")
    code, said, found = checked(tmp_path, "--device", "cpu", "--golden", str(tmp_path), "--minutes", "60", *few)
    *parts, broken = ("machine", "answers", "golden", "profile", "scenes float32", "nothing-like-it float32")
    assert [*found] == [*parts, broken] and all(found[part]["took_s"] > 0 for part in parts)
    assert not any({"failed", "skipped"} & found[part].keys() for part in parts), found
    assert found["machine"]["torch"] == torch.__version__
    assert found["answers"]["float32"] == {"equal": 5, "of": 5, "boxes_near": True}
    assert found["golden"]["moondream2-tiny step logits"]["same_choices"]
    assert found["golden"]["smolvlm2-tiny step logits"]["same_choices"]
    assert len(found["profile"]["dearest"]) == 10 and found["profile"]["request_ms"] > 0
    speed = found["scenes float32"]
    assert speed["weights"] == "random"
    for row in (speed["at_once_1"], speed["at_once_2"]):
        assert all(row[figure] > 0 for figure in ("requests_per_s", "tokens_per_s", "p50_ms", "peak_gb"))

    # One part cannot run, and says so in a line; the others did.
    assert code == 1 and found[broken]["failed"].startswith("no model 'nothing-like-it'")
    lines = said.splitlines()
    assert lines[:5] == [f"{part}: done" for part in parts] and lines[5].startswith(f"{broken}: failed: no model")
    rows = [line.strip("| ").split(" | ") for line in lines if line.startswith("|")]
    assert all(len(row) == 7 for row in rows)
    names = [row[0] for row in rows[2:]]
    assert names == ["scenes"] * 2 + ["moondream2 by Kestrel on an H100, as published"] * 2
    assert "random weights" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_a_device_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    code, said, found = checked(tmp_path, "--device", "cuda")
    assert code == 1
    assert said == "machine: failed: device 'cuda' is not available on this machine; use auto or cpu\n"
    assert [*found] == ["machine"]


def test_what_the_minutes_do_not_do_for_is_skipped(tmp_path: Path) -> None:
    code, said, found = checked(tmp_path, "--device", "cpu", "--minutes", "0")
    assert code == 1 and found == {"machine": {"skipped": "the minutes are used"}}
    assert said == "machine: skipped: the minutes are used\n"
