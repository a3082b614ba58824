"""Measures a model on drawn scenes: `python -m galago.eval.scenes --count 500`."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from rich.console import Console
from rich.progress import MofNCompleteColumn, Progress, TimeRemainingColumn
from rich.table import Table

from galago.eval.scenes.ranges import BUNDLED, RANGES, Range
from galago.eval.scenes.score import (
    MEASURES,
    Answer,
    Mark,
    Score,
    ask,
    cases,
    is_right,
    judge,
    missed,
    summarize,
)
from galago.eval.scenes.tasks import Task


def main(argv: Sequence[str] | None = None) -> int:
    """Run the evaluation; 1 when a score given with --min is missed."""
    options = _options(argv)
    import galago  # only here, so that --help does not wait for the engine

    model = galago.load(options.model, precision=options.precision)
    started = time.perf_counter()
    marks, wrong = evaluate(model, options.count, options.seed, blank=options.blank, of=RANGES[options.range])
    seconds = time.perf_counter() - started
    scores = summarize(marks)

    title = f"{options.model}, {options.count} scenes of seed {options.seed}, {options.precision}"
    Console().print(table_of(scores, title + (", blank images" if options.blank else "")))
    for kind, lines in wrong.items():
        for line in lines[: options.show]:
            print(f"wrong {kind}: {line}")
    if options.json:
        report = {
            "model": options.model,
            "precision": options.precision,
            "count": options.count,
            "seed": options.seed,
            "blank": options.blank,
            "range": options.range,
            "seconds": round(seconds, 1),
            "measures": {
                name: {"tasks": s.tasks, "share": s.share, "low": s.low, "high": s.high} for name, s in scores.items()
            },
        }
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    short = missed(scores, dict(options.min))
    for line in short:
        print(line, file=sys.stderr)
    return 1 if short else 0


def evaluate(
    model: Any, count: int, seed: int, *, blank: bool = False, of: Range = BUNDLED
) -> tuple[list[Mark], dict[str, list[str]]]:
    """Marks of all tasks of `count` scenes, and the wrong answers in words by kind.

    With `blank` the model sees grey images of the same size: what is guessed without looking.
    """
    marks: list[Mark] = []
    wrong: dict[str, list[str]] = {}
    columns = (*Progress.get_default_columns()[:2], MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        bar = progress.add_task("scenes", total=count)
        for index, (scene, tasks) in enumerate(cases(seed, count, of)):
            image = Image.new("RGB", scene.image.size, (128, 128, 128)) if blank else scene.image
            encoded = model.encode_image(image)
            for task in tasks:
                answer = ask(model, encoded, task)
                found = judge(scene, task, answer)
                marks += found
                if not is_right(found):
                    wrong.setdefault(task.kind, []).append(_wrong(index, task, answer))
            progress.advance(bar)
    return marks, wrong


def _wrong(index: int, task: Task, answer: Answer) -> str:
    asked = task.question or task.object or task.length
    true = task.text or (task.points if task.skill == "gaze" else task.boxes)
    return f"scene {index}: {asked} {task.refs or ''} -> {answer!r}, not {true!r}"


def table_of(scores: Mapping[str, Score], title: str) -> Table:
    """The scores as a table."""
    table = Table(title=title)
    table.add_column("measure")
    for name in ("n", "score %", "95 % interval"):
        table.add_column(name, justify="right")
    for name, s in scores.items():
        interval = f"{100 * s.low:.1f} to {100 * s.high:.1f}"
        table.add_row(name, str(s.tasks), f"{100 * s.share:.1f}", interval)
    return table


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m galago.eval.scenes", description=__doc__)
    parser.add_argument("--model", default="scenes", help="name or path of the model")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--count", type=_positive, default=500, help="number of scenes")
    parser.add_argument("--seed", type=int, default=20261, help="of the series of scenes")
    parser.add_argument("--range", type=int, choices=RANGES, default=BUNDLED.version, help="what the scenes may hold")
    parser.add_argument("--blank", action="store_true", help="show grey images (blind baseline)")
    parser.add_argument("--show", type=int, default=0, help="wrong answers to print of each kind")
    parser.add_argument("--json", type=Path, help="file for the scores")
    parser.add_argument(
        "--min", type=_least, nargs="+", action="extend", default=[], metavar="MEASURE=PERCENT",
        help="fail below this score; measures: " + ", ".join(MEASURES),
    )  # fmt: skip
    return parser.parse_args(argv)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def _least(text: str) -> tuple[str, float]:
    name, _, percent = text.partition("=")
    if name not in MEASURES:
        raise argparse.ArgumentTypeError(f"no measure {name!r}")
    try:
        return name, float(percent)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not MEASURE=PERCENT") from None


if __name__ == "__main__":
    sys.exit(main())
