"""Plans of clips: what their objects do, in which direction, how fast and when.

All that is drawn here is as likely run backwards, and so is its place: without their order the frames of a clip
tell neither which way along its line a thing moves nor what of two comes first.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from galago.lab.eval.motion.things import DIRECTIONS, SPEEDS, FrameSpan
from galago.lab.eval.scenes.phrases import one_of
from galago.lab.eval.scenes.ranges import COLORS, SHAPES

STORIES = {"moves": 0.42, "change": 0.22, "turns": 0.2, "visits": 0.16}
"""How often each is told. Things move or stand still; some come or go; two move, or come and go, in turn."""
MOST = 5
"""Things in a clip."""
MOST_MOVING = 4
_LONG = 8
"""Frames in which even a slow thing can come in from outside; fewer cannot tell two things one after the other."""
_STEPS = {"slow": (3, 12), "fast": (3, 5)}
"""Frames from rest to rest; a fast thing would leave the picture in more."""
_APART = 2
"""Frames between two events whose order is asked for."""


@dataclass(frozen=True)
class MotionPlan:
    """What a thing is and does, before it has a time and a place."""

    color: str
    name: str
    does: str
    """stays, moves, enters, exits; without moving: appears, vanishes, visits (both)"""
    direction: str = ""
    speed: str = ""


@dataclass(frozen=True)
class Timing:
    """When a thing moves, and when it is shown."""

    shown: FrameSpan
    moves: FrameSpan | None = None


def pick_story(rng: np.random.Generator, frames: int) -> str:
    """What a clip of so many frames tells."""
    known = [s for s in STORIES if frames >= _LONG or s not in ("turns", "visits")]
    shares = np.array([STORIES[s] for s in known])
    return known[int(rng.choice(len(known), p=shares / shares.sum()))]


def story_plans(rng: np.random.Generator, story: str, frames: int) -> list[MotionPlan]:
    """The things of a story. As many move as not more than MOST_MOVING, each number as often."""
    if story == "moves":
        moving = int(rng.integers(MOST_MOVING + 1))
        still = int(rng.integers(4)) if moving else 1 + int(rng.integers(4))
        does = ["moves"] * moving + ["stays"] * min(still, MOST - moving)
    elif story == "turns":
        does = ["moves"] * 2 + ["stays"] * int(rng.integers(3))
    elif story == "visits":
        does = ["visits"] * 2 + ["stays"] * int(rng.integers(4))
    else:
        across = frames >= _LONG and rng.random() < 0.5
        comes, goes = ("enters", "exits") if across else ("appears", "vanishes")
        does = one_of(rng, ([comes], [goes], [comes, goes]))
        does += ["moves" if rng.random() < 0.35 else "stays" for _ in range(1 + int(rng.integers(3)))]
    return [_plan(rng, pair, do) for pair, do in zip(_pairs(rng, len(does)), does, strict=True)]


def _plan(rng: np.random.Generator, pair: tuple[str, str], does: str) -> MotionPlan:
    if does not in ("moves", "enters", "exits"):
        return MotionPlan(*pair, does)
    return MotionPlan(*pair, does, one_of(rng, tuple(DIRECTIONS)), one_of(rng, tuple(SPEEDS)))


def _pairs(rng: np.random.Generator, count: int) -> list[tuple[str, str]]:
    """So many (colour, shape) pairs, no two the same; often of few colours and shapes, so that both matter."""
    few = rng.random() < 0.5
    colors = [str(c) for c in rng.choice(tuple(COLORS), 3 if few else len(COLORS), replace=False)]
    names = [str(s) for s in rng.choice(SHAPES, 3 if few else len(SHAPES), replace=False)]
    chosen = rng.choice(len(colors) * len(names), count, replace=False)
    return [(colors[int(i) // len(names)], names[int(i) % len(names)]) for i in chosen]


def story_timings(rng: np.random.Generator, story: str, things: list[MotionPlan], frames: int) -> list[Timing]:
    """When each thing does what it does."""
    whole = (0, frames - 1)
    if story == "turns":
        spans = _one_after_the_other(rng, frames, [_steps(rng, p, frames - 1 - _APART) for p in things[:2]])
        return [Timing(whole, span) for span in spans] + [Timing(whole)] * (len(things) - 2)
    if story == "visits":
        spans = _one_after_the_other(rng, frames - 2, [int(rng.integers(1, frames // 2)) for _ in range(2)])
        return [Timing((a + 1, b + 1)) for a, b in spans] + [Timing(whole)] * (len(things) - 2)
    return [_event_timing(rng, plan, frames) for plan in things]


def _event_timing(rng: np.random.Generator, plan: MotionPlan, frames: int) -> Timing:
    last = frames - 1
    if plan.speed:
        steps = _steps(rng, plan, last)
        begin = int(rng.integers(last - steps + 1))
        return Timing((0, last), (begin, begin + steps))
    if plan.does == "appears":
        return Timing((int(rng.integers(1, frames)), last))
    return Timing((0, int(rng.integers(last)) if plan.does == "vanishes" else last))


def _steps(rng: np.random.Generator, plan: MotionPlan, most: int) -> int:
    low, high = _STEPS[plan.speed]
    return int(rng.integers(low, min(high, most) + 1))


def _one_after_the_other(rng: np.random.Generator, frames: int, steps: list[int]) -> list[FrameSpan]:
    """Two spans of so many steps, of which one both begins and ends before the other."""
    pairs = [
        (a, b)
        for a in range(frames - steps[0])
        for b in range(frames - steps[1])
        if (a - b >= _APART and a + steps[0] - b - steps[1] >= _APART)
        or (b - a >= _APART and b + steps[1] - a - steps[0] >= _APART)
    ]
    a, b = one_of(rng, pairs)
    return [(a, a + steps[0]), (b, b + steps[1])]
