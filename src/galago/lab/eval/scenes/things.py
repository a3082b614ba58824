"""The types of drawn scenes: objects, pictures, and plans of what to draw."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

from galago.lab.eval.scenes.ranges import RGB, V1, Range
from galago.values import Box, Spot


@dataclass(frozen=True)
class SceneObject:
    """A drawn object; all coordinates are relative to the image, 0..1, origin top left."""

    kind: str  # 'shape', 'face' or 'word'
    name: str  # one of the range's shapes, 'face' or 'word'
    color: str  # of shapes: fill; of words: ink; of faces: ''
    box: Box  # x_min, y_min, x_max, y_max around the drawn pixels, hidden ones included
    center: Spot  # of the box
    size: str  # 'small', 'medium' or 'large'
    text: str = ""  # of words: as written
    eye: Spot | None = None  # of faces: the point between the eyes
    gaze: Spot | None = None  # of faces: the point looked at; None looks at the viewer
    shade: str = ""  # one of SHADES; '' is neither
    texture: str = ""  # one of TEXTURES; '' is plain
    host: Box | None = None  # of the shape that this one is drawn inside of
    ends: tuple[float, ...] = ()  # of words: where each letter ends, 0..1 of the box's width


@dataclass(frozen=True)
class Scene:
    """A drawn picture and what is in it."""

    image: Image.Image  # RGB
    things: tuple[SceneObject, ...]  # left to right by centre x, then y
    background: str  # one of BACKGROUNDS
    ids: np.ndarray  # [H, W] uint8: 0 background, i + 1 where things[i] is on top
    range: Range = V1


@dataclass(frozen=True)
class ObjectPlan:
    """What is to be drawn, before it has a place."""

    kind: str
    name: str
    color: str
    size: str
    extent: float  # longest side / shorter image side
    text: str = ""
    shade: str = ""
    texture: str = ""
    inside: bool = False  # drawn inside of the plan before it


@dataclass
class Placed:
    """A plan with its mask [h, w] (L image) at (x, y) of the double-size canvas."""

    plan: ObjectPlan
    x: int
    y: int
    mask: Image.Image
    solid: np.ndarray  # [h, w] bool
    outline: list[Spot]  # on the canvas; shapes: polygon; words: where each letter ends
    host: Placed | None = None


def jitter(rng: np.random.Generator, color: RGB, amount: int) -> RGB:
    """The colour, each channel moved by at most `amount` of 255."""
    moved = np.clip(np.asarray(color) + rng.integers(-amount, amount + 1, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def luma(rgb: RGB) -> float:
    """Brightness, 0..255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
