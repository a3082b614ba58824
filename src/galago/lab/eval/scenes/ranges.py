"""What scenes may hold. The bundled model was trained on one range, as the one before it on a narrower one.

A range never changes once a model was made with it: its scenes must stay the same for every seed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

RGB = tuple[int, int, int]

SHAPES = ("circle", "square", "triangle", "star", "diamond", "cross", "heart")
MORE_SHAPES = (*SHAPES, "ring", "arrow", "crescent", "hexagon")
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
MORE_COLORS: dict[str, RGB] = COLORS | {"white": (250, 250, 250), "black": (10, 10, 10), "gray": (128, 128, 128)}
BACKGROUNDS: dict[str, RGB] = {
    "white": (243, 243, 243),
    "gray": (140, 140, 140),
    "black": (18, 18, 18),
    "tan": (216, 190, 148),
    "navy": (18, 26, 78),
}
SHADED = ("green", "blue", "purple")
"""Colours that stay themselves both light and dark: dark orange is brown, light red is pink."""
SHADES = ("light", "dark")
TEXTURES = ("striped", "dotted", "checkered")
WORDS = (
    "cat", "dog", "sun", "stop", "open", "exit", "go", "up", "down", "left", "hot", "cold", "yes", "no", "in",
    "out", "on", "off", "red", "blue", "tea", "milk", "bus", "car", "taxi", "map", "key", "book", "door", "room",
    "bed", "cup", "box", "bag", "hat", "shoe", "tree", "leaf", "fish", "bird", "cow", "bee", "star", "moon",
    "sky", "sea", "rain", "snow", "wind", "fire", "ice", "one", "two", "six", "ten", "sale", "free", "new", "old",
    "hi", "bye", "shop", "bank", "park", "zoo", "gym", "bar",
)  # fmt: skip
MORE_WORDS = (
    *WORDS, "ant", "arm", "art", "baby", "ball", "band", "bath", "bell", "belt", "big", "bike", "boat", "body",
    "bone", "boy", "bowl", "cafe", "cake", "camp", "card", "city", "club", "coat", "coin", "corn", "crab", "day",
    "deer", "desk", "dish", "duck", "ear", "east", "egg", "exam", "eye", "face", "fan", "farm", "film", "flag",
    "food", "foot", "fork", "fox", "frog", "fun", "game", "gate", "gift", "girl", "gold", "golf", "good", "hand",
    "help", "hill", "home", "horn", "jam", "jazz", "jet", "job", "joy", "jump", "kid", "king", "kiss", "kite",
    "lake", "lamp", "law", "lime", "lion", "love", "mall", "menu", "mix", "nest", "news", "nut", "oak", "oil",
    "pan", "path", "pear", "pen", "pet", "pie", "pig", "pin", "pink", "play", "pool", "post", "pub", "pull", "push",
    "quiz", "rent", "ring", "road", "rock", "roof", "rose", "run", "salt", "sand", "ship", "sing", "ski", "slow",
    "soap", "sofa", "song", "soup", "spa", "tape", "team", "toy", "van", "vet", "walk", "wall", "wax", "web",
    "west", "win", "wolf", "wood", "yard", "yoga", "zero",
)  # fmt: skip
SIZES: dict[str, tuple[float, float]] = {  # longest box side / shorter image side; gaps between
    "small": (0.14, 0.18),
    "medium": (0.22, 0.31),
    "large": (0.35, 0.5),
}
SINGLE_VIEW = 112  # images with both sides above this are cut into several crops by the model


@dataclass(frozen=True)
class Range:
    """What the scenes of one generation hold."""

    version: int
    shapes: tuple[str, ...]
    colors: Mapping[str, RGB]
    sides: tuple[int, int]  # least and greatest side of an image, pixels
    ratio: float  # greatest aspect ratio
    most: int  # greatest number of things


V1 = Range(version=1, shapes=SHAPES, colors=COLORS, sides=(64, 420), ratio=3, most=6)
V2 = Range(version=2, shapes=MORE_SHAPES, colors=MORE_COLORS, sides=(64, 1600), ratio=6, most=9)
RANGES = {1: V1, 2: V2}

BUNDLED = V2
"""The range of the bundled model, and of whatever asks for none."""
