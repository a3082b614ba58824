"""Questions that only scenes of the second range can answer, and more ways to word any."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from galago.lab.eval.scenes import questions as q
from galago.lab.eval.scenes.captions import phrase_of
from galago.lab.eval.scenes.phrases import one_of, unique_phrases
from galago.lab.eval.scenes.question import SceneQuestion, make_question
from galago.lab.eval.scenes.ranges import TEXTURES
from galago.lab.eval.scenes.things import Scene, SceneObject

_FRAMES = (
    "In this image, {lower}", "Look at the picture. {whole}", "{whole} Answer briefly.",
    "{whole} Use as few words as possible.", "Please answer: {lower}", "{whole} Reply in one short phrase.",
)  # fmt: skip


def reword(task: SceneQuestion, rng: np.random.Generator) -> SceneQuestion:
    """The task, at times with its question in a frame as people and programs write it."""
    if task.kind == "describe" or rng.random() < 0.8:
        return task
    whole = task.question
    return replace(task, question=one_of(rng, _FRAMES).format(whole=whole, lower=whole[0].lower() + whole[1:]))


def _inside(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    unique = [(phrase, t) for phrase, t in unique_phrases(scene) if t.kind == "shape"]
    held = [(a, b) for a in unique for b in unique if a[1].host == b[1].box]
    if held and rng.random() < 0.4:
        (_, inner), (phrase, outer) = one_of(rng, held)
        templates = (
            "What is inside the {x}?", "What do you see inside the {x}?", "Which shape is inside the {x}?",
            "What does the {x} contain?",
        )  # fmt: skip
        if sum(t.host == outer.box for t in scene.things) == 1:
            return make_question(rng, "relation", templates, phrase_of(inner), x=phrase)
    asked = ("Is the {a} inside the {b}?", "Is the {a} in the {b}?", "Does the {b} contain the {a}?")
    if held and rng.random() < 0.5:
        (a, _), (b, _) = one_of(rng, held)
        return make_question(rng, "relation", asked, "yes", a=a, b=b)
    # What holds nothing would be asked about only to be denied, so both ways come from scenes that nest.
    if not any(t.host for t in scene.things) or len(unique) < 2:
        return None
    apart = [(a, b) for a in unique for b in unique if _are_apart(a[1], b[1])]
    if not apart:
        return None
    (a, _), (b, _) = one_of(rng, apart)
    return make_question(rng, "relation", asked, "no", a=a, b=b)


def _are_apart(a: SceneObject, b: SceneObject) -> bool:
    (ax0, ay0, ax1, ay1), (bx0, by0, bx1, by1) = a.box, b.box
    return ax1 <= bx0 or bx1 <= ax0 or ay1 <= by0 or by1 <= ay0


def _shade(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    shaded = [(phrase, t) for phrase, t in unique_phrases(scene) if t.shade]
    if not shaded:
        return None
    phrase, thing = one_of(rng, shaded)
    templates = (
        "Is the {x} light or dark?",
        "Is the {x} a light or a dark one?",
        "How dark is the {x}: light or dark?",
    )
    return make_question(rng, "shade", templates, thing.shade, x=phrase)


def _texture(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    unique = unique_phrases(scene)
    textured = [(phrase, t) for phrase, t in unique if t.texture]
    if not textured:
        return None
    plain = [(phrase, t) for phrase, t in unique if t.kind == "shape" and not t.texture and t.size != "small"]
    phrase, thing = one_of(rng, plain if plain and rng.random() < 1 / (len(TEXTURES) + 1) else textured)
    templates = (
        "What pattern does the {x} have?", "Is the {x} plain, striped, dotted or checkered?",
        "Which pattern is on the {x}?", "What texture does the {x} have?",
    )  # fmt: skip
    return make_question(rng, "texture", templates, thing.texture or "plain", x=phrase)


_PLACES = ("first", "second", "third", "last")


def _letter(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    words = [t for t in scene.things if t.kind == "word"]
    if len(words) != 1:
        return None
    text = words[0].text
    place = one_of(rng, _PLACES)
    at = len(text) - 1 if place == "last" else _PLACES.index(place)
    if at >= len(text):
        return None
    noun = "digit" if text.isdigit() else "letter"
    templates = ("What is the {n} {x} of the word?", "Which {x} comes {n} in the text?", "What is the {n} {x}?",
                 "Read the {n} {x}.")  # fmt: skip
    return make_question(rng, "letter", templates, text[at], spelt=True, n=place, x=noun)


def _face(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    task = q.ask_face(scene, rng)
    # Looks between the axes have no answer, those at the viewer always do.
    return None if task and task.text == "forward" and rng.random() < 0.75 else task


def _look(scene: Scene, rng: np.random.Generator) -> SceneQuestion | None:
    faces = [t for t in scene.things if t.kind == "face"]
    if len(faces) != 1 or len(scene.things) < 3:
        return None
    target = faces[0].gaze
    seen = [t for t in scene.things if t.center == target]
    if target and len(seen) != 1:
        return None
    templates = (
        "What is the face looking at?", "What does the face look at?", "At what are the eyes looking?",
        "Which object is the face looking at?", "What has the face's attention?",
    )  # fmt: skip
    return make_question(rng, "look", templates, phrase_of(seen[0]) if seen else "the viewer")


WIDE_WEIGHTED: tuple[tuple[q.SceneAsker, float], ...] = (
    (q.ask_color, 1.8), (q.ask_shape, 1.6), (q.ask_presence, 2.4), (q.ask_count, 3.4), (q.ask_relation, 2.2),
    (_inside, 6.0), (q.ask_size, 0.8), (q.ask_read, 3.5), (_letter, 3.5), (_face, 3.0), (_look, 3.0),
    (_shade, 3.0), (_texture, 1.6), (q.ask_background, 0.6), (q.ask_describe, 0.6), (q.ask_refer, 2.2),
    (q.ask_reason, 0.8),
)  # fmt: skip
