"""Scenes drawn from random numbers alone: coloured shapes, faces that look somewhere, words.

Everything is drawn at twice the size and then halved, which smooths the edges. What is true of
a scene (boxes, colours, gaze targets) is known exactly, because it is chosen before drawing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image

from galago.lab.eval.scenes import wide
from galago.lab.eval.scenes.paint import camera_effects, clutter, compress, paint_background, paint_thing
from galago.lab.eval.scenes.phrases import one_of, pick_weighted, readable_inks
from galago.lab.eval.scenes.ranges import BACKGROUNDS, BUNDLED, COLORS, RGB, SHAPES, SINGLE_VIEW, SIZES, WORDS, Range
from galago.lab.eval.scenes.silhouettes import silhouette
from galago.lab.eval.scenes.things import ObjectPlan, Placed, Scene, SceneObject, jitter
from galago.values import Box, Spot

__all__ = [
    "BACKGROUNDS",
    "COLORS",
    "SHAPES",
    "SINGLE_VIEW",
    "SIZES",
    "WORDS",
    "Scene",
    "SceneObject",
    "draw_scene",
    "scene_at",
]

Planner = Callable[[np.random.Generator, tuple[int, int], str, RGB], list[ObjectPlan]]
"""What a scene of a size (width, height), background and colour of that is to hold."""

_MIN_VISIBLE = 0.65
_TRIES = 30


def scene_at(seed: int, index: int, of: Range = BUNDLED) -> Scene:
    """The scene `index` of the endless series `seed`."""
    return draw_scene(np.random.default_rng([seed, index]), of=of)


def draw_scene(
    rng: np.random.Generator, *, sides: tuple[int, int] | None = None, of: Range = BUNDLED, plans: Planner | None = None
) -> Scene:
    """Draw one scene; `sides` are the least and greatest side in pixels, `plans` what it is to hold, by default as in
    the range.
    """
    sides = sides or of.sides
    narrow = of.version == 1
    size = _image_size(rng, sides) if narrow else wide.image_size(rng, sides)
    width, height = size if narrow else wide.drawn_size(size)
    short = min(width, height)
    background = pick_weighted(rng, tuple(BACKGROUNDS), (0.36, 0.16, 0.16, 0.16, 0.16))
    base = jitter(rng, BACKGROUNDS[background], 7)
    canvas = paint_background(rng, base, (width, height))
    if not narrow:
        clutter(rng, canvas, base)

    overlap = rng.random() < 0.4
    ids = np.zeros((2 * height, 2 * width), np.uint8)
    placed: list[Placed] = []
    if plans is None:
        plans = _narrow_plans if narrow else wide.wide_plans
    for plan in plans(rng, (width, height), background, base):
        found = _try_place(rng, plan, placed, ids, 2 * short, overlap, turned=not narrow)
        if found is not None:
            placed.append(found)

    things = [_make_object(p, width, height) for p in placed]
    look = _pick_gaze if narrow else functools.partial(wide.pick_gaze, size=size)
    things = [replace(t, gaze=look(rng, t.eye, things)) if t.eye else t for t in things]
    outlined = rng.random() < 0.3
    for one, thing in zip(placed, things, strict=True):
        paint_thing(rng, canvas, one, thing, base, outlined, turned=not narrow)
    order = sorted(range(len(things)), key=lambda i: (things[i].center, things[i].box))
    new_ids = np.zeros(len(things) + 1, np.uint8)
    for place, i in enumerate(order):
        new_ids[i + 1] = place + 1
    image, seen = camera_effects(rng, canvas.reduce(2), short), new_ids[ids[::2, ::2]]
    if not narrow:
        image, seen = _enlarge(compress(rng, image), seen, size)
    return Scene(image, tuple(things[i] for i in order), background, seen, of)


def _enlarge(image: Image.Image, ids: np.ndarray, size: tuple[int, int]) -> tuple[Image.Image, np.ndarray]:
    """Both at their final size; large pictures are drawn smaller, since a model sees them so."""
    if image.size == size:
        return image, ids
    rows = np.arange(size[1]) * ids.shape[0] // size[1]
    columns = np.arange(size[0]) * ids.shape[1] // size[0]
    return image.resize(size, Image.Resampling.BICUBIC), ids[np.ix_(rows, columns)]


# --- choosing -------------------------------------------------------------------------------


def _image_size(rng: np.random.Generator, sides: tuple[int, int]) -> tuple[int, int]:
    low, high = sides
    many = high > SINGLE_VIEW and (low > SINGLE_VIEW or rng.random() < 0.5)
    least, most = (max(low, SINGLE_VIEW + 1), high) if many else (low, min(high, SINGLE_VIEW))
    short = math.exp(rng.uniform(math.log(least), math.log(most)))
    spread = float(rng.random())
    ratio = rng.uniform(1, 1.2) if spread < 0.7 else rng.uniform(1.2, 1.8 if spread < 0.9 else 3)
    limit = high if many else min(high, 2 * SINGLE_VIEW)
    short_px = round(short)
    long_px = int(min(max(round(short * ratio), short_px), limit))
    return (long_px, short_px) if rng.random() < 0.55 else (short_px, long_px)


def _narrow_plans(rng: np.random.Generator, size: tuple[int, int], _background: str, base: RGB) -> list[ObjectPlan]:
    """What the scene is to hold; words and faces first, since they need the most room."""
    mode = rng.random()
    short = min(size)
    if mode < 0.01:
        return []
    faces = words = 0
    if mode < 0.05:
        words = 1 + int(rng.random() < 0.3)
    elif mode < 0.10:
        faces = 1 + int(rng.random() < 0.5)
    else:
        if rng.random() < 0.24:
            faces = 1 + int(rng.random() < 0.25)
        words = int(rng.random() < 0.22)
    names: list[tuple[str, str]] = []
    if mode >= 0.10:
        names = _shape_names(rng)[: 6 - words - (2 * faces if faces else 0)]

    plans = [_word_plan(rng, short, base) for _ in range(words)]
    crowd = len(names) + words
    for _ in range(faces):
        top = 0.55 if crowd < 2 else 0.42
        low = 0.28 if short >= 90 else 0.34
        plans.append(ObjectPlan("face", "face", "", "large", float(rng.uniform(low, top))))
    count = len(names) + 2 * faces + words
    weights = (0.3, 0.4, 0.3) if count <= 2 else (0.35, 0.45, 0.2)
    if count > 4:
        weights = (0.5, 0.45, 0.05)
    for color, name in names:
        label = pick_weighted(rng, tuple(SIZES), weights)
        extent = max(float(rng.uniform(*SIZES[label])), 11.2 / short)  # 11 px: still recognisable
        plans.append(ObjectPlan("shape", name, color, label, extent))
    return plans


def _shape_names(rng: np.random.Generator) -> list[tuple[str, str]]:
    """(colour, shape) pairs; often several that share one or both, so that counts spread."""
    colors = tuple(COLORS)
    style = pick_weighted(rng, ("free", "shape", "color", "same", "grid"), (0.32, 0.18, 0.14, 0.18, 0.18))
    name, color = one_of(rng, SHAPES), one_of(rng, colors)
    if style == "free":
        count = 1 + int(rng.integers(6))
        return [(one_of(rng, colors), one_of(rng, SHAPES)) for _ in range(count)]
    if style == "grid":  # two shapes, two colours: near misses for yes/no questions
        two_names = tuple(str(v) for v in rng.choice(SHAPES, 2, replace=False))
        two_colors = tuple(str(v) for v in rng.choice(colors, 2, replace=False))
        count = 2 + int(rng.integers(5))
        return [(one_of(rng, two_colors), one_of(rng, two_names)) for _ in range(count)]
    count = 2 + int(rng.integers(5))
    pairs = [
        (
            color if style in ("color", "same") else one_of(rng, colors),
            name if style in ("shape", "same") else one_of(rng, SHAPES),
        )
        for _ in range(count)
    ]
    others = int(rng.integers(0, max(1, 7 - count)))
    pairs += [(one_of(rng, colors), one_of(rng, SHAPES)) for _ in range(min(others, 2))]
    return [pairs[i] for i in rng.permutation(len(pairs))]


def _word_plan(rng: np.random.Generator, short: int, base: RGB) -> ObjectPlan:
    text = one_of(rng, WORDS)
    text = text.upper() if rng.random() < 0.5 else text
    height = max(float(rng.uniform(0.13, 0.26)), 10.5 / short)
    size = "small" if height < 0.17 else "medium" if height < 0.22 else "large"
    return ObjectPlan("word", "word", one_of(rng, readable_inks(COLORS, base)), size, height, text)


# --- placing --------------------------------------------------------------------------------


def _try_place(
    rng: np.random.Generator,
    plan: ObjectPlan,
    placed: list[Placed],
    ids: np.ndarray,
    short: int,
    overlap: bool,
    turned: bool,
) -> Placed | None:
    """Find room for a plan on the canvas and mark it in `ids`; None when there is none."""
    high, across = ids.shape
    mask, local = silhouette(rng, plan, short, across - 8, turned=turned)
    w, h = mask.size
    if w > across - 6 or h > high - 6:
        return None
    solid = np.asarray(mask) > 127
    if plan.inside:
        return _nest(plan, placed, ids, mask, solid, local)
    for _ in range(_TRIES):
        x, y = int(rng.integers(3, across - w - 2)), int(rng.integers(3, high - h - 2))
        near = [i for i, p in enumerate(placed) if _is_near(p, x, y, w, h, short // 40 + 2)]
        if any(not overlap or not _may_cover(plan, placed[i].plan) for i in near):
            continue
        window = ids[y : y + h, x : x + w]
        if not all(_stays_visible(i + 1, placed[i], ids, window, solid) for i in near):
            continue
        window[solid] = len(placed) + 1
        return Placed(plan, x, y, mask, solid, [(x + px, y + py) for px, py in local])
    return None


def _nest(
    plan: ObjectPlan, placed: list[Placed], ids: np.ndarray, mask: Image.Image, solid: np.ndarray, local: list[Spot]
) -> Placed | None:
    """Place a plan in the middle of the thing before it, which shows on every side; None when that is too small."""
    host = placed[-1] if placed else None
    if host is None or host.plan.name not in wide.HOSTS or host.plan.color == plan.color:
        return None
    (w, h), (host_w, host_h) = mask.size, host.mask.size
    if max(w, h) > 0.55 * min(host_w, host_h):
        return None
    x, y = host.x + (host_w - w) // 2, host.y + (host_h - h) // 2
    ids[y : y + h, x : x + w][solid] = len(placed) + 1
    return Placed(plan, x, y, mask, solid, [(x + px, y + py) for px, py in local], host)


def _is_near(p: Placed, x: int, y: int, w: int, h: int, gap: int) -> bool:
    pw, ph = p.mask.size
    return x < p.x + pw + gap and p.x < x + w + gap and y < p.y + ph + gap and p.y < y + h + gap


def _may_cover(new: ObjectPlan, old: ObjectPlan) -> bool:
    # Two things of one colour would melt into each other.
    return new.kind == old.kind == "shape" and new.color != old.color


def _stays_visible(number: int, old: Placed, ids: np.ndarray, window: np.ndarray, solid: np.ndarray) -> bool:
    h, w = old.solid.shape
    seen = np.count_nonzero(ids[old.y : old.y + h, old.x : old.x + w] == number)
    lost = np.count_nonzero((window == number) & solid)
    # A little stricter than the promise, which is checked on the halved picture.
    return bool(seen - lost >= (_MIN_VISIBLE + 0.03) * np.count_nonzero(old.solid))


def _make_object(p: Placed, width: int, height: int) -> SceneObject:
    x0, y0, w, h = _relative_box(p, width, height)
    host = _relative_box(p.host, width, height) if p.host else None
    return SceneObject(
        kind=p.plan.kind,
        name=p.plan.name,
        color=p.plan.color,
        box=(x0, y0, x0 + w, y0 + h),
        center=(x0 + w / 2, y0 + h / 2),
        size=p.plan.size,
        text=p.plan.text,
        eye=(x0 + w / 2, y0 + 0.44 * h) if p.plan.kind == "face" else None,
        shade=p.plan.shade,
        texture=p.plan.texture,
        host=(host[0], host[1], host[0] + host[2], host[1] + host[3]) if host else None,
        ends=tuple((x - p.x) / p.mask.width for x, _ in p.outline) if p.plan.kind == "word" else (),
    )


def _relative_box(p: Placed, width: int, height: int) -> Box:
    """Left, top, width and height, relative to the image."""
    return p.x / (2 * width), p.y / (2 * height), p.mask.width / (2 * width), p.mask.height / (2 * height)


def _pick_gaze(rng: np.random.Generator, eye: Spot, things: Sequence[SceneObject]) -> Spot | None:
    chance = rng.random()
    if chance < 0.1:
        return None
    far = [t.center for t in things if math.dist(t.center, eye) >= 0.2]
    if far and chance < 0.7:
        return one_of(rng, far)
    while True:
        point = (float(rng.uniform(0.03, 0.97)), float(rng.uniform(0.03, 0.97)))
        if math.dist(point, eye) >= 0.2:
            return point
