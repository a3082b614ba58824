"""Children that tell, fail, die and are interrupted: real processes."""

import os
import sys
import time
from typing import Any

import pytest
import tiny_smolvlm
import torch
from tiny_moondream import write

from galago.errors import InvalidRequest
from galago.lab.bench import run
from galago.lab.bench.case import BenchCase
from galago.lab.bench.measure import measure_case, warm_files
from galago.lab.bench.processes import ChildFailed, child_command, run_child
from galago.lab.bench.run import BenchPlan, run_bench
from galago.system.device import memory_in_use

CPU = torch.device("cpu")


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def reason(code: str) -> str:
    with pytest.raises(ChildFailed) as failed:
        run_child(python(code), lambda message: None)
    assert "\n" not in str(failed.value)
    return str(failed.value)


def test_messages_arrive_in_order():
    told = []
    run_child(python("for i in range(3): print('{\"event\": %d}' % i)"), told.append)
    assert told == [{"event": i} for i in range(3)]


def test_a_child_that_dies_is_explained():
    assert "SIGKILL" in reason("import os; os.kill(os.getpid(), 9)")
    assert "memory" in reason("import os; os.kill(os.getpid(), 9)")
    assert "SIGSEGV" in reason("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)")
    assert reason("raise MemoryError('too much')") == "MemoryError: too much"
    assert reason("raise SystemExit(7)") == "its process ended with exit code 7"
    assert reason("""print('{"event": "failed", "error": "why"}'); raise SystemExit(2)""") == "why"


def test_more_is_said_than_a_pipe_holds():
    assert reason("import sys; sys.stderr.write('x' * 300_000 + '\\nlast'); raise SystemExit(1)") == "last"


def test_an_interrupt_kills_the_child():
    told = []

    def interrupt(message: dict[str, int]) -> None:
        told.append(message["event"])
        raise KeyboardInterrupt

    endless = "import os, signal\nprint('{\"event\": %d}' % os.getpid(), flush=True)\nwhile True: signal.pause()"
    with pytest.raises(KeyboardInterrupt):
        run_child(python(endless), interrupt)
    with pytest.raises(ProcessLookupError):
        os.kill(told[0], 0)


def test_what_a_library_prints_does_not_reach_the_messages(tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text("import atexit; atexit.register(lambda: print('bye'))")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *sys.path]))
    told = []
    with pytest.raises(ChildFailed, match="no model 'moondream9'"):
        run_child(child_command({"case": {"model": "moondream9"}, "started": 0.0}), told.append)
    assert told == []


@pytest.mark.slow
def test_a_case_that_fails_leaves_the_others():
    steps = []
    cases = (BenchCase("moondream9", tokens=2, runs=1), BenchCase("scenes", tokens=2, runs=1))
    outcome = run_bench(
        BenchPlan(cases, rounds=2, ceilings=False), lambda done, total, what: steps.append((done, total, what))
    )
    [result], [failure] = outcome.results, outcome.failures
    assert failure.startswith("moondream9: no model 'moondream9'")
    assert result["model"] == "scenes" and result["processes"] == result["runs"] == 2
    assert result["ceilings"] == {} and set(result["share_of_ceiling"]) == {"decode"}
    assert "round 2 of 2: scenes" in {what for _, _, what in steps}
    assert [done for done, _, _ in steps] == sorted(done for done, _, _ in steps)
    assert all(done <= total for done, total, _ in steps)


def test_packing_for_the_first_time_is_not_measured(tmp_path, monkeypatch):
    from galago.store import packing

    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "cache"))
    case = BenchCase(str(write(tmp_path / "tiny")), "int8", width=60, height=40, tokens=4, runs=2)
    warm_files(case)
    [made] = (tmp_path / "cache").rglob("*.safetensors")
    written = made.stat()
    told: list[dict[str, Any]] = []
    measure_case(case, 0.0, told.append)
    assert made.stat().st_mtime_ns == written.st_mtime_ns
    assert [m["event"] for m in told] == ["loaded", "run", "run", "end"]
    loaded, one, other, end = told
    assert loaded["precision"] == "int8" and loaded["kernels"] and "ready_s" in one and "ready_s" not in other
    assert one["tokens"] == other["tokens"] == 4 and end["peak_of_all_bytes"] >= one["peak_rss_bytes"] > 0


def test_a_process_that_prepares_comes_before_each_that_measures(monkeypatch):
    tasks: list[str] = []

    def child(task: dict[str, Any]) -> list[str]:
        [kind] = {"prepare", "case"} & task.keys()
        tasks.append(kind)
        return python(f"""print('{{"event": "{kind}"}}')""")

    monkeypatch.setattr(run, "child_command", child)
    under_way = run._Session(BenchPlan((BenchCase("tiny"),), ceilings=False), lambda done, total, what: None)
    under_way.round("")
    assert tasks == ["prepare", "case"]
    assert under_way.processes[BenchCase("tiny")] == [[{"event": "case"}]]


def test_the_peak_is_that_of_the_process_itself():
    """Not of the process that started it, as Linux' ru_maxrss has it."""
    held = bytearray(memory_in_use(CPU).peak + 200_000_000)
    held[::4096] = bytes([1]) * len(held[::4096])
    told: list[dict[str, Any]] = []
    code = (
        "import json, torch; from galago.system.device import memory_in_use; "
        "print(json.dumps({'event': memory_in_use(torch.device('cpu')).peak}))"
    )
    run_child(python(code), told.append)
    assert 20_000_000 < told[0]["event"] < len(held) <= memory_in_use(CPU).peak


def test_image_sizes():
    from galago.lab.bench.case import parse_clip_size, parse_image_size

    assert parse_image_size("1024x768") == (1024, 768)
    assert (parse_clip_size("1024x768"), parse_clip_size("8x512X512")) == ((0, 1024, 768), (8, 512, 512))
    for wrong in ("1024", "0x10", "-3x4", "axb", "10x10x10", "99999x99999", "1e3x4", ""):
        with pytest.raises(InvalidRequest, match="--image"):
            parse_image_size(wrong)
    for wrong in ("8x", "0x8x8", "1x2x3x4", "900x900x900"):
        with pytest.raises(InvalidRequest, match="--image"):
            parse_clip_size(wrong)


def test_a_clip_is_measured_as_its_frames(tmp_path):
    tiny_smolvlm.write(tmp_path)
    told = []
    measure_case(BenchCase(str(tmp_path), "float32", 32, 32, 8, tokens=2, runs=2), time.monotonic(), told.append)
    loaded, *runs, _ = told
    assert loaded["crops"] == 8 and loaded["prefill_flop"] > 0 and loaded["encode_flop"] > 0
    assert [run["tokens"] for run in runs] == [2, 2]
    assert all(run["again_s"] > 0 for run in runs)
