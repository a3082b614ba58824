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
from galago.lab.eval.run import left_out
from galago.lab.eval.score import Mark, Score, summarize

VIEWS = ("blank", "shuffled")
"""Settings that say how what a model sees is changed; at most one of them holds."""


@dataclass(frozen=True)
class EvalRun:
    """All answers of a model to a task, and the cases that were left out."""

    settings: Mapping[str, Any]
    records: Sequence[Record]
    scores: Mapping[str, Score]

    @property
    def answered(self) -> Sequence[Record]:
        return [record for record in self.records if not record.lacks]

    @property
    def name(self) -> str:
        return " ".join(filter(None, (self.settings["model"], self.settings["precision"], self.view)))

    @property
    def view(self) -> str:
        """How what it saw was changed: blank, shuffled or not at all."""
        return next((name for name in VIEWS if self.settings.get(name)), "")


def score_run(task: Task, settings: Mapping[str, Any], records: Sequence[Record]) -> EvalRun:
    """The run with its scores."""
    answered = EvalRun(settings, records, {}).answered
    scores = summarize(marks_by_picture(answered), task.measures, task.distances)
    if task.whole is not None and answered:
        scores = task.whole(answered) | scores
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
    return {
        **run.settings,
        "answers": len(run.answered),
        "left_out": left_out(run.records),
        "measures": measures,
    }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def scores_table(task: Task, run: EvalRun, *others: EvalRun) -> Table:
    """The scores; beside them those of the same model that saw something else."""
    s = run.settings
    count = "all" if s["count"] is None else s["count"]
    title = f"{s['task']}: {run.name}, {count} of seed {s['seed']}, {len(run.answered)} answers"
    notes = [f"range {s['range']}"] if s.get("range") else []
    notes += [f"it cannot {what}: {cases_left_out(n)}" for what, n in left_out(run.records).items()]
    shown = Table(title=title, caption="; ".join(notes) or None)
    shown.add_column("measure", no_wrap=True)
    for name in ("n", "score", "95 % interval", *(other.view for other in others)):
        shown.add_column(name, justify="right", no_wrap=True)
    for name, score in run.scores.items():
        cells = [str(score.tasks), format_score(task, name, score.share)]
        cells.append(f"{format_score(task, name, score.low)} to {format_score(task, name, score.high)}")
        cells += [format_score(task, name, o.scores[name].share) if name in o.scores else "-" for o in others]
        shown.add_row(name, *cells)
    return shown


def cases_left_out(count: int) -> str:
    return f"{count} cases are left out" if count != 1 else "1 case is left out"


def format_score(task: Task, measure: str, value: float) -> str:
    """Percent, or a distance."""
    if not math.isfinite(value):
        return "?"
    return f"{value:.3f}" if measure in task.distances else f"{100 * value:.1f} %"


def shared_cases(task: Task, a: EvalRun, b: EvalRun) -> tuple[EvalRun, EvalRun]:
    """Both runs over the cases that neither left out.

    Raises InvalidRequest for runs over other cases, and where there is no case that both answered.
    """
    if a.settings["task"] != b.settings["task"]:
        raise InvalidRequest(f"{a.settings['task']} and {b.settings['task']} cannot be compared: they are two tasks")
    if [(r.id, r.truth) for r in a.records] != [(r.id, r.truth) for r in b.records]:
        raise InvalidRequest(
            f"{a.name} and {b.name} did not answer the same cases; give both one --count, --seed and --range"
        )
    pairs = [pair for pair in zip(a.records, b.records, strict=True) if not any(record.lacks for record in pair)]
    if a.records and not pairs:
        raise InvalidRequest(f"{a.name} and {b.name} cannot be compared: there is no case that both answered")
    ours, theirs = ([pair[side] for pair in pairs] for side in (0, 1))
    return score_run(task, a.settings, ours), score_run(task, b.settings, theirs)


def compare_runs(task: Task, a: EvalRun, b: EvalRun) -> dict[str, Difference]:
    """How b differs from a in each measure that is a sum over answers, of the cases that both answered.

    Raises InvalidRequest as shared_cases does.
    """
    a, b = shared_cases(task, a, b)
    before, after = (marks_by_picture(run.records, a.records) for run in (a, b))
    return compare_marks(before, after, task.measures, task.distances)


def comparison_table(task: Task, a: EvalRun, b: EvalRun, differences: Mapping[str, Difference]) -> Table:
    """Both runs side by side, over the cases that both answered; a measure that one of them lacks is that of all its
    answers."""
    both = shared_cases(task, a, b)
    notes = [
        f"{side} cannot {what}: {cases_left_out(n)}"
        for side, run in (("A", a), ("B", b))
        for what, n in left_out(run.records).items()
    ]
    notes.append("lost, won: answers that were better in A, in B. p: of so uneven a split by chance (McNemar, exact)")
    shown = Table(
        title=f"{a.settings['task']}: A {a.name}, B {b.name}, {len(both[0].records)} answers of both",
        caption="\n".join(notes),
    )
    shown.add_column("measure", no_wrap=True)
    for name in ("n", "A", "B", "B - A", "lost", "won", "p"):
        shown.add_column(name, justify="right", no_wrap=True)
    for name in [*a.scores, *(name for name in b.scores if name not in a.scores)]:
        scores = [shared.scores.get(name) or run.scores.get(name) for shared, run in zip(both, (a, b), strict=True)]
        cells = [str(next(score.tasks for score in scores if score))]
        cells += [format_score(task, name, score.share) if score else "-" for score in scores]
        d = differences.get(name)
        if d is not None:
            scale, digits = (1, 3) if name in task.distances else (100, 1)
            cells.append(f"{scale * d.change:+.{digits}f} ± {scale * d.spread:.{digits}f}")
            cells += [str(d.lost), str(d.won), f"{d.p:.3f}{' *' if d.p < 0.05 else ''}"]
        shown.add_row(name, *cells)
    return shown
