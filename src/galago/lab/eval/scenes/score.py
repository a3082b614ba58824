"""Scores of answers to tasks about drawn scenes."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from galago.lab.eval.case import ModelAnswer
from galago.lab.eval.places import clamp_box, count_matched_boxes, count_matched_points, is_gaze_right
from galago.lab.eval.scenes.captions import common_facts, parse_caption
from galago.lab.eval.scenes.draw import SINGLE_VIEW, Scene, scene_at
from galago.lab.eval.scenes.question_mix import SceneQuestion, questions_for
from galago.lab.eval.scenes.ranges import BUNDLED, Range
from galago.lab.eval.score import Mark
from galago.request import Caption, Detect, DetectGaze, Point, Query, Skill

MEASURES = (
    "color", "shape", "shade", "texture", "presence", "count4", "count5", "count", "relation", "size", "read", "letter",
    "face", "look", "background", "refer", "reason", "describe-precision", "describe-recall",
    "caption-precision", "caption-recall", "detect", "detect-crops", "detect-absent",
    "point", "point-recall", "point-f1", "gaze",
)  # fmt: skip


def scene_questions(seed: int, count: int, of: Range = BUNDLED) -> Iterator[tuple[Scene, list[SceneQuestion]]]:
    """The first `count` scenes of a series with their tasks, always the same."""
    for index in range(count):
        scene = scene_at(seed, index, of)
        yield scene, questions_for(scene, np.random.default_rng([seed, index, 1]))


def skill_of(task: SceneQuestion) -> Skill:
    """What a task about a drawn scene asks the engine for."""
    match task.skill:
        case "caption":
            return Caption(task.length)
        case "detect":
            return Detect(task.object)
        case "point":
            return Point(task.object)
        case "gaze":
            return DetectGaze(eye=task.eye)
    return Query(task.question, reasoning=task.kind == "reason", spatial_refs=task.refs)


def judge(scene: Scene, task: SceneQuestion, answer: ModelAnswer) -> list[Mark]:
    """What an answer adds to the measures."""
    if isinstance(answer, str):
        return _judge_text(task, answer)
    found, true = len(answer), len(task.boxes)
    if task.skill == "gaze":
        return [Mark("gaze", float(is_gaze_right(answer, task.points)), 1.0)]
    if task.skill == "point":
        inside = float(count_matched_points(answer, task.boxes))
        return [
            Mark("point", inside, found),
            Mark("point-recall", inside, true),
            Mark("point-f1", inside, (found + true) / 2),
        ]
    right = float(count_matched_boxes([clamp_box(box) for box in answer], task.boxes))
    marks = [Mark("detect", right, (found + true) / 2)]
    if min(scene.image.size) > SINGLE_VIEW:
        marks.append(Mark("detect-crops", right, (found + true) / 2))
    if not true:
        marks.append(Mark("detect-absent", float(not found), 1.0))
    return marks


def _judge_text(task: SceneQuestion, answer: str) -> list[Mark]:
    if task.kind in ("caption", "describe"):
        # The grammar reads its own captions back without loss, so the true text has the facts.
        stated, true = parse_caption(answer), parse_caption(task.text)
        right = float(common_facts(stated, true))
        return [Mark(f"{task.kind}-precision", right, len(stated)), Mark(f"{task.kind}-recall", right, len(true))]
    hit = float(normalize(answer) == normalize(task.text))
    marks = [Mark(task.kind, hit, 1.0)]
    if task.kind == "count":
        marks += [Mark(f"count{most}", hit, 1.0) for most in (4, 5) if int(task.text) <= most]
    return marks


def normalize(answer: str) -> str:
    """An answer as it is compared: lower case, without outer spaces and a trailing full stop."""
    return answer.strip().lower().rstrip(".").rstrip()
