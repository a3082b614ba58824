"""Silhouettes of things: tight masks of shapes, heads and words."""

from __future__ import annotations

import functools
import math

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from galago.eval.scenes.things import Plan, Point


def silhouette(rng: np.random.Generator, plan: Plan, short: int, room: int) -> tuple[Image.Image, list[Point]]:
    """The plan's silhouette, cropped tight, and for shapes its polygon in the same pixels."""
    if plan.kind == "word":
        return _word_mask(plan, short, room, bold=rng.random() < 0.5), []
    extent = plan.extent * short
    if plan.kind == "face":
        mask = Image.new("L", (round(extent * 0.88), round(extent)))
        ImageDraw.Draw(mask).ellipse((0, 0, mask.width - 1, mask.height - 1), fill=255)
        return mask, []
    points = _outline(plan.name, float(rng.uniform(-1, 1)))
    points = points - points.min(axis=0)
    points *= (extent - 1) / points.max()
    local = [(float(px), float(py)) for px, py in points]
    mask = Image.new("L", (int(points[:, 0].max()) + 2, int(points[:, 1].max()) + 2))
    ImageDraw.Draw(mask).polygon(local, fill=255)
    box = mask.getbbox() or (0, 0, 1, 1)
    return mask.crop(box), [(px - box[0], py - box[1]) for px, py in local]


def _outline(name: str, turn: float) -> np.ndarray:
    """Polygon [n, 2] of a shape, y down; `turn` in -1..1 tilts it within what keeps its name."""
    tilt = 8.0
    if name == "circle":
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
    else:  # heart
        t = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        up = 13 * np.cos(t) - 5 * np.cos(2 * t) - 2 * np.cos(3 * t) - np.cos(4 * t)
        points = np.stack([16 * np.sin(t) ** 3, -up], axis=1) / 16
    angle_rad = math.radians(turn * tilt)
    cos, sin = math.cos(angle_rad), math.sin(angle_rad)
    turned: np.ndarray = points @ np.array([[cos, sin], [-sin, cos]])
    return turned


@functools.lru_cache(maxsize=64)
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _word_mask(plan: Plan, short: int, room: int, *, bold: bool) -> Image.Image:
    # Capitals are about 0.72 of the font size; small letters get a little more.
    size = plan.extent * short / 0.72 * (1.0 if plan.text.isupper() else 1.15)
    while True:
        font = _font(max(int(size), 8))
        stroke = max(1, round(size / 32)) if bold else 0
        mask = Image.new("L", (int(size * (len(plan.text) + 1)), int(size * 2)))
        ImageDraw.Draw(mask).text((size / 3, size / 4), plan.text, fill=255, font=font, stroke_width=stroke)
        mask = mask.crop(mask.point(lambda v: 255 if v > 127 else 0).getbbox())
        if mask.width <= room or size <= 8:
            return mask
        size *= 0.9
