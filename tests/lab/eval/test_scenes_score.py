"""Scores of answers about drawn scenes, against values worked out by hand."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from galago.lab.eval.places import clamp_box, count_matched_boxes, count_matched_points, iou, is_gaze_right
from galago.lab.eval.scenes.draw import Scene
from galago.lab.eval.scenes.question_mix import SceneQuestion
from galago.lab.eval.scenes.ranges import BUNDLED, RANGES
from galago.lab.eval.scenes.score import judge, normalize
from galago.lab.eval.scenes.score import scene_questions as series
from galago.lab.eval.score import Mark, below_minimum, mean_interval, summarize, wilson
from galago.lab.eval.tasks import load_task
from galago.request import Caption, Detect, DetectGaze, Point, Query

unit = st.floats(0, 1, allow_nan=False)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


def test_wilson_against_known_values():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


def test_the_interval_of_a_mean():
    # mean 0.2, sample variance 0.01, standard error sqrt(0.01 / 3) = 0.057735
    values = (0.1, 0.2, 0.3)
    half = 1.96 * 0.057735
    assert mean_interval([(v, 1.0) for v in values]) == pytest.approx((0.2 - half, 0.2 + half), abs=1e-5)
    scores = summarize([[Mark("far", v, 1.0)] for v in values], distances={"far"})
    assert scores["far"].share == pytest.approx(0.2) and scores["far"].low == pytest.approx(0.08684, abs=1e-4)


def test_what_is_asked_again_of_a_picture_tells_nothing_new():
    hits = [True, True, False, True, True, True, False, True]
    once = summarize([[Mark("right", hit, 1)] for hit in hits])["right"]
    assert (once.low, once.high) == wilson(6, 8)
    thrice = summarize([[Mark("right", hit, 1)] * 3 for hit in hits])["right"]
    assert thrice.tasks == 24 and (thrice.low, thrice.high) == pytest.approx((once.low, once.high))
    far = [[Mark("far", v, 1)] * 3 for v in (0.1, 0.2, 0.3)]
    assert summarize(far, distances={"far"})["far"].low == pytest.approx(0.08684, abs=1e-4)


def test_the_interval_of_pictures_that_differ_by_hand():
    # 7 of 10; off their shares by 4 - 0.7 * 5, 3 - 0.7 * 3 and 0 - 0.7 * 2: squares 0.25 + 0.81 + 1.96 = 3.02,
    # where independent items have 10 * 0.7 * 0.3 = 2.1. They tell as much as 10 * 2.1 / 3.02 items.
    marks = [[Mark("m", hit, 1) for hit in picture] for picture in ((1, 1, 1, 1, 0), (1, 1, 1), (0, 0))]
    found = summarize(marks)["m"]
    assert (found.low, found.high) == pytest.approx(wilson(0.7 * 6.9536, 6.9536), abs=1e-4)
    # Evener than chance, as matches of boxes can be: not taken for more items than there are.
    even = summarize([[Mark("m", 1, 1), Mark("m", 0, 1)] for _ in range(5)])["m"]
    assert (even.low, even.high) == wilson(5, 10)


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_holds_the_share(total, share):
    low, high = wilson(share * total, total)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1


def test_iou_and_matching_by_hand():
    a, b = (0.0, 0.0, 0.4, 0.4), (0.2, 0.0, 0.6, 0.4)
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, (0.5, 0.5, 0.6, 0.6)) == 0
    assert clamp_box((-0.1, 0.2, 1.5, 0.9)) == (0.0, 0.2, 1.0, 0.9)
    assert count_matched_boxes([a, a], [a]) == 1  # a second copy is a false one
    assert count_matched_boxes([b, a], [a, b]) == 2
    assert count_matched_boxes([a], [b]) == 0
    assert count_matched_points([(0.3, 0.1), (0.1, 0.1)], [a, b]) == 2  # the first must leave a to it
    assert count_matched_points([(0.1, 0.1), (0.1, 0.2)], [a, b]) == 1
    assert is_gaze_right([(0.5, 0.5)], [(0.6, 0.6)]) and not is_gaze_right([(0.5, 0.5)], [(0.7, 0.5)])
    assert is_gaze_right([], []) and not is_gaze_right([(0.5, 0.5)], []) and not is_gaze_right([], [(0, 0)])
    assert normalize(" Red. ") == "red"


@given(st.lists(boxes, max_size=5), st.lists(boxes, max_size=5))
def test_matching_is_one_to_one_and_symmetric(found, true):
    count = count_matched_boxes(found, true)
    assert count <= min(len(found), len(true))
    proper = [b for b in found if b[2] > b[0] + 1e-3 and b[3] > b[1] + 1e-3]
    assert count_matched_boxes(proper, proper) == len(proper)
    centers = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in found]
    assert count_matched_points(centers, found) == len(found)


def test_scores_by_hand():
    scene = Scene(Image.new("RGB", (200, 200)), (), "white", np.zeros((1, 1), np.uint8))
    a, b = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)
    marks = []
    marks += judge(scene, SceneQuestion("detect", "detect", object="x", boxes=(a, b)), [a])
    marks += judge(scene, SceneQuestion("detect", "detect", object="y"), [b])
    marks += judge(scene, SceneQuestion("point", "point", object="x", boxes=(a, b)), [(0.1, 0.1)])
    marks += judge(scene, SceneQuestion("query", "count", text="5"), "5.")
    marks += judge(scene, SceneQuestion("query", "count", text="3"), "2")
    marks += judge(scene, SceneQuestion("query", "count", text="6"), "7")
    true = "A red circle and a blue star on a white background."
    marks += judge(scene, SceneQuestion("caption", "caption", text=true), "A red circle and a blue heart.")
    scores = summarize([marks])
    # one match; found 1 and 1, true 2 and 0: precision 1/2, recall 1/2
    assert scores["detect"].share == scores["detect-crops"].share == 0.5
    assert scores["detect-absent"].share == 0
    assert scores["point"].share == 1 and scores["point-recall"].share == 0.5
    assert scores["point-f1"].share == pytest.approx(2 / 3)
    assert scores["count"].share == pytest.approx(1 / 3)
    assert scores["count5"].share == 0.5 and scores["count4"].share == 0
    assert scores["caption-precision"].share == 0.5
    assert scores["caption-recall"].share == pytest.approx(1 / 3)
    assert below_minimum(scores, {"count5": 50, "point-f1": 70, "gaze": 1}) == [
        "point-f1: 66.7 % is below 70 %",
        "gaze: not measured",
    ]
    assert summarize([[Mark("point", 0, 0)]])["point"].share == 0


@pytest.mark.parametrize(("range", "measures"), [(1, 22), (2, 27)])
@pytest.mark.parametrize(("lying", "share"), [(False, 1.0), (True, 0.0)])
def test_true_answers_score_full_and_false_ones_nothing(lying, share, range, measures):
    task = load_task("scenes").within(range)
    cases = task.cases(Path(), 40, 3)
    drawn = series(3, 40, RANGES[range])
    known = {f"{place}/{n}": t for place, (_, tasks) in enumerate(drawn) for n, t in enumerate(tasks)}

    def truth(task: SceneQuestion):
        if task.skill in ("caption", "query"):
            return "Two things." if lying else task.text
        if task.skill == "gaze":
            return task.points if not lying else () if task.points else (task.eye,)
        if task.skill == "point":
            return [(0.0, 0.0)] if lying else task.points
        return [(0.0, 0.0, 0.01, 0.01)] if lying else task.boxes

    marks = [case.judge(truth(known[case.id])) for case in cases]
    scores = summarize(marks, task.measures)
    assert {name: s.share for name, s in scores.items()} == dict.fromkeys(scores, share)
    assert len(scores) >= measures and set(scores) <= set(task.measures)


def test_scenes_are_those_of_the_bundled_model_where_no_range_is_given():
    def told(task):
        return [(c.id, c.skill, c.truth, c.media.tobytes()) for c in task.cases(Path(), 4, 9)]

    task = load_task("scenes")
    assert task.range == BUNDLED.version and task.within(None) is task
    assert told(task) == told(task.within(BUNDLED.version)) != told(task.within(3 - BUNDLED.version))


def test_scenes_are_asked_as_their_tasks_say():
    asked = {}
    for case in load_task("scenes").cases(Path(), 30, 4):
        asked.setdefault(type(case.skill), []).append(case.skill)
    assert set(asked) == {Caption, Query, Detect, Point, DetectGaze}
    assert any(q.reasoning for q in asked[Query]) and any(q.spatial_refs for q in asked[Query])
    assert {c.length for c in asked[Caption]} == {"short", "normal", "long"}
