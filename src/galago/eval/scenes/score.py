"""Scores of answers to tasks about drawn scenes.

Every measure is a ratio: what was right (`hits`) over what there was (`total`), both summed over
all tasks. F1 fits in as matches over the mean of what was predicted and what was true.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from galago.eval.scenes.captions import common_facts, parse_caption
from galago.eval.scenes.draw import SINGLE_VIEW, Box, Point, Scene, scene_at
from galago.eval.scenes.ranges import BUNDLED, Range
from galago.eval.scenes.tasks import Task, tasks_for

MEASURES = (
    "color", "shape", "shade", "texture", "presence", "count4", "count5", "count", "relation", "size", "read", "letter",
    "face", "look", "background", "refer", "reason", "describe-precision", "describe-recall",
    "caption-precision", "caption-recall", "detect", "detect-crops", "detect-absent",
    "point", "point-recall", "point-f1", "gaze",
)  # fmt: skip

Answer = str | Sequence[tuple[float, ...]]  # text; boxes; points


@dataclass(frozen=True)
class Mark:
    """What one answer adds to one measure."""

    measure: str  # one of MEASURES
    hits: float
    total: float


@dataclass(frozen=True)
class Score:
    """One measure over all tasks; shares in 0..1."""

    tasks: int
    share: float
    low: float  # 95 % interval
    high: float


# --- metrics ----------------------------------------------------------------------------------


def wilson(hits: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share; (0, 1) when nothing was measured."""
    if total <= 0:
        return 0.0, 1.0
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    spread *= z / (1 + z * z / total)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def plain(answer: str) -> str:
    """An answer as it is compared: lower case, without outer spaces and a trailing full stop."""
    return answer.strip().lower().rstrip(".").rstrip()


def iou(a: Box, b: Box) -> float:
    """Intersection over union of two boxes (x_min, y_min, x_max, y_max), 0..1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / (_area(a) + _area(b) - shared)


def _area(box: Box) -> float:
    return max(box[2] - box[0], 0.0) * max(box[3] - box[1], 0.0)


def clamp(box: Sequence[float]) -> Box:
    """The part of a box inside the image."""
    x0, y0, x1, y1 = (min(max(float(v), 0.0), 1.0) for v in box)
    return x0, y0, x1, y1


def matched_boxes(found: Sequence[Box], true: Sequence[Box], least: float = 0.5) -> int:
    """How many found boxes match a true one each, the closest pairs first."""
    pairs = [(iou(f, t), i, k) for i, f in enumerate(found) for k, t in enumerate(true)]
    used_found: set[int] = set()
    used_true: set[int] = set()
    for overlap, i, k in sorted(pairs, reverse=True):
        if overlap < least:
            break
        if i not in used_found and k not in used_true:
            used_found.add(i)
            used_true.add(k)
    return len(used_true)


def matched_points(found: Sequence[Sequence[float]], boxes: Sequence[Box]) -> int:
    """How many points lie in a box of their own: the greatest one-to-one assignment."""
    owner: dict[int, int] = {}  # box -> point

    def assign(i: int, tried: set[int]) -> bool:
        x, y = found[i][:2]
        for k, (x0, y0, x1, y1) in enumerate(boxes):
            if k in tried or not (x0 <= x <= x1 and y0 <= y <= y1):
                continue
            tried.add(k)
            if k not in owner or assign(owner[k], tried):
                owner[k] = i
                return True
        return False

    return sum(assign(i, set()) for i in range(len(found)))


def gaze_right(found: Sequence[Sequence[float]], true: Sequence[Point], near: float = 0.15) -> bool:
    """Whether a gaze (no point or one) is the true one: both none, or closer than `near`."""
    if not found or not true:
        return not found and not true
    return math.dist(found[0][:2], true[0]) < near


# --- judging ----------------------------------------------------------------------------------


def judge(scene: Scene, task: Task, answer: Answer) -> list[Mark]:
    """What an answer adds to the measures; see `ask` for what an answer is."""
    if isinstance(answer, str):
        return _judge_text(task, answer)
    found, true = len(answer), len(task.boxes)
    if task.skill == "gaze":
        return [Mark("gaze", float(gaze_right(answer, task.points)), 1.0)]
    if task.skill == "point":
        inside = float(matched_points(answer, task.boxes))
        return [
            Mark("point", inside, found),
            Mark("point-recall", inside, true),
            Mark("point-f1", inside, (found + true) / 2),
        ]
    right = float(matched_boxes([clamp(box) for box in answer], task.boxes))
    marks = [Mark("detect", right, (found + true) / 2)]
    if min(scene.image.size) > SINGLE_VIEW:
        marks.append(Mark("detect-crops", right, (found + true) / 2))
    if not true:
        marks.append(Mark("detect-absent", float(not found), 1.0))
    return marks


def _judge_text(task: Task, answer: str) -> list[Mark]:
    if task.kind in ("caption", "describe"):
        # The grammar reads its own captions back without loss, so the true text has the facts.
        stated, true = parse_caption(answer), parse_caption(task.text)
        right = float(common_facts(stated, true))
        return [
            Mark(f"{task.kind}-precision", right, len(stated)),
            Mark(f"{task.kind}-recall", right, len(true)),
        ]
    hit = float(plain(answer) == plain(task.text))
    marks = [Mark(task.kind, hit, 1.0)]
    if task.kind == "count":
        marks += [Mark(f"count{most}", hit, 1.0) for most in (4, 5) if int(task.text) <= most]
    return marks


def is_right(marks: Iterable[Mark]) -> bool:
    """Whether nothing is missing from an answer."""
    return all(mark.hits >= mark.total for mark in marks)


def summarize(marks: Iterable[Mark]) -> dict[str, Score]:
    """The scores of all measures that came up, in the order of MEASURES.

    The intervals take every counted item as independent; items of one picture are not quite.
    """
    hits: dict[str, float] = {}
    totals: dict[str, float] = {}
    tasks: dict[str, int] = {}
    for mark in marks:
        hits[mark.measure] = hits.get(mark.measure, 0.0) + mark.hits
        totals[mark.measure] = totals.get(mark.measure, 0.0) + mark.total
        tasks[mark.measure] = tasks.get(mark.measure, 0) + 1
    scores = {}
    for name in (*MEASURES, *sorted(set(hits) - set(MEASURES))):
        if name in hits:
            total = totals[name]
            # 0 of 0: nothing was claimed, which earns nothing.
            share = hits[name] / total if total else 0.0
            scores[name] = Score(tasks[name], share, *wilson(hits[name], total))
    return scores


def missed(scores: Mapping[str, Score], least: Mapping[str, float]) -> list[str]:
    """The measures below their least percentage, in words; one not measured is missed too."""
    lines = []
    for name, percent in least.items():
        if name not in scores:
            lines.append(f"{name}: not measured")
        elif 100 * scores[name].share < percent:
            lines.append(f"{name}: {100 * scores[name].share:.1f} % is below {percent:g} %")
    return lines


# --- asking -----------------------------------------------------------------------------------


def cases(seed: int, count: int, of: Range = BUNDLED) -> Iterator[tuple[Scene, list[Task]]]:
    """The first `count` scenes of a series with their tasks, always the same."""
    for index in range(count):
        scene = scene_at(seed, index, of)
        yield scene, tasks_for(scene, np.random.default_rng([seed, index, 1]))


def ask(model: Any, encoded: Any, task: Task) -> Answer:
    """A model's answer: text, or the boxes, points or gaze (none or one point) it found."""
    greedy = {"temperature": 0}
    if task.skill == "caption":
        return str(model.caption(encoded, length=task.length, settings=greedy)["caption"])
    if task.skill == "detect":
        boxes = model.detect(encoded, task.object)["objects"]
        return [(b["x_min"], b["y_min"], b["x_max"], b["y_max"]) for b in boxes]
    if task.skill == "point":
        return [(p["x"], p["y"]) for p in model.point(encoded, task.object)["points"]]
    if task.skill == "gaze":
        gaze = model.detect_gaze(encoded, eye=task.eye)["gaze"]
        return [(gaze["x"], gaze["y"])] if gaze else []
    answer = model.query(
        encoded,
        task.question,
        reasoning=task.kind == "reason",
        spatial_refs=[tuple(ref) for ref in task.refs] or None,
        settings=greedy,
    )
    return str(answer["answer"])
