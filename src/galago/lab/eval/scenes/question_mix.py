"""What to ask about a drawn scene: a varied mix of captions, boxes, points, looks and questions."""

from __future__ import annotations

import numpy as np

from galago.lab.eval.scenes.captions import LENGTHS, caption_of, common_facts, facts_of, parse_caption, plural
from galago.lab.eval.scenes.phrases import absent_phrase, find_things, one_of, phrases_for, pick_weighted
from galago.lab.eval.scenes.question import SceneQuestion
from galago.lab.eval.scenes.questions import WEIGHTED
from galago.lab.eval.scenes.questions_wide import WIDE_WEIGHTED, reword
from galago.lab.eval.scenes.ranges import MORE_COLORS
from galago.lab.eval.scenes.things import Scene

__all__ = ["SceneQuestion", "caption_of", "common_facts", "facts_of", "parse_caption", "questions_for"]


def questions_for(scene: Scene, rng: np.random.Generator, *, count: int = 14) -> list[SceneQuestion]:
    """A varied mix of about `count` tasks, never the same one twice."""
    length = one_of(rng, LENGTHS)
    tasks = [SceneQuestion("caption", "caption", length=length, text=caption_of(scene, length))]
    phrases = phrases_for(scene)
    tasks += _detect_questions(scene, rng, phrases, 2 + int(count > 10))
    tasks += _point_questions(scene, rng, phrases, 1 + int(rng.random() < 0.5))
    tasks += [
        SceneQuestion("gaze", "gaze", eye=t.eye, points=(t.gaze,) if t.gaze else ())
        for t in scene.things
        if t.eye is not None
    ]
    wide = scene.range.version > 1
    weighted = WIDE_WEIGHTED if wide else WEIGHTED
    makers, weights = zip(*weighted, strict=True)
    seen: set[tuple[str, object]] = set()
    for _ in range(3 * count):  # many a draw has no fitting question in this scene
        if len(tasks) >= count:
            break
        task = pick_weighted(rng, makers, weights)(scene, rng)
        if task is not None and (key := (_normalize_question(task), task.refs)) not in seen:
            seen.add(key)
            tasks.append(reword(task, rng) if wide else task)
    return tasks[:count]


def _normalize_question(task: SceneQuestion) -> str:
    return task.question.lower().rstrip("?. ").replace("colour", "color")


def _detect_questions(scene: Scene, rng: np.random.Generator, phrases: list[str], count: int) -> list[SceneQuestion]:
    tasks = []
    for i in range(count):
        absent = not phrases or (i > 0 and rng.random() < 0.2)
        phrase = absent_phrase(scene, rng, plain=True) if absent else one_of(rng, phrases)
        boxes = tuple(t.box for t in find_things(phrase, scene.things))
        tasks.append(SceneQuestion("detect", "detect", object=_phrase_as_typed(rng, phrase), boxes=boxes))
    return tasks


def _point_questions(scene: Scene, rng: np.random.Generator, phrases: list[str], count: int) -> list[SceneQuestion]:
    tasks = []
    for _ in range(count):
        absent = not phrases or rng.random() < 0.15
        phrase = absent_phrase(scene, rng, plain=True) if absent else one_of(rng, phrases)
        meant = find_things(phrase, scene.things)
        points, boxes = tuple(t.center for t in meant), tuple(t.box for t in meant)
        spoken = _phrase_as_typed(rng, phrase)
        tasks.append(SceneQuestion("point", "point", object=spoken, boxes=boxes, points=points))
    return tasks


def _phrase_as_typed(rng: np.random.Generator, phrase: str) -> str:
    """The phrase as someone may type it: in the plural or not, at times with an article."""
    chance = rng.random()
    if phrase in MORE_COLORS or phrase == "text":
        return phrase
    return plural(phrase) if chance < 0.35 else f"the {phrase}" if chance < 0.42 else phrase
