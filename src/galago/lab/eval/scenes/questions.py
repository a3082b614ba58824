"""Questions about drawn scenes with answers that are true by construction."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from galago.lab.eval.scenes.captions import article, caption_of, phrase_of, plural
from galago.lab.eval.scenes.phrases import absent_phrase, find_things, one_of, phrases_for, unique_phrases, vague_colors
from galago.lab.eval.scenes.question import SceneQuestion, make_question
from galago.lab.eval.scenes.ranges import MORE_COLORS
from galago.lab.eval.scenes.things import Scene, SceneObject
from galago.values import Box, Spot


def ask_color(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    by_name: dict[str, set[str]] = {}
    for t in scene.things:
        if t.kind in ("shape", "word"):
            by_name.setdefault(t.name, set()).add(t.color)
    clear = [name for name, colors in by_name.items() if len(colors) == 1]
    if not clear:
        return None
    name = one_of(rng, clear)
    several = sum(t.name == name for t in scene.things) > 1
    one = ("What color is the {x}?", "What is the color of the {x}?", "Which color is the {x}?",
           "Tell me the color of the {x}.", "What color does the {x} have?")  # fmt: skip
    many = ("What color are the {x}?", "What is the color of the {x}?", "Which color are the {x}?",
            "Tell me the color of the {x}.", "What color do the {x} have?")  # fmt: skip
    (answer,) = by_name[name]
    return make_question(rng, "color", many if several else one, answer,
                  x=plural(name) if several else name)  # fmt: skip


def ask_shape(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    by_color: dict[str, list[str]] = {}
    for t in scene.things:
        if t.kind == "shape":
            by_color.setdefault(t.color, []).append(t.name)
    vague = vague_colors(scene)
    clear = [c for c, names in by_color.items() if len(names) == 1 and c not in vague]
    if not clear:
        return None
    color = one_of(rng, clear)
    templates = (
        "What shape is the {x} object?", "What shape is {x}?", "Which shape is {x}?",
        "What is the shape of the {x} object?", "What kind of shape is the {x} one?",
        "What is the {x} thing?",
    )  # fmt: skip
    return make_question(rng, "shape", templates, by_color[color][0], x=color)


def ask_presence(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    present = [p for p in phrases_for(scene) if p not in MORE_COLORS and p not in ("object", "shape")]
    answer = rng.random() < 0.52  # few phrases are true of a small scene, and none comes twice
    if answer and not present:
        return None
    phrase = one_of(rng, present) if answer else absent_phrase(scene, rng)
    name = "text" if phrase == "text" else article(phrase)
    templates = (
        "Is there {x}?", "Is there {x} in the image?", "Is there {x} in the picture?",
        "Does the image contain {x}?", "Can you see {x}?", "Do you see {x} here?",
    )  # fmt: skip
    return make_question(rng, "presence", templates, "yes" if answer else "no", x=name)


_RARITY = {
    1: {0: 0.22, 1: 0.55, 2: 0.8, 3: 2.0, 4: 1.8, 5: 2.4, 6: 2.4},
    2: {0: 0.16, 1: 0.5, 2: 0.7, 3: 1.3, 4: 1.4, 5: 2.0, 6: 3.0, 7: 4.5, 8: 6.0, 9: 9.0},
}
_COUNT = (
    "How many {x} are there?", "How many {x} are in the image?", "How many {x} can you see?",
    "Count the {x}.", "What is the number of {x}?", "How many {x} do you see?",
)  # fmt: skip


def _pick_counted(scene: Scene, rng: np.random.Generator, least: int) -> tuple[str, list[SceneObject]] | None:
    """A phrase to count, chosen so that all numbers come about equally often."""
    by_count: dict[int, list[tuple[str, list[SceneObject]]]] = {}
    for phrase in phrases_for(scene):
        if phrase not in MORE_COLORS and phrase != "text":
            things = find_things(phrase, scene.things)
            by_count.setdefault(len(things), []).append((phrase, things))
    missing = absent_phrase(scene, rng)
    if missing != "text":
        by_count[0] = [(missing, [])]
    numbers = [n for n in by_count if n >= least]
    if not numbers:
        return None
    weights = np.array([_RARITY[scene.range.version].get(n, 3.0) for n in numbers])
    number = numbers[int(rng.choice(len(numbers), p=weights / weights.sum()))]
    return one_of(rng, by_count[number])


def ask_count(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    found = _pick_counted(scene, rng, 0)
    if found is None:
        return None
    return make_question(rng, "count", _COUNT, str(len(found[1])), x=plural(found[0]))


def ask_reason(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    found = _pick_counted(scene, rng, 1)
    if found is None:
        return None
    if len(found[1]) > 6:
        return None
    steps = tuple((f" {phrase_of(t)}", t.center) for t in found[1])
    return make_question(rng, "reason", _COUNT, str(len(steps)), reasoning=steps, x=plural(found[0]))


_SIDES = {  # axis, sign of the difference
    "to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1),
}  # fmt: skip
_OPPOSITE = {
    "to the left of": "to the right of", "to the right of": "to the left of",
    "above": "below", "below": "above",
}  # fmt: skip
_MARGIN = 0.15


def ask_relation(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    unique = unique_phrases(scene)
    if len(unique) < 2:
        return None
    if rng.random() < 0.3:
        return _what_is_beside(scene, rng, unique)
    for _ in range(8):
        (first, a), (second, b) = one_of(rng, unique), one_of(rng, unique)
        side = one_of(rng, tuple(_SIDES))
        axis, sign = _SIDES[side]
        if a is b or sign * (a.center[axis] - b.center[axis]) < _MARGIN:
            continue
        answer = rng.random() < 0.5
        templates = ("Is the {a} {side} the {b}?", "Is the {a} located {side} the {b}?",
                     "Can you see the {a} {side} the {b}?", "Is {a} {side} {b}?")  # fmt: skip
        return make_question(
            rng, "relation", templates, "yes" if answer else "no",
            a=first, b=second, side=side if answer else _OPPOSITE[side],
        )  # fmt: skip
    return None


def _what_is_beside(
    scene: Scene, rng: np.random.Generator, unique: list[tuple[str, SceneObject]]
) -> SceneQuestion | None:
    for _ in range(8):
        phrase, anchor = one_of(rng, unique)
        side = one_of(rng, tuple(_SIDES))
        axis, sign = _SIDES[side]
        ahead = {t: sign * (t.center[axis] - anchor.center[axis]) for t in scene.things}
        beside = [t for t, d in ahead.items() if t is not anchor and d > 0.03]
        if len(beside) == 1 and ahead[beside[0]] >= _MARGIN:
            templates = (
                "What is {side} the {x}?", "What do you see {side} the {x}?",
                "Which object is {side} the {x}?", "What can be seen {side} the {x}?",
            )  # fmt: skip
            return make_question(rng, "relation", templates, phrase_of(beside[0]), side=side, x=phrase)
    return None


def ask_size(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    shapes = [t for t in scene.things if t.kind == "shape"]
    if len(shapes) < 2:
        return None
    extents = sorted((_extent(scene, t), phrase_of(t)) for t in shapes)
    biggest = extents[-1][0] >= 1.25 * extents[-2][0]
    smallest = extents[0][0] * 1.25 <= extents[1][0]
    if not (biggest or smallest):
        return None
    if biggest and (not smallest or rng.random() < 0.5):
        templates = ("What is the largest shape?", "Which shape is the largest?",
                     "What is the biggest shape?", "Which shape is the biggest?")  # fmt: skip
        return make_question(rng, "size", templates, extents[-1][1])
    templates = ("What is the smallest shape?", "Which shape is the smallest?",
                 "What is the smallest shape here?", "Name the smallest shape.")  # fmt: skip
    return make_question(rng, "size", templates, extents[0][1])


def _extent(scene: Scene, thing: SceneObject) -> float:
    """The longest side in pixels."""
    x0, y0, x1, y1 = thing.box
    return max((x1 - x0) * scene.image.width, (y1 - y0) * scene.image.height)


def ask_read(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    words = [t for t in scene.things if t.kind == "word"]
    if len(words) != 1:
        return None
    templates = (
        "What does the text say?", "What does it say?", "What is written in the image?",
        "Read the text.", "What word is shown?", "Which word is written here?",
    )  # fmt: skip
    return make_question(rng, "read", templates, words[0].text, spelt=True)


def gaze_direction(scene: Scene, face: SceneObject) -> str | None:
    """'left', 'right', 'up', 'down' or 'forward'; None between the axes (over 25 degrees off)."""
    if face.eye is None or face.gaze is None:
        return None if face.eye is None else "forward"
    dx = (face.gaze[0] - face.eye[0]) * scene.image.width
    dy = (face.gaze[1] - face.eye[1]) * scene.image.height
    if min(abs(dx), abs(dy)) > math.tan(math.radians(25)) * max(abs(dx), abs(dy)):
        return None
    if abs(dx) > abs(dy):
        return "right" if dx > 0 else "left"
    return "down" if dy > 0 else "up"


def ask_face(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    faces = [t for t in scene.things if t.kind == "face"]
    answer = gaze_direction(scene, faces[0]) if len(faces) == 1 else None
    if answer is None:
        return None
    templates = (
        "Which way is the face looking?", "Where is the face looking?",
        "In which direction is the face looking?", "Which direction do the eyes look?",
        "Which way are the eyes looking?",
    )  # fmt: skip
    return make_question(rng, "face", templates, answer)


def ask_background(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    templates = (
        "What color is the background?", "What is the background color?",
        "Which color does the background have?", "Tell me the color of the background.",
    )  # fmt: skip
    return make_question(rng, "background", templates, scene.background)


def ask_describe(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    templates = (
        "Describe this image.", "What is in the picture?", "What do you see?",
        "What is shown in the image?", "Describe the picture.", "What does the image show?",
    )  # fmt: skip
    return make_question(rng, "describe", templates, caption_of(scene, "normal"))


def ask_refer(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    if not scene.things:
        return None
    i = int(rng.integers(len(scene.things)))
    thing = scene.things[i]
    ref: Spot | Box = thing.box if rng.random() < 0.4 else _inside(scene, rng, i)
    asks = [(("What is this?", "What is here?", "Name this object.", "What is at this place?"),
             phrase_of(thing))]  # fmt: skip
    if thing.kind == "shape":
        asks += [
            (("What color is this?", "Which color is this?", "What color does this have?",
              "Tell me the color of this."), thing.color),
            (("What shape is this?", "Which shape is this?", "What kind of shape is this?",
              "What is the shape of this?"), thing.name),
        ]  # fmt: skip
    elif thing.kind == "word":
        asks.append((("What does this say?", "Read this.", "What word is this?",
                      "What is written here?"), thing.text))  # fmt: skip
    templates, answer = one_of(rng, asks)
    return make_question(rng, "refer", templates, answer, refs=(ref,), spelt=answer == thing.text)


def _inside(scene: Scene, rng: np.random.Generator, i: int) -> Spot:
    """A visible point of things[i]: of a few at random the one nearest to the centre."""
    ys, xs = np.nonzero(scene.ids == i + 1)
    height, width = scene.ids.shape
    picks = rng.integers(len(xs), size=3)
    points = [((float(xs[k]) + 0.5) / width, (float(ys[k]) + 0.5) / height) for k in picks]
    return min(points, key=lambda p: math.dist(p, scene.things[i].center))


SceneAsker = Callable[[Scene, np.random.Generator], SceneQuestion | None]
WEIGHTED: tuple[tuple[SceneAsker, float], ...] = (
    (ask_color, 2.0), (ask_shape, 2.0), (ask_presence, 2.6), (ask_count, 3.2), (ask_relation, 2.6),
    (ask_size, 1.0), (ask_read, 2.5), (ask_face, 3.5), (ask_background, 0.6), (ask_describe, 0.8),
    (ask_refer, 2.4), (ask_reason, 0.8),
)  # fmt: skip
