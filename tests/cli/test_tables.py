"""Tables on a terminal keep to its width, and nothing in them is cut off; elsewhere each row is a line."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from galago.choices import PRECISIONS
from galago.lab.bench.results import read_results
from galago.lab.bench.table import render_results
from galago.store.catalog import Bundled, entries, routes

ROOT = Path(__file__).parents[2]
IDS = [*(entry.id for entry in entries()), *(route.id for route in routes())]


def on_a_terminal(width: int, *args: str) -> list[str]:
    """The lines that a command prints on a terminal so wide."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    with subprocess.Popen([sys.executable, "-m", "galago.cli.app", *args], stdout=theirs, env=env) as process:
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 65536)
            except OSError:  # Linux's way to say that the other end is closed
                break
            if not piece:
                break
            said += piece
        assert process.wait() == 0
    os.close(ours)
    return said.decode().splitlines()


@pytest.mark.parametrize("width", [60, 80, 120])
def test_the_list_of_models_on_a_terminal(width: int) -> None:
    lines = on_a_terminal(width, "models")
    assert all(len(line) <= width for line in lines)
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == IDS
    assert "?" not in "".join(lines)
    words = " ".join(" ".join(lines).split())
    assert all(entry.description in words for entry in entries())


def test_the_list_of_models_in_a_file(galago: Any) -> None:
    head, *rows = galago("models").out.splitlines()
    assert head.split()[:7] == ["on", "disk", *PRECISIONS] and [row.split()[0] for row in rows] == IDS


def test_what_comes_along_was_measured() -> None:
    for entry in entries():
        if isinstance(entry.source, Bundled):
            assert set(entry.memory) == set(entry.precisions), entry.id


def test_results_of_a_benchmark_stand_below_each_other_where_they_must() -> None:
    results = read_results(ROOT / "benchmarks" / "results" / "moondream2-random-378.json")
    for width, tables in ((80, 4), (120, 3), (240, 1)):
        console = Console(width=width, highlight=False, soft_wrap=True)
        with console.capture() as captured:
            console.print(render_results(results, None))
        said = captured.get()
        assert said.count("best / median") == tables and "\u2026" not in said
        assert all(f"{r['model']} {r['precision']}" in said for r in results)
        rows = said[said.index("best / median") : said.index("In brackets")].splitlines()
        assert all(len(row) <= width for row in rows)


@pytest.mark.parametrize("compared", [False, True])
def test_scores_at_80_columns(compared: bool) -> None:
    from galago.lab.eval import tasks
    from galago.lab.eval.case import Record
    from galago.lab.eval.report import compare_runs, comparison_table, score_run, scores_table
    from galago.lab.eval.score import Mark

    task = tasks.load_task("scenes")
    settings = {
        "task": "scenes",
        "model": "moondream2-2025-04-14",
        "precision": "bfloat16",
        "count": 300,
        "seed": 20261,
    }
    marks = tuple(Mark(name, 1.0, 2.0) for name in task.measures)
    records = [Record(str(i), "what?", "a", "b", marks, 1, {}, str(i)) for i in range(300)]
    run = score_run(task, settings, records)
    console = Console(width=80, highlight=False)
    with console.capture() as captured:
        console.print(
            comparison_table(task, run, run, compare_runs(task, run, run)) if compared else scores_table(task, run, run)
        )
    assert "\u2026" not in captured.get()
    assert all(name in captured.get() for name in task.measures if name in run.scores)
