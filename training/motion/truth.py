"""What is true of each cell of each frame of a clip: what lies there, what lay there before, how it moves."""

from dataclasses import dataclass

import numpy as np

from galago.lab.eval.motion.things import DrawnClip, MovingObject
from galago.lab.eval.scenes.ranges import COLORS, SHAPES

COLOR_CLASSES = ("", *COLORS)
NAME_CLASSES = ("", *SHAPES)
STATES = 8
"""Still so far, moving, or at rest again; each for things that were there at first and for those that came. Of a cell
that a thing has just left, whether it is elsewhere now or GONE.
"""
ELSEWHERE, GONE = 6, 7
UNKNOWN = -100
"""Ignored by the cross-entropy."""
STEP = 0.1
"""Of the image's side, in which movement from frame to frame is measured."""


@dataclass(frozen=True)
class Lying:
    """What lies in cells of a grid: n frames, T cells row by row."""

    kind: np.ndarray
    """int64 [n, T, 2]: colour and name, 0 where nothing is"""
    offset: np.ndarray
    """float32 [n, T, 2]: from the cell's middle to the thing's, in cells; NaN: nothing"""


@dataclass(frozen=True)
class Moving:
    """What the same cells know of time."""

    before: np.ndarray
    """int64 [n, T, 2]: kind in the frame before; UNKNOWN in the first"""
    step: np.ndarray
    """float32 [n, T, 2]: of the thing that lies there since the frame before, in STEPs; NaN: nothing, or not yet"""
    state: np.ndarray
    """int64 [n, T]: one of STATES; UNKNOWN where nothing is, nor was in the frame before"""


def lying(drawn: DrawnClip, grid: int, probes: int) -> tuple[Lying, np.ndarray]:
    """What most of the probes x probes points of a cell see, and the number of that thing [n, T], 0: none."""
    n, height, width = drawn.ids.shape
    at = (np.arange(probes * grid) + 0.5) / (probes * grid)
    seen = drawn.ids[:, (at * height).astype(int)][:, :, (at * width).astype(int)]
    seen = seen.reshape(n, grid, probes, grid, probes).transpose(0, 1, 3, 2, 4).reshape(n, grid * grid, -1)
    votes = np.stack([(seen == i).sum(-1) for i in range(len(drawn.things) + 1)], -1).astype(np.float32)
    votes[..., 0] = np.minimum(votes[..., 0], 1) * 0.5  # anything beats the background
    top = votes.argmax(-1)
    kinds = np.array([(0, 0), *((COLOR_CLASSES.index(t.color), NAME_CLASSES.index(t.name)) for t in drawn.things)])
    middles = np.array([np.full((n, 2), np.nan), *(t.track for t in drawn.things)])  # [things + 1, n, 2]
    cells = np.stack(np.meshgrid(*[(np.arange(grid) + 0.5) / grid] * 2), -1).reshape(-1, 2)
    offset = (middles[top, np.arange(n)[:, None]] - cells) * grid
    return Lying(kinds[top], offset.astype(np.float32)), top


def moving(drawn: DrawnClip, lying: Lying, top: np.ndarray) -> Moving:
    """What the cells in which these things lie know of time."""
    n = drawn.frames
    before = np.concatenate([np.full_like(lying.kind[:1], UNKNOWN), lying.kind[:-1]])
    steps = np.full((len(drawn.things) + 1, n, 2), np.nan, np.float32)
    states = np.full((len(drawn.things) + 1, n), UNKNOWN, np.int64)
    for number, thing in enumerate(drawn.things, 1):
        first, last = thing.seen
        steps[number, first + 1 : last + 1] = np.diff(np.array(thing.track), axis=0)[first:last] / STEP
        states[number] = [_state(thing, i) for i in range(n)]
    at = np.arange(n)[:, None]
    state = states[top, at]
    ends = np.array([0, *(thing.seen[1] for thing in drawn.things)])
    was = np.concatenate([np.zeros_like(top[:1]), top[:-1]])
    left = (top == 0) & (was > 0)
    state[left] = np.where(ends[was] < at, GONE, ELSEWHERE)[left]
    return Moving(before, steps[top, at], state)


def _state(thing: MovingObject, frame: int) -> int:
    came = 3 * int(thing.seen[0] > 0)
    if thing.moves is None or frame <= thing.moves[0]:
        return came
    return came + (1 if frame <= thing.moves[1] else 2)
