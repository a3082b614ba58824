"""Drawn scenes: the drawing keeps its promises, the answers are true, the scores are right."""

import math
import re
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from galago.lab.eval.scenes import draw
from galago.lab.eval.scenes.captions import common_facts, facts_of, parse_caption, plural
from galago.lab.eval.scenes.draw import COLORS, SHAPES, SIZES, Scene, SceneObject, draw_scene, scene_at
from galago.lab.eval.scenes.question_mix import SceneQuestion, caption_of, questions_for
from galago.lab.eval.scenes.ranges import V1
from galago.lab.eval.scenes.score import scene_questions

SEED = 4242


@pytest.fixture(scope="module")
def drawn() -> list[tuple[Scene, list[SceneQuestion]]]:
    return list(scene_questions(SEED, 250, V1))


@pytest.fixture(scope="module")
def tasks(drawn: list[tuple[Scene, list[SceneQuestion]]]) -> list[tuple[Scene, SceneQuestion]]:
    return [(scene, task) for scene, some in drawn for task in some]


# --- drawing ----------------------------------------------------------------------------------


@settings(max_examples=15)
@given(st.integers(0, 2**40), st.integers(0, 2**40))
def test_the_same_seed_draws_the_same_scene(seed, index):
    a, b = scene_at(seed, index, V1), scene_at(seed, index, V1)
    assert a.things == b.things
    assert a.background == b.background
    assert a.image.tobytes() == b.image.tobytes()
    assert np.array_equal(a.ids, b.ids)
    assert questions_for(a, np.random.default_rng(1)) == questions_for(b, np.random.default_rng(1))


def test_pictures_have_the_promised_sizes(drawn):
    sizes = [scene.image.size for scene, _ in drawn]
    assert all(min(s) >= 64 and max(s) <= 420 and max(s) <= 3.1 * min(s) for s in sizes)
    assert all(max(s) <= 224 for s in sizes if min(s) <= 112)
    assert 0.35 < np.mean([min(s) > 112 for s in sizes]) < 0.65
    assert all(scene.image.mode == "RGB" for scene, _ in drawn)
    assert all(scene.ids.shape == scene.image.size[::-1] for scene, _ in drawn)
    small = [draw_scene(np.random.default_rng(i), sides=(64, 100), of=V1).image.size for i in range(20)]
    assert all(min(s) >= 64 and max(s) <= 100 for s in small)


def test_boxes_are_tight_around_what_is_seen(drawn):
    for scene, _ in drawn:
        width, height = scene.image.size
        for number, thing in enumerate(scene.things, 1):
            ys, xs = np.nonzero(scene.ids == number)
            seen = (xs.min() / width, ys.min() / height, (xs.max() + 1) / width,
                    (ys.max() + 1) / height)  # fmt: skip
            x0, y0, x1, y1 = thing.box
            assert 0 <= x0 < x1 <= 1
            assert 0 <= y0 < y1 <= 1
            assert thing.center == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2))
            px, py = 1.5 / width, 1.5 / height
            assert seen[0] >= x0 - px and seen[1] >= y0 - py
            assert seen[2] <= x1 + px and seen[3] <= y1 + py
            if not _may_be_covered(scene, thing):
                assert np.abs(np.subtract(seen, thing.box)).max() <= max(px, py) * 1.5


def _may_be_covered(scene: Scene, thing: SceneObject) -> bool:
    x0, y0, x1, y1 = thing.box
    return any(
        x0 <= t.box[2] and t.box[0] <= x1 and y0 <= t.box[3] and t.box[1] <= y1 for t in scene.things if t is not thing
    )


def test_enough_of_everything_is_visible(monkeypatch):
    painted = []
    paint = draw.paint_thing

    def keep(rng, canvas, one, thing, base, outlined, **how):
        painted.append((thing, np.count_nonzero(one.solid)))  # on the double-size canvas
        paint(rng, canvas, one, thing, base, outlined, **how)

    monkeypatch.setattr(draw, "paint_thing", keep)
    shares = []
    for index in range(200):
        painted.clear()
        scene = scene_at(SEED, index, V1)
        for thing, whole in painted:
            number = scene.things.index(thing) + 1
            share = 4 * np.count_nonzero(scene.ids == number) / whole
            if thing.kind == "shape":
                assert share >= 0.65
                shares.append(share)
            else:
                assert not _may_be_covered(scene, thing)
    assert sum(share < 0.9 for share in shares) > 10, "some do overlap"


def test_things_are_sorted_and_their_sizes_fit_their_class(drawn):
    for scene, _ in drawn:
        width, height = scene.image.size
        short = min(width, height)
        assert list(scene.things) == sorted(scene.things, key=lambda t: t.center)
        for t in scene.things:
            extent = max((t.box[2] - t.box[0]) * width, (t.box[3] - t.box[1]) * height)
            if t.kind == "shape":
                low, high = SIZES[t.size]
                assert low * short - 1.5 <= extent <= high * short + 1.5
            if t.kind == "face":
                assert 0.27 <= extent / short <= 0.57
                assert t.gaze is None or (math.dist(t.eye, t.gaze) >= 0.2 - 1e-9 and all(0 <= v <= 1 for v in t.gaze))
            if t.kind == "word":
                assert 2 <= len(t.text) <= 4 and t.text.isalpha()


def test_the_pixels_show_the_named_colour(drawn):
    """The nearest of all colours, seen at the middle of a shape, is its own."""
    names = list(COLORS)
    palette = np.array([COLORS[name] for name in names], float)
    right = total = 0
    for scene, _ in drawn:
        pixels = np.asarray(scene.image, float)
        for number, thing in enumerate(scene.things, 1):
            if thing.kind == "shape" and thing.size != "small":
                # The median is a pixel of the inside, whatever the outline and the noise.
                inside = np.median(pixels[scene.ids == number], axis=0)
                nearest = names[int(np.abs(palette - inside).sum(axis=1).argmin())]
                right += nearest == thing.color
                total += 1
    assert right / total > 0.99


def test_scenes_hold_what_the_tasks_need(drawn):
    kinds = Counter(kind for scene, _ in drawn for kind in {t.kind for t in scene.things})
    assert 0.15 < kinds["face"] / len(drawn) < 0.4
    assert 0.15 < kinds["word"] / len(drawn) < 0.4
    assert Counter(t.name for scene, _ in drawn for t in scene.things).keys() >= set(SHAPES)
    assert max(len(scene.things) for scene, _ in drawn) <= 6


# --- captions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("length", ["short", "normal", "long"])
def test_captions_read_back_to_the_facts(drawn, length):
    for scene, _ in drawn[:200]:
        stated, true = parse_caption(caption_of(scene, length)), facts_of(scene, length)
        assert common_facts(stated, true) == len(stated) == len(true)


def test_captions_in_full():
    def shape(color, name, x, y, size="small"):
        return SceneObject("shape", name, color, (x, y, x, y), (x, y), size)

    word = SceneObject("word", "word", "red", (0.5, 0.1, 0.6, 0.2), (0.55, 0.15), "small", text="STOP")
    face = SceneObject("face", "face", "", (0.8, 0.8, 0.9, 0.9), (0.85, 0.85), "large")
    things = (shape("blue", "square", 0.2, 0.5), shape("orange", "cross", 0.3, 0.5),
              shape("blue", "square", 0.5, 0.5, "large"), word, face)  # fmt: skip
    scene = Scene(Image.new("RGB", (9, 9)), things, "white", np.zeros((9, 9), np.uint8))
    short = 'The word "STOP" in red, a face, two blue squares and an orange cross'
    assert caption_of(scene, "short") == f"{short}."
    assert caption_of(scene) == f"{short} on a white background."
    assert caption_of(scene, "long") == (
        f'{short} on a white background. The word "STOP" is at the top. The face is at the bottom right. '
        "One small blue square is at the left. One large blue square is in the center. "
        "The small orange cross is at the left."
    )
    empty = Scene(scene.image, (), "black", scene.ids)
    assert {caption_of(empty, n) for n in ("short", "normal", "long")} == {"An empty black background."}


def test_broken_captions_state_false_facts():
    true = parse_caption("A red circle and two blue squares on a white background.")
    stated = parse_caption("A red circle, two blue blue squares and a green on a gray background")
    assert stated[0] == ("things", "1", "red", "circle")
    assert [fact[0] for fact in stated[1:]] == ["unread", "unread", "background"]
    assert common_facts(stated, true) == 1
    repeated = parse_caption("A red circle, a red circle and a red circle.")
    assert common_facts(repeated, true) == 1


@given(st.text(max_size=80))
def test_any_text_can_be_read(text):
    assert all(isinstance(fact, tuple) for fact in parse_caption(text))


# --- answers ----------------------------------------------------------------------------------


def _meant(phrase: str, scene: Scene) -> list[SceneObject]:
    """A second reading of a phrase, in the singular or plural, told from its words alone."""
    singular = {plural(name): name for name in (*SHAPES, "face", "word", "shape", "object")}
    words = [singular.get(word, word) for word in phrase.split() if word not in ("the", "a", "an")]
    found = list(scene.things)
    for word in words:
        if word in COLORS:
            found = [t for t in found if t.kind == "shape" and t.color == word]
        elif word in SHAPES or word == "face":
            found = [t for t in found if t.name == word]
        elif word in ("word", "text"):
            found = [t for t in found if t.kind == "word"]
        elif word == "shape":
            found = [t for t in found if t.kind == "shape"]
        else:
            assert word == "object", phrase
    return found


_COUNT = r"(?:how many|count the|what is the number of) (.*?)( are| can| do|$)"


def test_counts_are_true(tasks):
    seen = Counter()
    for scene, task in tasks:
        if task.kind in ("count", "reason"):
            phrase = re.match(_COUNT, task.question.rstrip("?.").lower())[1]
            things = _meant(phrase, scene)
            assert task.text == str(len(things)), task
            if task.kind == "reason":
                assert [step[1] for step in task.reasoning] == [t.center for t in things]
            seen[task.text] += 1
    assert all(seen[str(n)] >= 25 for n in range(6)), seen


def test_found_things_are_the_meant_ones(tasks):
    absent = Counter()
    for scene, task in tasks:
        if task.skill in ("detect", "point"):
            things = _meant(task.object, scene)
            assert task.boxes == tuple(t.box for t in things), task
            if task.skill == "point":
                assert task.points == tuple(t.center for t in things)
            absent[task.skill, not things] += 1
    for skill in ("detect", "point"):
        assert 0.05 < absent[skill, True] / absent[skill, False] < 0.3


def test_presence_is_true_and_balanced(tasks):
    answers = Counter()
    for scene, task in tasks:
        if task.kind == "presence":
            words = re.findall(r"[a-z]+", task.question.lower())
            known = [w for w in words if w in (*COLORS, *SHAPES, "face", "word", "text", "shape")]
            assert task.text == ("yes" if _meant(" ".join(known), scene) else "no"), task
            answers[task.text] += 1
    assert 0.42 < answers["yes"] / answers.total() < 0.58


def test_relations_are_true_and_balanced(tasks):
    answers = Counter()
    sides = {
        "to the left of": (0, -1),
        "to the right of": (0, 1),
        "above": (1, -1),
        "below": (1, 1),
    }
    for scene, task in tasks:
        if task.kind != "relation" or task.text not in ("yes", "no"):
            continue
        said = task.question.rstrip("?").lower().replace("located ", "")
        first, side, second = re.match(rf"(?:is|can you see) (.*) ({'|'.join(sides)}) (.*)", said).groups()
        (a,), (b,) = _meant(first, scene), _meant(second, scene)
        axis, sign = sides[side]
        distance = sign * (a.center[axis] - b.center[axis])
        assert abs(distance) >= 0.15
        assert task.text == ("yes" if distance > 0 else "no"), task
        answers[task.text] += 1
    assert 0.38 < answers["yes"] / answers.total() < 0.62


def test_references_point_at_the_answer(tasks):
    for scene, task in tasks:
        if task.kind == "refer":
            (ref,) = task.refs
            if len(ref) == 4:
                (thing,) = [t for t in scene.things if t.box == ref]
            else:
                width, height = scene.image.size
                number = scene.ids[int(ref[1] * height), int(ref[0] * width)]
                thing = scene.things[number - 1]
                assert number
            full = f"{thing.color} {thing.name}" if thing.kind == "shape" else thing.name
            assert task.text in (full, thing.color, thing.name, thing.text), task


def test_other_answers_come_from_the_scene(tasks):
    seen = Counter()
    for scene, task in tasks:
        seen[task.kind] += 1
        said = task.question.lower().replace("colour", "color")
        if task.kind == "color":
            noun = re.search(rf"\b({'|'.join((*SHAPES, 'word'))})", said)[1]
            assert {t.color for t in scene.things if t.name == noun} == {task.text}
        elif task.kind == "shape":
            color = re.search(rf"\b({'|'.join(COLORS)})\b", said)[1]
            assert [t.name for t in _meant(color, scene)] == [task.text]
        elif task.kind == "read":
            assert [t.text for t in scene.things if t.kind == "word"] == [task.text]
        elif task.kind == "background":
            assert task.text == scene.background
        elif task.kind == "face":
            assert task.text in ("left", "right", "up", "down", "forward")
        elif task.kind == "gaze":
            (face,) = [t for t in scene.things if t.eye is not None and t.eye == task.eye]
            assert task.points == ((face.gaze,) if face.gaze else ())
    assert min(seen[k] for k in ("color", "shape", "size", "read", "face", "gaze")) >= 20, seen


def test_every_scene_has_its_share_of_tasks(drawn):
    for scene, some in drawn:
        skills = Counter(task.skill for task in some)
        assert skills["caption"] == 1 and skills["detect"] >= 2 and 1 <= skills["point"] <= 2
        assert skills["gaze"] == sum(t.kind == "face" for t in scene.things)
        asked = [(t.question.lower(), t.refs) for t in some if t.skill == "query"]
        assert len(set(asked)) == len(asked)
        assert len(some) == 14 or len(scene.things) < 2
