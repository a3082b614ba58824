"""Every task reads its set as it is published, asks, and scores as by hand."""

import math
import sys

import made_sets
import pytest
from PIL import Image
from told import Told

from galago.errors import InvalidRequest
from galago.lab.eval.case import Case
from galago.lab.eval.report import score_run
from galago.lab.eval.run import answer_cases
from galago.lab.eval.tasks import load_task, task_names
from galago.request import Detect, DetectGaze, Query

DRAWN = ("motion", "scenes")
"""Tasks that need no data."""
SETTINGS = {"task": "made", "model": "told", "precision": "none", "blank": False, "count": None, "seed": 0}


def scored(name, folder, answer, count=None, seed=0):
    task = load_task(name)
    records = answer_cases(Told(answer), task.cases(folder, count, seed))
    return score_run(task, SETTINGS, records).scores


def said(**by_word):
    """Answers a question by the word that it has in it."""

    def answer(request):
        return next(text for word, text in by_word.items() if word in request.skill.question)

    return answer


def shares(scores):
    return {name: pytest.approx(s.share) for name, s in scores.items()}


def test_vqav2(tmp_path):
    scores = scored("vqav2", made_sets.vqav2(tmp_path), said(red="no", many="Two", What="a cat."))
    # "no": all agree. "2": three of ten. "cat" after normalisation: two of ten.
    assert shares(scores) == {"accuracy": (1.0 + 0.9 + 0.6) / 3, "yes-no": 1.0, "number": 0.9, "other": 0.6}


def test_vqav2_images_and_prompts(tmp_path):
    cases = list(load_task("vqav2").cases(made_sets.vqav2(tmp_path), None, 0))
    assert [c.media.name for c in cases] == [f"COCO_val2014_{i:012d}.jpg" for i in (42, 42, 581929)]
    assert cases[1].skill == Query("Give a brief lowercase answer. How many?")
    assert [c.id for c in cases] == ["1", "2", "3"]


def test_textvqa(tmp_path):
    scores = scored("textvqa", made_sets.textvqa(tmp_path), said(brand="Nokia", what="b"))
    assert shares(scores) == {"accuracy": 1.0}
    assert scored("textvqa", tmp_path, said(brand="nokia 3310", what="c"))["accuracy"].share == 0


def test_pope(tmp_path):
    # cat yes (hit), dog yes (false alarm), cup no (miss), car no (right)
    answer = said(cat="Yes", dog="Yes, there is", cup="No", car="There is not")
    scores = scored("pope", made_sets.pope(tmp_path), answer)
    one = {"accuracy": 2 / 4, "precision": 1 / 2, "recall": 1 / 2, "f1": 1 / 2, "yes-ratio": 2 / 4}
    everywhere = one | {f"{s}-{m}": v for s in ("random", "popular", "adversarial") for m, v in one.items()}
    assert shares(scores) == everywhere
    assert scores["accuracy"].tasks == 12
    # All yes: precision 1/2, recall 1, F1 = 2 * (1/2) * 1 / (3/2) = 2/3.
    yes = scored("pope", tmp_path, lambda request: "yes")
    assert yes["f1"].share == pytest.approx(2 / 3) and yes["recall"].share == 1 and yes["yes-ratio"].share == 1


@pytest.mark.parametrize("form", ["jsonl", "csv"])
def test_countbench(tmp_path, form):
    folder = made_sets.countbench(tmp_path, form)
    assert scored("countbench", folder, said(cats=" Two.", cups="8"))["accuracy"].share == 0.5
    assert scored("countbench", folder, said(cats="2", cups="7"))["accuracy"].share == 1


def test_countbench_without_an_export(tmp_path):
    (tmp_path / "test-00000-of-00001.parquet").write_bytes(b"PAR1")
    with pytest.raises(InvalidRequest, match=r"metadata\.jsonl.*Parquet"):
        load_task("countbench").cases(tmp_path, None, 0)


def test_chartqa(tmp_path):
    scores = scored("chartqa", made_sets.chartqa(tmp_path), said(much="209.9", Which="beef"))
    assert shares(scores) == {"relaxed": 0.5, "human": 1.0, "augmented": 0.0}
    scores = scored("chartqa", tmp_path, said(much="210.1", Which="lamb"))
    assert shares(scores) == {"relaxed": 0.5, "human": 0.0, "augmented": 1.0}


def test_gazefollow(tmp_path):
    def answer(request):
        assert isinstance(request.skill, DetectGaze)
        return [(0.3, 0.51)] if request.skill.eye == (0.5, 0.25) else [(0.9, 0.78)]

    scores = scored("gazefollow", made_sets.gazefollow(tmp_path), answer)
    # First: people at (0.2, 0.6) and (0.4, 0.6), their mean at (0.3, 0.6), 0.09 away; each of them 0.1 more
    # to a side. Second: 0.12 away from the only one.
    assert shares(scores) == {
        "found": 1.0,
        "distance": (0.09 + 0.12) / 2,
        "min-distance": (math.hypot(0.1, 0.09) + 0.12) / 2,
        "within-0.1": 0.5,
        "within-0.15": 1.0,
    }
    assert scores["distance"].low == pytest.approx(0.105 - 1.96 * 0.015)

    scores = scored("gazefollow", tmp_path, lambda r: [] if r.skill.eye == (0.1, 0.1) else answer(r))
    # What was not found is no distance, and within none.
    assert shares(scores) == {
        "found": 0.5, "distance": 0.09, "min-distance": math.hypot(0.1, 0.09), "within-0.1": 0.5, "within-0.15": 0.5,
    }  # fmt: skip


CAT = {9: [(0.1, 0.2, 0.3, 0.6), (0.6, 0.2, 0.8, 0.6)]}
"""As the model says it: parts of 100 x 50."""


def test_coco_average_precision(tmp_path):
    folder = made_sets.coco(tmp_path)
    asked = []

    def right(request):
        assert isinstance(request.skill, Detect)
        asked.append(request.skill.object)
        return CAT[9] if request.skill.object == "cat" else [(0.0, 0.0, 0.5, 0.8)]

    scores = scored("coco", folder, right)
    assert asked == ["cat", "dog"]  # neither the crowd alone, nor an image without boxes
    assert shares(scores) == dict.fromkeys(("map", "map50", "precision50", "recall50", "f1-50"), 1.0)

    def half(request):
        if request.skill.object == "cat":
            # One of two, after a false one: precision at the first hit 1/2, so 1/2 up to a recall of 1/2 and
            # nothing above it. Of 101 recalls 0.00 ... 0.50 are 51: 51 * 0.5 / 101.
            return [(0.3, 0.6, 0.5, 0.9), CAT[9][0]]
        # 41 of 50 wide: an overlap of 0.82 passes 0.5 ... 0.8, seven of ten.
        return [(0.0, 0.0, 0.41, 0.8)]

    scores = scored("coco", folder, half)
    cat = 51 * 0.5 / 101
    assert scores["map"].share == pytest.approx((cat + 0.7) / 2, abs=1e-6)
    assert scores["map50"].share == pytest.approx((cat + 1.0) / 2, abs=1e-6)
    # Three boxes, three true ones, two pairs.
    assert shares({n: scores[n] for n in ("precision50", "recall50", "f1-50")}) == dict.fromkeys(
        ("precision50", "recall50", "f1-50"), 2 / 3
    )


def test_coco_with_nothing_found(tmp_path):
    scores = scored("coco", made_sets.coco(tmp_path), lambda request: [])
    assert scores["map"].share == scores["map50"].share == scores["f1-50"].share == 0


def test_coco_needs_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'galago\[lab\]'"):
        load_task("coco").cases(made_sets.coco(tmp_path), None, 0)


@pytest.mark.parametrize("name", [n for n in task_names() if n not in DRAWN])
def test_an_empty_folder_is_told_what_it_lacks(name, tmp_path):
    with pytest.raises(InvalidRequest, match=r"has no .*(json|txt)"):
        load_task(name).cases(tmp_path, None, 0)


@pytest.mark.parametrize("name", [n for n in task_names() if n not in DRAWN])
def test_a_part_of_a_set_is_drawn_by_the_seed(name, tmp_path):
    folder = getattr(made_sets, name)(tmp_path)
    task = load_task(name)

    def ids(count, seed):
        return [case.id for case in task.cases(folder, count, seed)]

    every = ids(None, 0)
    assert len(set(every)) == len(every)
    assert ids(99, 0) == every
    assert ids(1, 3) == ids(1, 3) and ids(1, 3) != every
    assert set(ids(1, 3)) <= set(every)


def test_rows_that_lack_a_field_are_shown(tmp_path):
    folder = made_sets.textvqa(tmp_path)
    (folder / "TextVQA_0.5.1_val.json").write_text('{"data": [{"question_id": 7, "image_id": "x"}]}')
    with pytest.raises(InvalidRequest, match=r"'question_id': 7.*answers"):
        list(load_task("textvqa").cases(folder, None, 0))
    (folder / "TextVQA_0.5.1_val.json").write_text("{")
    with pytest.raises(InvalidRequest, match="cannot read"):
        load_task("textvqa").cases(folder, None, 0)


def test_a_file_of_ones_own_is_a_task(tmp_path):
    plugin = tmp_path / "mine.py"
    plugin.write_text(
        "from PIL import Image\n"
        "from galago.lab.eval.case import Case, Cases, Task\n"
        "from galago.lab.eval.score import Mark\n"
        "from galago.request import Query\n"
        "def cases(data, count, seed):\n"
        "    judge = lambda answer: [Mark('right', float(answer == 'blue'), 1.0)]\n"
        "    case = Case('0', Image.new('RGB', (9, 9), 'blue'), Query('Which color?'), 'blue', judge, 0)\n"
        "    return Cases(1, [case])\n"
        "TASK = Task('my own', ('right',), cases)\n"
    )
    assert scored(str(plugin), tmp_path, lambda request: "blue")["right"].share == 1
    plugin.write_text("")
    with pytest.raises(InvalidRequest, match="no TASK"):
        load_task(str(plugin))
    with pytest.raises(InvalidRequest, match=r"no task 'vqa'; there are chartqa, .*vqav2"):
        load_task("vqa")


def test_every_task_says_what_it_is():
    assert task_names() == [
        "chartqa",
        "coco",
        "countbench",
        "gazefollow",
        "motion",
        "pope",
        "scenes",
        "textvqa",
        "vqav2",
    ]
    for name in task_names():
        task = load_task(name)
        assert task.about and task.measures and bool(task.files) == (name not in DRAWN)
        assert task.clips == (name == "motion")


def test_scenes_of_another_seed_are_others():
    def first(seed: int) -> Case:
        return next(iter(load_task("scenes").cases(None, 1, seed)))

    assert isinstance(first(1).media, Image.Image)
    assert first(1).media.tobytes() == first(1).media.tobytes() != first(2).media.tobytes()


def test_clips_of_another_seed_are_others():
    def first(seed: int) -> Case:
        return next(iter(load_task("motion").cases(None, 1, seed)))

    def pixels(case: Case) -> list[bytes]:
        return [frame.tobytes() for frame in case.media.frames]

    assert pixels(first(1)) == pixels(first(1)) != pixels(first(2))


def test_true_answers_about_clips_are_all_right():
    def key(clip, question):
        return clip.frames[0].tobytes(), clip.frames[-1].tobytes(), question

    truths = {key(case.media, case.skill.question): case.truth for case in load_task("motion").cases(None, 6, 3)}
    scores = scored("motion", None, lambda request: truths[key(request.image, request.skill.question)], 6, 3)
    assert len(truths) > 10 and len(scores) > 3 and all(score.share == 1 for score in scores.values())
