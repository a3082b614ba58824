"""What a scene is: its things, its colours, its sizes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
Point = tuple[float, float]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart")
COLORS: dict[str, RGB] = {
    "red": (215, 28, 34),
    "orange": (248, 128, 16),
    "yellow": (246, 222, 38),
    "green": (30, 155, 58),
    "cyan": (20, 208, 216),
    "blue": (36, 82, 230),
    "purple": (128, 44, 172),
    "pink": (250, 142, 192),
    "brown": (126, 74, 36),
}
BACKGROUNDS: dict[str, RGB] = {
    "white": (243, 243, 243),
    "gray": (140, 140, 140),
    "black": (18, 18, 18),
    "tan": (216, 190, 148),
    "navy": (18, 26, 78),
}
WORDS = (
    "cat", "dog", "sun", "stop", "open", "exit", "go", "up", "down", "left", "hot", "cold", "yes", "no", "in",
    "out", "on", "off", "red", "blue", "tea", "milk", "bus", "car", "taxi", "map", "key", "book", "door", "room",
    "bed", "cup", "box", "bag", "hat", "shoe", "tree", "leaf", "fish", "bird", "cow", "bee", "star", "moon",
    "sky", "sea", "rain", "snow", "wind", "fire", "ice", "one", "two", "six", "ten", "sale", "free", "new", "old",
    "hi", "bye", "shop", "bank", "park", "zoo", "gym", "bar",
)  # fmt: skip
SIZES: dict[str, tuple[float, float]] = {  # longest box side / shorter image side; gaps between
    "small": (0.14, 0.18),
    "medium": (0.22, 0.31),
    "large": (0.35, 0.5),
}
SINGLE_VIEW = 112  # images with both sides above this are cut into several crops by the model


@dataclass(frozen=True)
class Thing:
    """One drawn thing; all coordinates are relative to the image, 0..1, origin top left."""

    kind: str  # 'shape', 'face' or 'word'
    name: str  # one of SHAPES, 'face' or 'word'
    color: str  # of shapes: fill; of words: ink; of faces: ''
    box: Box  # x_min, y_min, x_max, y_max around the drawn pixels, hidden ones included
    center: Point  # of the box
    size: str  # 'small', 'medium' or 'large'
    text: str = ""  # of words: as written
    eye: Point | None = None  # of faces: the point between the eyes
    gaze: Point | None = None  # of faces: the point looked at; None looks at the viewer


@dataclass(frozen=True)
class Scene:
    """A drawn picture and what is in it."""

    image: Image.Image  # RGB
    things: tuple[Thing, ...]  # left to right by centre x, then y
    background: str  # one of BACKGROUNDS
    ids: np.ndarray  # [H, W] uint8: 0 background, i + 1 where things[i] is on top


@dataclass(frozen=True)
class Plan:
    """What is to be drawn, before it has a place."""

    kind: str
    name: str
    color: str
    size: str
    extent: float  # longest side / shorter image side
    text: str = ""


@dataclass
class Placed:
    """A plan with its mask [h, w] (L image) at (x, y) of the double-size canvas."""

    plan: Plan
    x: int
    y: int
    mask: Image.Image
    solid: np.ndarray  # [h, w] bool
    outline: list[Point]  # shapes: polygon on the canvas
    gaze: Point | None = None


def jitter(rng: np.random.Generator, color: RGB, amount: int) -> RGB:
    """The colour, each channel moved by at most `amount` of 255."""
    moved = np.clip(np.asarray(color) + rng.integers(-amount, amount + 1, 3), 0, 255)
    return int(moved[0]), int(moved[1]), int(moved[2])


def luma(rgb: RGB) -> float:
    """Brightness, 0..255."""
    return 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]
