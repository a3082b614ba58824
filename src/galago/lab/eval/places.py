"""Boxes, points and gazes that were found, against true ones. Coordinates are 0..1 from the top left."""

from __future__ import annotations

import math
from collections.abc import Sequence

from galago.values import Box, Spot


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


def clamp_box(box: Sequence[float]) -> Box:
    """The part of a box inside the image."""
    x0, y0, x1, y1 = (min(max(float(v), 0.0), 1.0) for v in box)
    return x0, y0, x1, y1


def count_matched_boxes(found: Sequence[Box], true: Sequence[Box], least: float = 0.5) -> int:
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


def count_matched_points(found: Sequence[Sequence[float]], boxes: Sequence[Box]) -> int:
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


def is_gaze_right(found: Sequence[Sequence[float]], true: Sequence[Spot], near: float = 0.15) -> bool:
    """Whether a gaze (no point or one) is the true one: both none, or closer than `near`."""
    if not found or not true:
        return not found and not true
    return math.dist(found[0][:2], true[0]) < near
