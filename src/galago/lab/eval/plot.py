"""Runs as a picture: an SVG bar for each measure and run, with its 95 % interval."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from galago.lab.eval.case import Task
from galago.lab.eval.report import EvalRun, format_score
from galago.lab.eval.score import Score
from galago.lab.svg import svg_document

COLOURS = ("#3b6fb6", "#e0923d")
WIDTH, BAR, GAP, TOP, LEFT, RIGHT = 860, 12, 12, 76, 190, 70
"""Pixels: of the picture, a bar, between measures, above the first, left and right of the bars."""


def plot_runs(task: Task, runs: Sequence[EvalRun]) -> str:
    """An SVG document of up to two runs of a task. Shares reach from 0 to 1, distances to the longest."""
    measures = [name for name in runs[0].scores if all(name in run.scores for run in runs)]
    row = BAR * len(runs) + GAP
    height = TOP + row * len(measures) + 30
    title = f"{runs[0].settings['task']}, {len(runs[0].answered)} answers"
    lines = []
    for place, (run, colour) in enumerate(zip(runs, COLOURS, strict=False)):
        x = 16 + 280 * place
        lines.append(f'<rect x="{x}" y="42" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 18}" y="53">{escape(run.name)}</text>')
    furthest = max((_upper_end(run.scores, name) for name in task.distances for run in runs), default=1.0) or 1.0
    for place, name in enumerate(measures):
        top = TOP + row * place
        scale = (WIDTH - LEFT - RIGHT) / (furthest if name in task.distances else 1.0)
        middle = top + BAR * len(runs) / 2 + 4.5
        lines.append(f'<text x="{LEFT - 8}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>')
        for i, (run, colour) in enumerate(zip(runs, COLOURS, strict=False)):
            lines += _bar(task, name, run.scores[name], top + BAR * i, scale, colour)
    return svg_document(WIDTH, height, title, lines)


def _bar(task: Task, name: str, score: Score, top: float, scale: float, colour: str) -> list[str]:
    width = score.share * scale
    right = LEFT + width
    lines = [f'<rect class="score" x="{LEFT}" y="{top}" width="{width:.1f}" height="{BAR - 2}" fill="{colour}"/>']
    if math.isfinite(score.high):
        low, right, middle = LEFT + max(score.low, 0.0) * scale, LEFT + score.high * scale, top + BAR / 2 - 1
        lines.append(
            f'<line x1="{low:.1f}" y1="{middle}" x2="{right:.1f}" y2="{middle}" stroke="#222" stroke-width="1.5"/>'
        )
    told = format_score(task, name, score.share)
    return [*lines, f'<text x="{right + 6:.1f}" y="{top + BAR - 2}" font-size="11" fill="#444">{told}</text>']


def _upper_end(scores: Mapping[str, Score], name: str) -> float:
    score = scores.get(name)
    return 0.0 if score is None else score.high if math.isfinite(score.high) else score.share
