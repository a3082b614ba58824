"""Scores of answers to questions about drawn clips."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from galago.lab.eval.case import ModelAnswer
from galago.lab.eval.motion.draw import clip_at
from galago.lab.eval.motion.questions import ClipQuestion, questions_for
from galago.lab.eval.motion.things import DrawnClip
from galago.lab.eval.scenes.ranges import COLORS, SHAPES
from galago.lab.eval.score import Mark

MEASURES = ("direction", "object", "order", "count", "speed", "moving")

_SAID: dict[str, dict[str, tuple[str, ...]]] = {
    "direction": {
        "left": ("leftward", "leftwards"), "right": ("rightward", "rightwards"), "up": ("upward", "upwards"),
        "down": ("downward", "downwards"),
    },
    "speed": {"slow": ("slowly",), "fast": ("quick", "quickly")},
    "number": {
        "0": ("zero", "none"), "1": ("one",), "2": ("two",), "3": ("three",), "4": ("four",), "5": ("five",),
    },
    "whether": {"yes": (), "no": ()},
    "thing": dict.fromkeys((*COLORS, *SHAPES), ()),
}  # fmt: skip
"""The words that answers of each sort are made of, and in what other words they may be said."""
_WORDS = {
    sort: {said: word for word, others in words.items() for said in (word, *others)} for sort, words in _SAID.items()
}


def clip_questions(seed: int, count: int) -> Iterator[tuple[DrawnClip, list[ClipQuestion]]]:
    """The first `count` clips of a series with their tasks, always the same."""
    for index in range(count):
        drawn = clip_at(seed, index)
        yield drawn, questions_for(drawn, np.random.default_rng([seed, index, 1]))


def judge(task: ClipQuestion, answer: ModelAnswer) -> list[Mark]:
    """What an answer adds to the measures."""
    kind = answer_kind(task.text)
    return [Mark(task.kind, float(parse_answer(str(answer), kind) == parse_answer(task.text, kind)), 1.0)]


def answer_kind(text: str) -> str:
    """The sort of a true answer: direction, speed, number, whether or thing. Raises ValueError for any other text."""
    for sort, words in _WORDS.items():
        if all(word in words for word in _split(text)):
            return sort
    raise ValueError(f"{text!r} is no true answer")


def parse_answer(answer: str, sort: str) -> frozenset[str]:
    """What an answer says, all words apart that say nothing of this sort: 'to the left' is left."""
    words = _WORDS[sort]
    return frozenset(words[word] for word in _split(answer) if word in words)


def _split(text: str) -> list[str]:
    return re.findall(r"[a-z]+|\d+", text.lower())
