"""One thing to ask about a scene, and how questions are worded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from galago.lab.eval.scenes.phrases import one_of, type_carelessly
from galago.request import Length
from galago.values import Box, Spot


@dataclass(frozen=True)
class SceneQuestion:
    """One thing to ask about a scene; coordinates are relative to the image, 0..1."""

    skill: str  # 'caption', 'query', 'detect', 'point' or 'gaze'
    kind: str  # what it measures: 'color', 'count', ... ; of other skills the skill itself
    length: Length = "normal"  # caption
    question: str = ""  # query
    object: str = ""  # detect, point
    eye: Spot | None = None  # gaze
    refs: tuple[Spot | Box, ...] = ()  # query: points (x, y), boxes (x0, y0, x1, y1)
    text: str = ""  # the true answer or caption
    boxes: tuple[Box, ...] = ()  # detect, point: in the order of scene.things
    points: tuple[Spot, ...] = ()  # point: centres in that order; gaze: none or one
    reasoning: tuple[tuple[str, Spot], ...] = ()  # kind 'reason': (step, where), left to right
    spelt: bool = False  # the answer stands in the picture, letter by letter


def make_question(
    rng: np.random.Generator,
    kind: str,
    templates: Sequence[str],
    answer: str,
    refs: tuple[Spot | Box, ...] = (),
    reasoning: tuple[tuple[str, Spot], ...] = (),
    spelt: bool = False,
    **fields: str,
) -> SceneQuestion:
    """A question in one of the templates, now and then typed carelessly."""
    question = one_of(rng, templates).format(**fields)
    if "color" in question and rng.random() < 0.3:
        question = question.replace("color", "colour")
    question = type_carelessly(rng, question, 0.12)
    return SceneQuestion("query", kind, question=question, text=answer, refs=refs, reasoning=reasoning, spelt=spelt)
