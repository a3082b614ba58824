"""Phrases for the things of a scene, and what they mean."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

from galago.lab.eval.scenes.captions import phrase_of
from galago.lab.eval.scenes.ranges import MORE_COLORS, RGB, SHADED, SHADES, TEXTURES
from galago.lab.eval.scenes.things import Scene, SceneObject, luma

T = TypeVar("T")


def one_of(rng: np.random.Generator, items: Sequence[T]) -> T:
    """One item, each as likely."""
    return items[int(rng.integers(len(items)))]


def pick_weighted(rng: np.random.Generator, items: Sequence[T], weights: Sequence[float]) -> T:
    """One item, each as likely as its share of the weights."""
    return items[int(np.searchsorted(np.cumsum(weights) / sum(weights), rng.random()))]


def readable_inks(colors: Mapping[str, RGB], base: RGB) -> tuple[str, ...]:
    """The colours that stand out from a background; those that do so less where none does."""
    apart = {color: abs(luma(rgb) - luma(base)) for color, rgb in colors.items()}
    return tuple(c for c in apart if apart[c] > 70) or tuple(c for c in apart if apart[c] > 45)


def type_carelessly(rng: np.random.Generator, question: str, unmarked: float) -> str:
    """The question, now and then (in a share of `unmarked`) without its mark, or with a small first letter."""
    if rng.random() < unmarked:
        question = question.rstrip("?.")
    return question[0].lower() + question[1:] if rng.random() < 0.08 else question


def find_things(phrase: str, things: Sequence[SceneObject]) -> list[SceneObject]:
    """The objects that a singular phrase means.

    'red circle', 'circle', 'face', 'word' or 'text' are plain; 'shape' is any shape, 'red' or
    'red shape' a shape of that colour, 'object' whatever is drawn. 'light', 'dark' or a texture may
    come first.
    """
    words = phrase.split()
    if words[0] in SHADES or words[0] in TEXTURES:
        own = [t for t in things if words[0] in (t.shade, t.texture)]
        return find_things(" ".join(words[1:]), own)
    color = words[0] if words[0] in MORE_COLORS else ""
    noun = " ".join(words[1:] if color else words) or "shape"
    if noun == "object" and not color:
        return list(things)
    if noun in ("word", "text"):
        return [t for t in things if t.kind == "word"]
    if noun in ("shape", "object"):
        return [t for t in things if t.kind == "shape" and color in ("", t.color)]
    return [t for t in things if t.name == noun and color in ("", t.color)]


def vague_colors(scene: Scene) -> set[str]:
    """Colours that 'the red object' would not name clearly, because other things have them."""
    vague = {t.color for t in scene.things if t.kind == "word"}
    if any(t.kind == "face" for t in scene.things):
        vague |= {"brown", "pink", "orange"}  # skin, hair and lips
        vague |= {"white", "black", "gray"}  # eyes, and hair again
    vague.add(scene.background)
    if scene.background == "navy":
        vague.add("blue")
    if scene.background == "tan":
        vague.add("brown")
    return vague


def phrases_for(scene: Scene) -> list[str]:
    """Singular phrases that mean at least one thing of the scene."""
    vague = vague_colors(scene)
    found: dict[str, None] = {}
    for t in scene.things:
        if t.kind == "shape":
            found |= dict.fromkeys([t.name, phrase_of(t), "shape"])
            if t.shade:
                found[f"{t.shade} {phrase_of(t)}"] = None
            if t.texture:
                found |= dict.fromkeys([f"{t.texture} {t.name}", f"{t.texture} shape"])
            if t.color not in vague:
                found |= dict.fromkeys([t.color, f"{t.color} shape", f"{t.color} object"])
        else:
            found |= dict.fromkeys([t.name] if t.kind == "face" else ["word", "text"])
    if scene.things:
        found["object"] = None
    return list(found)


def absent_phrase(scene: Scene, rng: np.random.Generator, *, plain: bool = False) -> str:
    """A phrase that means nothing in the scene, mostly a near miss."""
    shapes = [t for t in scene.things if t.kind == "shape"]
    names, colors = sorted({t.name for t in shapes}), sorted({t.color for t in shapes})
    have = {(t.color, t.name) for t in shapes}
    if scene.range.version > 1 and shapes and rng.random() < 0.15:
        return _plain_miss(shapes, rng)
    misses = [f"{c} {n}" for c in colors for n in names if (c, n) not in have]
    if misses and rng.random() < 0.65:
        return one_of(rng, misses)
    vague = vague_colors(scene)
    other_colors = [c for c in scene.range.colors if c not in colors and c not in vague]
    other_names = [n for n in scene.range.shapes if n not in names]
    kinds = {t.kind for t in scene.things}
    choice = rng.random()
    if choice < 0.3 and names and other_colors:
        return f"{one_of(rng, other_colors)} {one_of(rng, names)}"
    if choice < 0.5 and colors and other_names:
        return f"{one_of(rng, colors)} {one_of(rng, other_names)}"
    if choice < 0.7 and other_names:
        return one_of(rng, other_names)
    if choice < 0.85 and other_colors:
        color = one_of(rng, other_colors)
        bare = plain and rng.random() < 0.4
        return color if bare else f"{color} {one_of(rng, ('shape', 'object'))}"
    missing = [k for k in ("face", "word", "text") if k.replace("text", "word") not in kinds]
    return one_of(rng, missing or other_names)


def _plain_miss(shapes: list[SceneObject], rng: np.random.Generator) -> str:
    """A shape of the scene in a texture or shade that none like it has."""
    thing = one_of(rng, shapes)
    if thing.color in SHADED and rng.random() < 0.5:
        phrases = [f"{shade} {phrase_of(thing)}" for shade in SHADES]
    else:
        phrases = [f"{texture} {thing.name}" for texture in TEXTURES]
    return one_of(rng, [p for p in phrases if not find_things(p, shapes)] or [f"{TEXTURES[0]} word"])


def unique_phrases(scene: Scene) -> list[tuple[str, SceneObject]]:
    """Things that one phrase names alone: 'circle' when it is the only one, else 'red circle'."""
    names = Counter(t.name for t in scene.things)
    phrases = Counter(phrase_of(t) for t in scene.things)
    unique = [(phrase_of(t), t) for t in scene.things if phrases[phrase_of(t)] == 1]
    return unique + [(t.name, t) for t in scene.things if t.kind == "shape" and names[t.name] == 1]
