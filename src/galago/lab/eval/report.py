"""A run in words: settings, summary and tables."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.table import Table

from galago.errors import InvalidRequest
from galago.lab.eval.case import Record, Task
from galago.lab.eval.paired import Difference, compare_marks
from galago.lab.eval.score import Mark, Score, summarize

VIEWS = ("blank", "shuffled")
"""Settings that say how what a model sees is changed; at most one of them holds."""


@dataclass(frozen=True)
class EvalRun:
    """All answers of a model to a task."""

    settings: Mapping[str, Any]
    records: Sequence[Record]
    scores: Mapping[str, Score]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.settings["model"], self.settings["precision"], self.view)))

    @property
    def view(self) -> str:
        """How what it saw was changed: blank, shuffled or not at all."""
        return next((name for name in VIEWS if self.settings.get(name)), "")


def score_run(task: Task, settings: Mapping[str, Any], records: Sequence[Record]) -> EvalRun:
    """The run with its scores."""
    scores = summarize(marks_by_picture(records), task.measures, task.distances)
    if task.whole is not None and records:
        scores = task.whole(records) | scores
    return EvalRun(settings, records, scores)


def marks_by_picture(records: Sequence[Record], shown: Sequence[Record] | None = None) -> list[list[Mark]]:
    """The marks of each image or clip, by what is noted of it in `shown`, which are the same cases."""
    marks: dict[str, list[Mark]] = {}
    for record, noted in zip(records, shown or records, strict=True):
        marks.setdefault(noted.shown or noted.id, []).extend(record.marks)
    return list(marks.values())


def run_summary(run: EvalRun) -> dict[str, Any]:
    """For programs. Bounds of intervals that are not known are null."""
    measures = {name: {k: _finite(v) for k, v in asdict(score).items()} for name, score in run.scores.items()}
    return {**run.settings, "answers": len(run.records), "measures": measures}


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def scores_table(task: Task, run: EvalRun, *others: EvalRun) -> Table:
    """The scores; beside them those of the same model that saw something else."""
    s = run.settings
    count = "all" if s["count"] is None else s["count"]
    title = f"{s['task']}: {run.name}, {count} of seed {s['seed']}, {len(run.records)} answers"
    shown = Table(title=title, caption=f"range {s['range']}" if s.get("range") else None)
    shown.add_column("measure", no_wrap=True)
    for name in ("n", "score", "95 % interval", *(other.view for other in others)):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, score in run.scores.items():
        cells = [str(score.tasks), format_score(task, name, score.share)]
        cells.append(f"{format_score(task, name, score.low)} to {format_score(task, name, score.high)}")
        cells += [format_score(task, name, o.scores[name].share) if name in o.scores else "-" for o in others]
        shown.add_row(name, *cells)
    return shown


def format_score(task: Task, measure: str, value: float) -> str:
    """Percent, or a distance."""
    if not math.isfinite(value):
        return "?"
    return f"{value:.3f}" if measure in task.distances else f"{100 * value:.1f} %"


def compare_runs(task: Task, a: EvalRun, b: EvalRun) -> dict[str, Difference]:
    """How b differs from a in each measure that is a sum over answers. Raises InvalidRequest for other cases."""
    if a.settings["task"] != b.settings["task"]:
        raise InvalidRequest(f"{a.settings['task']} and {b.settings['task']} cannot be compared: they are two tasks")
    if [(r.id, r.truth) for r in a.records] != [(r.id, r.truth) for r in b.records]:
        raise InvalidRequest(
            f"{a.name} and {b.name} did not answer the same cases; give both one --count, --seed and --range"
        )
    before, after = (marks_by_picture(run.records, a.records) for run in (a, b))
    return compare_marks(before, after, task.measures, task.distances)


def comparison_table(task: Task, a: EvalRun, b: EvalRun, differences: Mapping[str, Difference]) -> Table:
    """Both runs side by side."""
    shown = Table(
        title=f"{a.settings['task']}: A {a.name}, B {b.name}, {len(a.records)} answers each",
        caption="lost, won: answers that were better in A, in B. p: of so uneven a split by chance (McNemar, exact)",
    )
    shown.add_column("measure", no_wrap=True)
    for name in ("n", "A", "B", "B - A", "lost", "won", "p"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in a.scores:
        cells = [str(a.scores[name].tasks), format_score(task, name, a.scores[name].share)]
        cells.append(format_score(task, name, b.scores[name].share) if name in b.scores else "-")
        d = differences.get(name)
        if d is not None:
            scale, digits = (1, 3) if name in task.distances else (100, 1)
            cells.append(f"{scale * d.change:+.{digits}f} ± {scale * d.spread:.{digits}f}")
            cells += [str(d.lost), str(d.won), f"{d.p:.3f}{' *' if d.p < 0.05 else ''}"]
        shown.add_row(name, *cells)
    return shown
