"""Scores of answers about drawn scenes, against values worked out by hand."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from galago.eval.scenes import __main__ as cli
from galago.eval.scenes.draw import Scene
from galago.eval.scenes.score import (
    Mark,
    ask,
    cases,
    clamp,
    gaze_right,
    iou,
    judge,
    matched_boxes,
    matched_points,
    missed,
    plain,
    summarize,
    wilson,
)
from galago.eval.scenes.tasks import Task

unit = st.floats(0, 1, allow_nan=False)
boxes = st.tuples(unit, unit, unit, unit).map(
    lambda b: (min(b[0], b[2]), min(b[1], b[3]), max(b[0], b[2]), max(b[1], b[3]))
)


def test_wilson_against_known_values():
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)
    assert wilson(0, 0) == (0.0, 1.0)


@given(st.integers(1, 500), st.floats(0, 1))
def test_the_interval_holds_the_share(total, share):
    low, high = wilson(share * total, total)
    assert 0 <= low <= share + 1e-9 and share - 1e-9 <= high <= 1


def test_iou_and_matching_by_hand():
    a, b = (0.0, 0.0, 0.4, 0.4), (0.2, 0.0, 0.6, 0.4)
    assert iou(a, b) == pytest.approx(1 / 3)
    assert iou(a, (0.5, 0.5, 0.6, 0.6)) == 0
    assert clamp((-0.1, 0.2, 1.5, 0.9)) == (0.0, 0.2, 1.0, 0.9)
    assert matched_boxes([a, a], [a]) == 1  # a second copy is a false one
    assert matched_boxes([b, a], [a, b]) == 2
    assert matched_boxes([a], [b]) == 0
    assert matched_points([(0.3, 0.1), (0.1, 0.1)], [a, b]) == 2  # the first must leave a to it
    assert matched_points([(0.1, 0.1), (0.1, 0.2)], [a, b]) == 1
    assert gaze_right([(0.5, 0.5)], [(0.6, 0.6)]) and not gaze_right([(0.5, 0.5)], [(0.7, 0.5)])
    assert gaze_right([], []) and not gaze_right([(0.5, 0.5)], []) and not gaze_right([], [(0, 0)])
    assert plain(" Red. ") == "red"


@given(st.lists(boxes, max_size=5), st.lists(boxes, max_size=5))
def test_matching_is_one_to_one_and_symmetric(found, true):
    count = matched_boxes(found, true)
    assert count <= min(len(found), len(true))
    proper = [b for b in found if b[2] > b[0] + 1e-3 and b[3] > b[1] + 1e-3]
    assert matched_boxes(proper, proper) == len(proper)
    centers = [((b[0] + b[2]) / 2, (b[1] + b[3]) / 2) for b in found]
    assert matched_points(centers, found) == len(found)


def test_scores_by_hand():
    scene = Scene(Image.new("RGB", (200, 200)), (), "white", np.zeros((1, 1), np.uint8))
    a, b = (0.0, 0.0, 0.4, 0.4), (0.5, 0.5, 0.9, 0.9)
    marks = []
    marks += judge(scene, Task("detect", "detect", object="x", boxes=(a, b)), [a])
    marks += judge(scene, Task("detect", "detect", object="y"), [b])
    marks += judge(scene, Task("point", "point", object="x", boxes=(a, b)), [(0.1, 0.1)])
    marks += judge(scene, Task("query", "count", text="5"), "5.")
    marks += judge(scene, Task("query", "count", text="3"), "2")
    true = "A red circle and a blue star on a white background."
    marks += judge(scene, Task("caption", "caption", text=true), "A red circle and a blue heart.")
    scores = summarize(marks)
    # one match; found 1 and 1, true 2 and 0: precision 1/2, recall 1/2
    assert scores["detect"].share == scores["detect-crops"].share == 0.5
    assert scores["detect-absent"].share == 0
    assert scores["point"].share == 1 and scores["point-recall"].share == 0.5
    assert scores["point-f1"].share == pytest.approx(2 / 3)
    assert scores["count"].share == 0.5 and scores["count4"].share == 0
    assert scores["caption-precision"].share == 0.5
    assert scores["caption-recall"].share == pytest.approx(1 / 3)
    assert missed(scores, {"count": 50, "point-f1": 70, "gaze": 1}) == [
        "point-f1: 66.7 % is below 70 %",
        "gaze: not measured",
    ]
    assert summarize([Mark("point", 0, 0)])["point"].share == 0


class Oracle:
    """Stands in for a model: knows the tasks of the scene it is shown, true or not."""

    def __init__(self, seed: int, count: int, lying: bool):
        self.scenes = iter(list(cases(seed, count)))
        self.lying = lying

    def encode_image(self, image: Image.Image) -> list[Task]:
        scene, tasks = next(self.scenes)
        assert image.size == scene.image.size
        return tasks

    def _task(self, tasks, **fields):
        return next(t for t in tasks if all(getattr(t, k) == v for k, v in fields.items()))

    def query(self, tasks, question, *, reasoning, spatial_refs, settings):
        refs = tuple(spatial_refs or ())
        task = self._task(tasks, skill="query", question=question, refs=refs)
        assert reasoning == bool(task.reasoning) and settings["temperature"] == 0
        return {"answer": "nonsense" if self.lying else task.text}

    def caption(self, tasks, *, length, settings):
        text = self._task(tasks, skill="caption", length=length).text
        return {"caption": "Two things." if self.lying else text}

    def detect(self, tasks, name):
        found = [(0.0, 0.0, 0.01, 0.01)] if self.lying else self._find(tasks, "detect", name)
        return {"objects": [dict(zip(("x_min", "y_min", "x_max", "y_max"), b, strict=True)) for b in found]}

    def _find(self, tasks, skill, name):
        return self._task(tasks, skill=skill, object=name).boxes

    def point(self, tasks, name):
        centers = self._task(tasks, skill="point", object=name).points
        return {"points": [{"x": 0, "y": 0}] if self.lying else [{"x": x, "y": y} for x, y in centers]}

    def detect_gaze(self, tasks, *, eye):
        points = self._task(tasks, skill="gaze", eye=eye).points
        if self.lying:
            points = () if points else (eye,)
        return {"gaze": {"x": points[0][0], "y": points[0][1]} if points else None}


@pytest.mark.parametrize(("lying", "share"), [(False, 1.0), (True, 0.0)])
def test_true_answers_score_full_and_false_ones_nothing(lying, share):
    marks, wrong = cli.evaluate(Oracle(3, 40, lying), 40, 3)
    scores = summarize(marks)
    assert {name: s.share for name, s in scores.items()} == dict.fromkeys(scores, share)
    assert len(scores) >= 22
    assert bool(wrong) == lying


def test_the_command_reports_and_fails_below_the_minimum(monkeypatch, capsys, tmp_path):
    import galago

    def load(name, precision):
        return Oracle(5, 12, lying=False)

    monkeypatch.setattr(galago, "load", load, raising=False)
    file = tmp_path / "scores.json"
    common = ["--count", "12", "--seed", "5"]
    assert cli.main([*common, "--min", "count=99", "detect=99", "--json", str(file)]) == 0
    assert '"share": 1.0' in file.read_text()
    assert "detect-absent" in capsys.readouterr().out
    assert cli.main([*common, "--blank", "--min", "count=101"]) == 1
    assert "is below 101 %" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["--min", "colour=3"])


def test_ask_gives_references_only_when_there_are_some():
    seen = []
    model = SimpleNamespace(query=lambda *a, **k: seen.append(k["spatial_refs"]) or {"answer": ""})
    ask(model, None, Task("query", "refer", refs=((0.1, 0.2),)))
    ask(model, None, Task("query", "color"))
    assert seen == [[(0.1, 0.2)], None]
