"""Clips drawn from random numbers alone: shapes that move, stand still, appear and leave.

Everything is drawn at twice the size and then halved, which smooths the edges and the steps. What is true of a
clip is known exactly, because it is chosen before drawing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from PIL import Image

from galago.lab.eval.motion.plans import MotionPlan, Timing, pick_story, story_plans, story_timings
from galago.lab.eval.motion.things import (
    DIRECTIONS,
    FRAME_SECONDS,
    FRAMES,
    SIDES,
    SPEEDS,
    TURN,
    DrawnClip,
    FrameSpan,
    MovingObject,
)
from galago.lab.eval.scenes.paint import add_noise, paint_background
from galago.lab.eval.scenes.phrases import one_of
from galago.lab.eval.scenes.ranges import BACKGROUNDS, COLORS, SIZES
from galago.lab.eval.scenes.silhouettes import silhouette
from galago.lab.eval.scenes.things import ObjectPlan, jitter
from galago.media.clip import Clip

_LEAST = 11.2
"""Pixels of the longest side: still recognisable."""
_TRIES = 40
"""Places for one thing before all are drawn anew."""


@dataclass(frozen=True)
class _Placed:
    """A thing with its mask [h, w] and the mask's corner (x, y) in each frame, on the canvas of double size."""

    plan: MotionPlan
    timing: Timing
    size: str
    mask: Image.Image
    corners: np.ndarray
    """int [frames, 2]"""
    seen: FrameSpan


def clip_at(seed: int, index: int) -> DrawnClip:
    """The clip `index` of the endless series `seed`."""
    return draw_clip(np.random.default_rng([seed, index]))


def draw_clip(
    rng: np.random.Generator,
    *,
    sides: tuple[int, int] = SIDES,
    frames: tuple[int, int] = FRAMES,
    story: str | None = None,
) -> DrawnClip:
    """Draw one clip; `sides` are the least and greatest side in pixels, `frames` the fewest and most frames.

    `story` is what it tells, one of plans.STORIES that fits in so many frames; without one it is drawn too.
    """
    count = int(rng.integers(frames[0], frames[1] + 1))
    width, height = _image_size(rng, sides)
    background = one_of(rng, tuple(BACKGROUNDS))
    canvas = paint_background(rng, jitter(rng, BACKGROUNDS[background], 7), (width, height))
    story = story or pick_story(rng, count)
    wanted = story_plans(rng, story, count)
    placed = _place_all(rng, story, wanted, count, canvas.size)
    colors = [jitter(rng, COLORS[p.plan.color], 12) for p in placed]
    sigma = float(rng.uniform(2, 14)) if rng.random() < 0.45 else 0.0
    drawn, ids = [], np.zeros((count, height, width), np.uint8)
    for i in range(count):
        frame, where = canvas.copy(), Image.new("L", canvas.size)
        for number, (one, color) in enumerate(zip(placed, colors, strict=True), 1):
            if one.seen[0] <= i <= one.seen[1]:
                corner = (int(one.corners[i, 0]), int(one.corners[i, 1]))
                frame.paste(color, corner, one.mask)
                where.paste(number, corner, one.mask)
        small = frame.reduce(2)
        drawn.append(add_noise(rng, np.asarray(small, np.float32), sigma) if sigma else small)
        ids[i] = np.asarray(where)[::2, ::2]
    clip = Clip(tuple(drawn), tuple(i * FRAME_SECONDS for i in range(count)), count * FRAME_SECONDS)
    return DrawnClip(clip, tuple(_make_object(one, canvas.size) for one in placed), background, story, ids)


def _image_size(rng: np.random.Generator, sides: tuple[int, int]) -> tuple[int, int]:
    """Width and height, nearly square: a model that stretches frames to a square must not turn directions."""
    low, high = sides
    short = round(math.exp(rng.uniform(math.log(low), math.log(high))))
    long = min(round(short * rng.uniform(1, 1.25)), high)
    return (long, short) if rng.random() < 0.5 else (short, long)


# --- placing --------------------------------------------------------------------------------


def _place_all(
    rng: np.random.Generator, story: str, wanted: list[MotionPlan], frames: int, canvas: tuple[int, int]
) -> list[_Placed]:
    """All things with their times and places. What does not fit gets other ones, and in time smaller sizes."""
    attempt = 0
    while True:
        placed: list[_Placed] = []
        for plan, timing in zip(wanted, story_timings(rng, story, wanted, frames), strict=True):
            found = _try_place(rng, plan, timing, _pick_size(rng, len(wanted), attempt), frames, canvas, placed)
            if found is None:
                break
            placed.append(found)
        else:
            return placed
        attempt += 1


def _pick_size(rng: np.random.Generator, things: int, attempt: int) -> str:
    if attempt > 6 or rng.random() < 0.12 * things:
        return "small"
    return "large" if things < 4 and attempt < 3 and rng.random() < 0.3 else "medium"


def _try_place(
    rng: np.random.Generator,
    plan: MotionPlan,
    timing: Timing,
    size: str,
    frames: int,
    canvas: tuple[int, int],
    placed: list[_Placed],
) -> _Placed | None:
    """A path that meets none of those placed in any frame; None when there is none."""
    short = min(canvas)
    extent = max(float(rng.uniform(*SIZES[size])), 2 * _LEAST / short)
    mask, _ = silhouette(rng, ObjectPlan("shape", plan.name, plan.color, size, extent), short, 0)
    for _ in range(_TRIES):
        corners = _try_path(rng, plan, timing, frames, canvas, mask.size)
        if corners is None:
            continue
        inside = [i for i in range(frames) if _boxes_meet(corners[i], mask.size, np.zeros(2), canvas, 0)]
        seen = max(inside[0], timing.shown[0]), min(inside[-1], timing.shown[1])
        one = _Placed(plan, timing, size, mask, corners, seen)
        if not any(_paths_meet(one, other, short // 20 + 2) for other in placed):
            return one
    return None


def _try_path(
    rng: np.random.Generator,
    plan: MotionPlan,
    timing: Timing,
    frames: int,
    canvas: tuple[int, int],
    mask: tuple[int, int],
) -> np.ndarray | None:
    """The mask's corner in each frame, int [frames, 2]; None where the thing would leave the picture, or not enter.

    Drawn from where it comes to rest, and for things that exit backwards from where they were at rest.
    """
    span = timing.moves
    room = np.array([canvas[0] - mask[0], canvas[1] - mask[1]]) - 4
    rest = 2 + rng.random(2) * room
    if span is None:
        return np.tile(np.rint(rest).astype(int), (frames, 1))
    back = plan.does == "exits"
    begin, end = (frames - 1 - span[1], frames - 1 - span[0]) if back else span
    x, y = DIRECTIONS[plan.direction]
    angle = math.atan2(y, x) + math.radians(float(rng.uniform(-TURN, TURN))) + (math.pi if back else 0)
    step = float(rng.uniform(*SPEEDS[plan.speed])) * min(canvas) * np.array([math.cos(angle), math.sin(angle)])
    left = np.clip(end - np.arange(frames), 0, end - begin)
    path = rest - left[:, None] * step
    first = path[begin]
    if plan.does == "moves":
        fits = bool((first >= 2).all() and (first <= 2 + room).all())
    else:
        # Its middle is seen before it rests too, or it would just be there.
        middle = path[end - 1] + np.array(mask) / 2
        fits = bool((middle >= 0).all() and (middle <= canvas).all())
        fits = fits and not _boxes_meet(np.rint(first), mask, np.zeros(2), canvas, 0)
    if not fits:
        return None
    path = np.rint(path).astype(int)
    return path[::-1] if back else path


def _boxes_meet(a: np.ndarray, a_size: tuple[int, int], b: np.ndarray, b_size: tuple[int, int], gap: int) -> bool:
    """Whether two boxes, corner and size, are nearer than the gap."""
    return all(a[i] < b[i] + b_size[i] + gap and b[i] < a[i] + a_size[i] + gap for i in (0, 1))


def _paths_meet(one: _Placed, other: _Placed, gap: int) -> bool:
    both = range(max(one.seen[0], other.seen[0]), min(one.seen[1], other.seen[1]) + 1)
    return any(_boxes_meet(one.corners[i], one.mask.size, other.corners[i], other.mask.size, gap) for i in both)


def _make_object(one: _Placed, canvas: tuple[int, int]) -> MovingObject:
    middle = (one.corners + np.array(one.mask.size) / 2) / np.array(canvas)
    plan = one.plan
    track = tuple((float(x), float(y)) for x, y in middle)
    return MovingObject(plan.name, plan.color, one.size, track, one.seen, plan.direction, plan.speed, one.timing.moves)
