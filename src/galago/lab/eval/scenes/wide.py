"""What scenes of the second range hold: more kinds of things, words and looks that can be told, larger images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from galago.lab.eval.scenes.phrases import one_of, pick_weighted, readable_inks
from galago.lab.eval.scenes.ranges import MORE_COLORS, MORE_SHAPES, MORE_WORDS, RGB, SHADED, SHADES, SIZES, TEXTURES
from galago.lab.eval.scenes.ranges import SINGLE_VIEW as SINGLE
from galago.lab.eval.scenes.things import ObjectPlan, SceneObject, luma
from galago.values import Spot

HOSTS = ("circle", "square", "hexagon", "ring")
"""Shapes that have room for another in their middle."""

_DRAWN = 300  # longest short side that is drawn; larger pictures are enlarged
_CLEAR = math.radians(24)  # nothing else is as near as this to the direction of a look
_CROWDS = np.array((1, 1, 1, 1.5, 2, 2.2, 2.1, 2.2)) / 13  # of two to nine; the largest find room least often
_SPELT = "abcdefghjkmnpqrstuvwxyz"  # i, l and o look like digits and like each other


# --- images -----------------------------------------------------------------------------------


def image_size(rng: np.random.Generator, sides: tuple[int, int]) -> tuple[int, int]:
    """Width and height; most images fit in one view, since those with tiles cost ten times as much."""
    low, high = sides
    many = high > SINGLE and (low > SINGLE or rng.random() < 0.3)
    least, most = (max(low, SINGLE + 1), min(high, 1100)) if many else (low, min(high, SINGLE))
    short = round(math.exp(rng.uniform(math.log(least), math.log(most))))
    spread = float(rng.random())
    ratio = rng.uniform(1, 1.25)
    if spread > 0.65:
        ratio = rng.uniform(1.25, 1.9) if spread < 0.92 else rng.uniform(1.9, 6 if many else 2.6)
    long = max(short, min(round(short * ratio), high if many else 3 * SINGLE))
    return (long, short) if rng.random() < 0.55 else (short, long)


def drawn_size(size: tuple[int, int]) -> tuple[int, int]:
    """The size at which an image is drawn."""
    scale = min(1.0, _DRAWN / min(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


# --- plans ------------------------------------------------------------------------------------


def wide_plans(rng: np.random.Generator, size: tuple[int, int], background: str, base: RGB) -> list[ObjectPlan]:
    """What the scene is to hold; words and faces first, since they need the most room."""
    mode = rng.random()
    if mode < 0.01:
        return []
    short, ratio = min(size), max(size) / min(size)
    colors = _clear_colors(background)
    out: list[ObjectPlan] = []
    if mode < 0.25:
        extra = int(rng.integers(4))
        words = 1 + int(rng.random() < 0.12)
        out = [_word_plan(rng, short, base, extra + words < 3) for _ in range(words)]
        out += _shape_plans(rng, _random_shapes(rng, colors, extra), short, ratio, extra + 2, base)
    elif mode < 0.49:
        faces = 1 + int(rng.random() < 0.12)
        extra = 1 + int(rng.integers(4))
        low, high = (0.36, 0.56) if extra + faces < 4 else (0.3, 0.42)
        out = [ObjectPlan("face", "face", "", "large", float(rng.uniform(low, high))) for _ in range(faces)]
        if rng.random() < 0.1:
            out.append(_word_plan(rng, short, base, False))
        out += _shape_plans(rng, _random_shapes(rng, colors, extra), short, ratio, extra + 2, base)
    elif mode < 0.64:
        out = _nested_plans(rng, colors)
        extra = int(rng.integers(4))
        out += _shape_plans(rng, _random_shapes(rng, colors, extra), short, ratio, extra + 2, base)
    else:
        names = _similar_shapes(rng, colors)
        out = _shape_plans(rng, names, short, ratio, len(names), base)
    return out


def crowd_plans(rng: np.random.Generator, size: tuple[int, int], background: str, base: RGB) -> list[ObjectPlan]:
    """Five to nine shapes of any name and colour, nearly all of them small: what is hardest to see."""
    names = _random_shapes(rng, _clear_colors(background), 5 + int(rng.integers(5)))
    return _shape_plans(rng, names, min(size), max(size) / min(size), len(names), base)


def group_plans(rng: np.random.Generator, size: tuple[int, int], background: str, base: RGB) -> list[ObjectPlan]:
    """Two to nine shapes of one to three kinds that share names or colours: what captions tell together."""
    colors, names = (rng.choice(items, 2, replace=False) for items in (_clear_colors(background), MORE_SHAPES))
    kinds = [(str(c), str(n)) for c, n in rng.permutation([(c, n) for c in colors for n in names])]
    kinds = kinds[: 1 + int(rng.integers(3))]
    pairs = [one_of(rng, kinds) for _ in range(2 + int(rng.integers(8)))]
    return _shape_plans(rng, pairs, min(size), max(size) / min(size), len(pairs), base)


def _clear_colors(background: str) -> tuple[str, ...]:
    hidden = {"white": ("white",), "gray": ("gray",), "black": ("black",), "navy": ("black",)}.get(background, ())
    return tuple(c for c in MORE_COLORS if c not in hidden)


def _random_shapes(rng: np.random.Generator, colors: Sequence[str], count: int) -> list[tuple[str, str]]:
    return [(one_of(rng, colors), one_of(rng, MORE_SHAPES)) for _ in range(count)]


def _similar_shapes(rng: np.random.Generator, colors: Sequence[str]) -> list[tuple[str, str]]:
    """(colour, shape) pairs; in most scenes several share one or both, so that counts spread up to nine."""
    chance, name, color = float(rng.random()), one_of(rng, MORE_SHAPES), one_of(rng, colors)
    if chance < 0.22:
        return _random_shapes(rng, colors, 1 + int(rng.integers(7)))
    if chance < 0.42:  # two shapes, two colours: near misses for yes/no questions
        names = [str(v) for v in rng.choice(MORE_SHAPES, 2, replace=False)]
        two = [str(v) for v in rng.choice(colors, 2, replace=False)]
        return [(one_of(rng, two), one_of(rng, names)) for _ in range(2 + int(rng.integers(6)))]
    count = 2 + int(rng.choice(8, p=_CROWDS))
    same_color, same_name = chance > 0.6, chance < 0.6 or chance > 0.78
    pairs = [
        (color if same_color else one_of(rng, colors), name if same_name else one_of(rng, MORE_SHAPES))
        for _ in range(count)
    ]
    others = _random_shapes(rng, colors, int(rng.integers(0, max(1, min(3, 10 - count)))))
    pairs += [(c, n) for c, n in others if c != color and n != name]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _shape_plans(
    rng: np.random.Generator, names: list[tuple[str, str]], short: int, ratio: float, crowd: int, base: RGB
) -> list[ObjectPlan]:
    weights = (0.25, 0.4, 0.35) if crowd <= 2 else (0.35, 0.45, 0.2)
    if crowd > 4:
        weights = (0.55, 0.4, 0.05) if crowd <= 6 else (0.94, 0.06, 0.0)
    if ratio > 2:  # a small thing of a long image is hardly a dot in the view of the whole
        weights = (0.0, 0.6, 0.4)
    out = []
    for color, name in names:
        size = pick_weighted(rng, tuple(SIZES), weights)
        extent = max(float(rng.uniform(*SIZES[size])), 11.2 / short)  # 11 px: still recognisable
        shade, texture = _shade_and_texture(rng, color, size, base)
        out.append(ObjectPlan("shape", name, color, size, extent, shade=shade, texture=texture))
    return out


def _shade_and_texture(rng: np.random.Generator, color: str, size: str, base: RGB) -> tuple[str, str]:
    """Shade and texture, at most one of them."""
    chance = rng.random()
    if chance < 0.4 and color in SHADED and luma(base) > 60:
        return one_of(rng, SHADES), ""
    if chance > 0.72 and size != "small" and color not in ("white", "gray", "black"):
        return "", one_of(rng, TEXTURES)
    return "", ""


def _nested_plans(rng: np.random.Generator, colors: Sequence[str]) -> list[ObjectPlan]:
    out = []
    for _ in range(1 + int(rng.random() < 0.35)):
        outer, inner = (str(v) for v in rng.choice(colors, 2, replace=False))
        extent = float(rng.uniform(0.38, 0.5))
        out.append(ObjectPlan("shape", one_of(rng, HOSTS), outer, "large", extent))
        if rng.random() < 0.75:
            # A tilted square reaches further than the inside of a circle.
            small = float(rng.uniform(SIZES["small"][0], min(SIZES["small"][1], 0.44 * extent)))
            name = one_of(rng, [s for s in MORE_SHAPES if s != "ring"])
            out.append(ObjectPlan("shape", name, inner, "small", small, inside=True))
    return out


def _word_plan(rng: np.random.Generator, short: int, base: RGB, alone: bool) -> ObjectPlan:
    """A word, a number or letters without sense; large, since a letter should fill a patch."""
    chance = rng.random()
    if chance < 0.52:
        text = one_of(rng, MORE_WORDS)
    elif chance < 0.8:
        text = str(int(rng.integers(10, 100))) if rng.random() < 0.8 else str(int(rng.integers(10)))
    else:
        text = "".join(one_of(rng, _SPELT) for _ in range(1 + int(rng.integers(4))))
    case = rng.random()
    text = text.upper() if case < 0.55 else text.capitalize() if case < 0.65 else text
    height = max(float(rng.uniform(0.2, 0.36) if alone else rng.uniform(0.17, 0.27)), 11 / short)
    size = "small" if height < 0.2 else "medium" if height < 0.27 else "large"
    return ObjectPlan("word", "word", one_of(rng, readable_inks(MORE_COLORS, base)), size, height, text)


# --- looks ------------------------------------------------------------------------------------


def pick_gaze(
    rng: np.random.Generator, eye: Spot, things: Sequence[SceneObject], *, size: tuple[int, int]
) -> Spot | None:
    """The middle of a thing that lies alone in its direction, so that a look tells what is looked at."""
    if rng.random() < 0.12:
        return None
    others = [t for t in things if t.eye != eye]
    angles = [math.atan2((t.center[1] - eye[1]) * size[1], (t.center[0] - eye[0]) * size[0]) for t in others]
    clear = [
        t.center
        for t, angle in zip(others, angles, strict=True)
        if math.dist(t.center, eye) >= 0.2
        and sum(abs(math.remainder(angle - other, math.tau)) < _CLEAR for other in angles) == 1
    ]
    return one_of(rng, clear) if clear else None
