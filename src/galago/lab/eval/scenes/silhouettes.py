"""Silhouettes of things: tight masks of shapes, heads and words."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from galago.lab.eval.scenes.things import ObjectPlan
from galago.values import Spot

_TURNS = {  # degrees either way within which a shape keeps its name
    "circle": 0, "ring": 0, "square": 20, "triangle": 60, "star": 36, "diamond": 12, "cross": 20, "heart": 25,
    "arrow": 180, "crescent": 180, "hexagon": 30,
}  # fmt: skip


def silhouette(
    rng: np.random.Generator, plan: ObjectPlan, short: int, room: int, *, turned: bool = False
) -> tuple[Image.Image, list[Spot]]:
    """The plan's silhouette, cropped tight; in the same pixels a shape's polygon, or where letters end.

    With `turned`, shapes are turned as far as they keep their names; else they are tilted a little.
    """
    if plan.kind == "word":
        return _word_mask(plan, short, room, bold=rng.random() < 0.5)
    extent = plan.extent * short
    if plan.kind == "face":
        mask = Image.new("L", (round(extent * 0.88), round(extent)))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=255)
        return mask, []
    turn = float(rng.uniform(-1, 1))
    points = _outline(plan.name, turn, _TURNS[plan.name] if turned else None)
    points = points - points.min(axis=0)
    points *= (extent - 1) / points.max()
    local = [(float(px), float(py)) for px, py in points]
    mask = Image.new("L", (int(points[:, 0].max()) + 2, int(points[:, 1].max()) + 2))
    ImageDraw.Draw(mask).polygon(local, fill=255)
    if plan.name == "ring":
        edge = 0.22 * extent
        ImageDraw.Draw(mask).ellipse((edge, edge, extent - 1 - edge, extent - 1 - edge), fill=0)
    box = mask.getbbox() or (0, 0, 1, 1)
    return mask.crop(box), [(px - box[0], py - box[1]) for px, py in local]


def _outline(name: str, turn: float, most: float | None = None) -> np.ndarray:
    """Polygon [n, 2] of a shape, y down; `turn` in -1..1 tilts it by up to `most` degrees, or a little."""
    tilt = 8.0
    if name in ("circle", "ring"):
        angle = np.linspace(0, 2 * np.pi, 48, endpoint=False)
        points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif name == "square":
        points = np.array([(-1, -1), (1, -1), (1, 1), (-1, 1)], float)
    elif name == "triangle":
        points = np.array([(0, -1), (1, 0.75), (-1, 0.75)], float)
    elif name == "star":
        angle = np.arange(10) * np.pi / 5 - np.pi / 2
        radius = np.where(np.arange(10) % 2 == 0, 1.0, 0.42)
        points = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
        tilt = 12.0
    elif name == "diamond":
        points = np.array([(0, -1), (0.66, 0), (0, 1), (-0.66, 0)], float)
        tilt = 5.0
    elif name == "cross":
        a = 0.34
        half = [(-a, -1), (a, -1), (a, -a), (1, -a), (1, a), (a, a)]
        points = np.array(half + [(-px, -py) for px, py in half], float)
    elif name == "hexagon":
        angle = np.arange(6) * np.pi / 3
        points = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    elif name == "arrow":
        upper = [(1, 0), (0.2, 0.72), (0.2, 0.28), (-1, 0.28)]
        points = np.array(upper + [(px, -py) for px, py in reversed(upper)], float)
    elif name == "crescent":
        outer = np.linspace(0.28 * np.pi, 1.72 * np.pi, 32)
        tip = np.array([np.cos(outer[0]), np.sin(outer[0])])
        inner = np.linspace(-1, 1, 24) * (np.pi - math.atan2(tip[1], tip[0] - 0.5))
        reach = math.hypot(tip[0] - 0.5, tip[1])
        bite = np.stack([0.5 - reach * np.cos(inner), reach * np.sin(inner)], axis=1)
        points = np.concatenate([np.stack([np.cos(outer), np.sin(outer)], axis=1), bite])
    else:  # heart
        t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        points = np.stack([16 * np.sin(t) ** 3, -up], axis=1) / 16
    angle_rad = math.radians(turn * (tilt if most is None else most))
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    turned: np.ndarray = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _word_mask(plan: ObjectPlan, short: int, room: int, *, bold: bool) -> tuple[Image.Image, list[Spot]]:
    # Capitals are about 0.72 of the font size; small letters get a little more.
    size = plan.extent * short / 0.72 * (1.0 if plan.text.isupper() else 1.15)
    while True:
        font = _font(max(int(size), 8))
        stroke = max(1, round(size / 32)) if bold else 0
        mask = Image.new("L", (int(size * (len(plan.text) + 1)), int(size * 2)))
        ImageDraw.Draw(mask).text((size / 3, size / 4), plan.text, fill=255, font=font, stroke_width=stroke)
        box = mask.point(lambda v: 255 if v > 127 else 0).getbbox() or (0, 0, 1, 1)
        if box[2] - box[0] <= room or size <= 8:
            ends = [size / 3 + font.getlength(plan.text[: i + 1]) - box[0] for i in range(len(plan.text))]
            return mask.crop(box), [(min(end, box[2] - box[0]), 0.0) for end in ends]
        size *= 0.9
