"""Runs keep every answer, go on after an interruption, and compare."""

import io
import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from told import Told

from galago.batch.each import IN_FLIGHT
from galago.errors import GenerationFailed, InvalidImage, InvalidRequest, UnsupportedTask
from galago.lab.eval.case import Case, Cases, Task
from galago.lab.eval.journal import open_journal, read_journal
from galago.lab.eval.paired import compare_marks, sign_test
from galago.lab.eval.plot import plot_runs
from galago.lab.eval.report import compare_runs, comparison_table, run_summary, score_run, scores_table
from galago.lab.eval.run import answer_cases
from galago.lab.eval.score import Mark, summarize
from galago.media.clip import Clip
from galago.request import Point, Query

SETTINGS = {
    "task": "made", "model": "told", "weights": "told@1", "revision": "r", "precision": "int8",
    "count": 60, "seed": 1, "blank": False,
}  # fmt: skip
TASK = Task("made", ("right", "far"), lambda data, count, seed: made(count), distances=frozenset({"far"}))


def made(count=60, image=None):
    def judge(place):
        return lambda answer: [Mark("right", float(answer == str(place)), 1.0), Mark("far", place / 100, 1.0)]

    picture = image or Image.new("RGB", (30, 20), "red")
    return Cases(count, (Case(f"c{n}", picture, Query(f"q {n}"), {"n": n}, judge(n), n) for n in range(count)))


def number(request):
    return request.skill.question.split()[1]


def kept(file: Path, model: Told, settings=SETTINGS):
    with open_journal(file, settings) as (done, keep):
        return answer_cases(model, made(), done=done, keep=keep)


def test_two_runs_do_not_write_to_one_file(tmp_path):
    file = tmp_path / "run.jsonl"
    with (
        open_journal(file, SETTINGS),
        pytest.raises(InvalidRequest, match="another run is writing to"),
        open_journal(file, SETTINGS),
    ):
        pass
    with open_journal(file, SETTINGS) as (done, _):
        assert done == []


def test_many_at_a_time_in_the_order_of_the_cases():
    model = Told(number)
    told = []
    records = answer_cases(model, made(100), tell=lambda place, total: told.append((place, total)))
    assert [r.id for r in records] == [f"c{n}" for n in range(100)]
    assert [r.answer for r in records] == [str(n) for n in range(100)]
    assert model.most == IN_FLIGHT
    assert told == [(n, 100) for n in range(1, 101)]
    assert {r.priority for r in model.requests} == {"batch"}


def test_blank_images_are_grey_and_as_large():
    model = Told(number)
    answer_cases(model, made(3), blank=True)
    assert {i.size for i in model.images} == {(30, 20)}
    assert {i.getpixel((5, 5)) for i in model.images} == {(128, 128, 128)}
    answer_cases(model, made(1))
    assert model.images[-1].getpixel((5, 5)) == (255, 0, 0)


def clips():
    """Three questions each about four clips of eight frames, told apart by their reds."""
    shown = [
        Clip(tuple(Image.new("RGB", (30, 20), (10 * n, c, 0)) for n in range(8)), tuple(map(float, range(8))), 8.0)
        for c in range(4)
    ]
    asked = [(c, n) for c in range(4) for n in range(3)]

    def judge(answer):
        return [Mark("right", 1.0, 1.0)]

    return Cases(4, (Case(f"{c}/{n}", shown[c], Query(f"q {n}"), "", judge, c) for c, n in asked))


def reds(request):
    return [frame.getpixel((5, 5))[0] // 10 for frame in request.image.frames]


def test_clips_are_shown_as_they_are():
    model = Told(number)
    answer_cases(model, clips())
    assert [reds(r) for r in model.requests] == [list(range(8))] * 12


def test_shuffled_clips_keep_their_frames_but_not_their_order():
    model = Told(number)
    answer_cases(model, clips(), shuffled=True)
    orders = [tuple(reds(r)) for r in model.requests]
    assert all(sorted(order) == list(range(8)) for order in orders)
    # All questions about a clip see one order; clips differ.
    assert [len(set(orders[i : i + 3])) for i in range(0, 12, 3)] == [1] * 4
    assert len(set(orders)) == 4 and tuple(range(8)) not in orders
    assert all(r.image.times == tuple(map(float, range(8))) and r.image.duration == 8.0 for r in model.requests)
    again = Told(number)
    answer_cases(again, clips(), shuffled=True)
    assert [tuple(reds(r)) for r in again.requests] == orders


def test_blank_clips_are_grey_and_as_long():
    model = Told(number)
    answer_cases(model, clips(), blank=True)
    assert {len(r.image.frames) for r in model.requests} == {8}
    assert {f.getpixel((5, 5)) for r in model.requests for f in r.image.frames} == {(128, 128, 128)}


@pytest.mark.parametrize("how", [KeyboardInterrupt, GenerationFailed])
def test_goes_on_after_an_interruption(tmp_path, how):
    file = tmp_path / "run.jsonl"

    def until_twenty(request):
        if number(request) == "20":
            raise how
        return number(request)

    stopped = Told(until_twenty)
    with pytest.raises(how):
        kept(file, stopped)
    assert stopped.cancelled == IN_FLIGHT - 1
    settings, there = read_journal(file)
    assert settings == SETTINGS and [r.id for r in there] == [f"c{n}" for n in range(20)]

    rest = Told(number)
    records = kept(file, rest)
    assert [number(r) for r in rest.requests] == [str(n) for n in range(20, 60)]
    assert records == kept(tmp_path / "at-once.jsonl", Told(number))
    assert read_journal(file)[1] == records
    assert file.read_bytes() == (tmp_path / "at-once.jsonl").read_bytes()


def test_a_line_that_was_cut_off_is_asked_again(tmp_path):
    file = tmp_path / "run.jsonl"
    kept(file, Told(number))
    whole = file.read_bytes()
    for cut in (1, 30, len(whole.splitlines()[-1])):
        file.write_bytes(whole[:-cut])
        again = Told(number)
        kept(file, again)
        assert [number(r) for r in again.requests] == ["59"]
        assert file.read_bytes() == whole


def test_a_file_of_another_run_is_left_alone(tmp_path):
    file = tmp_path / "run.jsonl"
    kept(file, Told(number))
    before = file.read_bytes()
    with pytest.raises(InvalidRequest, match=r"precision int8 there, int4 now; seed 1 there, 2 now"):
        kept(file, Told(number), SETTINGS | {"precision": "int4", "seed": 2})
    with pytest.raises(InvalidRequest, match=r"range None there, 2 now"):
        kept(file, Told(number), SETTINGS | {"range": 2})
    assert file.read_bytes() == before
    for text in (b"hello\n", b"[1]\n", b"{}\n", b"\xff\n"):
        file.write_bytes(text)
        with pytest.raises(InvalidRequest, match=r"run\.jsonl"):
            kept(file, Told(number))
        assert file.read_bytes() == text


def test_an_image_that_is_missing_ends_the_run(tmp_path):
    with pytest.raises(InvalidImage, match=r"none\.png"):
        answer_cases(Told(number), made(5, tmp_path / "none.png"))


def test_what_a_line_holds(tmp_path):
    kept(tmp_path / "run.jsonl", Told(number))
    lines = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    assert lines[0] == SETTINGS
    assert lines[3] == {
        "id": "c2", "asked": "q 2", "truth": {"n": 2}, "answer": "2",
        "marks": [["right", 1.0, 1.0], ["far", 0.02, 1.0]],
        "tokens": 1, "seconds": {"encode_s": 0.0, "prefill_s": 0.0, "decode_s": 0.0, "ttft_s": 0.0, "total_s": 0.5},
        "shown": "2", "lacks": "",
    }  # fmt: skip


def run(right, settings=SETTINGS, count=20):
    """Answers to `count` cases, those in `right` right."""
    model = Told(lambda request: number(request) if int(number(request)) in right else "no")
    return score_run(TASK, settings, answer_cases(model, made(count)))


def test_a_paired_test_by_hand():
    a, b = run(range(0, 10)), run(range(8, 15))
    difference = compare_runs(TASK, a, b)["right"]
    # Right in A: 0..9, in B: 8..14. Lost are 0..7, won 10..14: of 13 at most five on one side.
    assert (difference.lost, difference.won, difference.tasks) == (8, 5, 20)
    assert difference.change == pytest.approx(7 / 20 - 10 / 20)
    assert difference.p == pytest.approx(2 * (1 + 13 + 78 + 286 + 715 + 1287) / 8192)
    # The change per case is -1, 0 or 1: mean -0.15, sum of squares 13 - 20 * 0.0225 = 12.55.
    assert difference.spread == pytest.approx(1.96 * 12.55**0.5 / 20)
    assert sign_test(0, 0) == 1 and sign_test(0, 6) == pytest.approx(2 / 64)


def test_answers_about_one_picture_stand_together(tmp_path):
    for n in range(5):
        Image.new("RGB", (30, 20), "red").save(tmp_path / f"{n}.png")

    def asked(right, times):
        """Five pictures, each asked about so many times, and all answers about one right or wrong."""
        cases = [replace(case, media=tmp_path / f"{case.place // times}.png") for case in made(5 * times)]
        told = {str(case.place) for case in cases if case.place // times in right}
        model = Told(lambda request: number(request) if number(request) in told else "no")
        return score_run(TASK, SETTINGS, answer_cases(model, Cases(5 * times, cases)))

    once, again = (asked({0, 2, 3}, 1), asked({0}, 1)), (asked({0, 2, 3}, 4), asked({0}, 4))
    for one, more in zip(once, again, strict=True):
        a, b = one.scores["right"], more.scores["right"]
        assert (b.tasks, b.share) == (4 * a.tasks, a.share) and (b.low, b.high) == pytest.approx((a.low, a.high))
    assert compare_runs(TASK, *again)["right"].spread == pytest.approx(compare_runs(TASK, *once)["right"].spread)
    # A file of before pictures were noted compares with one of now, each answer for itself.
    before = score_run(TASK, SETTINGS, [replace(record, shown="") for record in again[0].records])
    apart = compare_runs(TASK, before, again[1])["right"]
    assert apart.spread == pytest.approx(compare_runs(TASK, *again)["right"].spread / 2)


def test_of_a_single_picture_answers_are_taken_as_independent():
    before, after = ([[Mark("right", hit, 1) for hit in hits]] for hits in ((1, 1, 1, 0), (0, 1, 0, 0)))
    apart = [[[mark] for mark in picture] for picture in (before[0], after[0])]
    assert compare_marks(before, after)["right"] == compare_marks(*apart)["right"]
    assert compare_marks(before, after)["right"].spread == pytest.approx(1.96 * 1.0**0.5 / 4)  # moves -.5, .5, -.5, .5


def test_nearer_is_better():
    near, far = [[Mark("d", 0.1, 1.0)]] * 3, [[Mark("d", 0.3, 1.0)]] * 3
    found = compare_marks(near, far, distances={"d"})["d"]
    assert found.change == pytest.approx(0.2) and (found.lost, found.won) == (3, 0)


# --- what a model cannot do is left out ------------------------------------------------------


BOTH = Task("both", ("right", "far"), lambda data, count, seed: mixed(), whole=lambda records: {
    "whole": summarize([[mark] for r in records for mark in r.marks])["right"]
})  # fmt: skip


def mixed():
    """Ten questions, and ten things to point at; all marks of questions are right, and half of the others."""
    asked = [Query(f"q {n}") if n % 2 else Point(f"p {n}") for n in range(20)]

    def judge(n):
        return lambda answer: [Mark("right", float(n % 4 != 0), 1.0), *([] if n % 2 else [Mark("far", 0.0, 1.0)])]

    picture = Image.new("RGB", (30, 20), "red")
    return Cases(20, (Case(f"c{n}", picture, skill, {"n": n}, judge(n), n) for n, skill in enumerate(asked)))


def mixed_run(*lacks, settings=SETTINGS, **options):
    model = Told(lambda request: "" if isinstance(request.skill, Query) else [], lacks)
    return score_run(BOTH, settings, answer_cases(model, mixed(), **options))


def test_cases_of_a_skill_that_is_lacking_are_left_out():
    run = mixed_run(Point)
    told = run_summary(run)
    assert (told["answers"], told["left_out"]) == (10, {"point at objects": 10})
    assert (run.scores["right"].share, run.scores["whole"].share, "far" in run.scores) == (1.0, 1.0, False)
    every = mixed_run()
    assert run_summary(every)["left_out"] == {} and every.scores["whole"].share == 0.75
    assert "it cannot point at objects: 10 cases are left out" in drawn(scores_table(BOTH, run))[0]


def test_where_nothing_is_left_that_is_said():
    with pytest.raises(UnsupportedTask, match=r"^told cannot point at objects, answer questions: no case is left$"):
        mixed_run(Point, Query)


def test_a_question_that_a_model_refuses_is_left_out():
    class Plain(Told):
        def submit(self, request):
            if request.skill.reasoning or request.skill.spatial_refs:
                raise UnsupportedTask("this model has no such thing")
            return super().submit(request)

    asked = [Query("q"), Query("q", reasoning=True), Query("q", spatial_refs=((0.5, 0.5),))]
    picture = Image.new("RGB", (30, 20), "red")
    cases = Cases(3, (Case(str(n), picture, skill, "", lambda answer: [], n) for n, skill in enumerate(asked)))
    records = answer_cases(Plain(lambda request: "yes"), cases)
    assert [(r.answer, r.lacks) for r in records] == [
        ("yes", ""), ("", "reason before an answer"), ("", "answer questions about places in the image"),
    ]  # fmt: skip


def test_what_was_left_out_stands_in_the_file(tmp_path):
    file = tmp_path / "run.jsonl"
    with open_journal(file, SETTINGS) as (done, keep):
        run = mixed_run(Point, done=done, keep=keep)
    _, kept = read_journal(file)
    assert run_summary(score_run(BOTH, SETTINGS, kept)) == run_summary(run)
    assert mixed_run(Point, done=kept, keep=pytest.fail).records == kept


def test_runs_of_models_of_other_skills_compare_over_what_both_answered():
    one, other = mixed_run(), mixed_run(Point, settings=SETTINGS | {"model": "other"})
    found = compare_runs(BOTH, one, other)
    assert list(found) == ["right"] and (found["right"].tasks, found["right"].change) == (10, 0.0)
    text, rows = drawn(comparison_table(BOTH, one, other, found))
    assert "10 answers of both" in text and "B cannot point at objects: 10 cases are left out" in text
    assert rows["right"][:3] == ["10", "100.0 %", "100.0 %"] and rows["far"] == ["10", "0.0 %", "-", "", "", "", ""]
    text, rows = drawn(comparison_table(BOTH, other, one, found))
    assert "A cannot point at objects" in text and rows["far"][:3] == ["10", "-", "0.0 %"]
    with pytest.raises(InvalidRequest, match="no case that both answered"):
        compare_runs(BOTH, other, mixed_run(Query))


def drawn(table):
    console = Console(width=200, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    rows = [[cell.strip() for cell in line.split("│")] for line in text.splitlines() if line.startswith("│")]
    return " ".join(text.split()), {name: cells for _, name, *cells, _ in rows}


def test_runs_over_other_cases_do_not_compare():
    with pytest.raises(InvalidRequest, match="same cases"):
        compare_runs(TASK, run([1]), run([1], count=21))
    with pytest.raises(InvalidRequest, match="two tasks"):
        compare_runs(TASK, run([1]), run([1], SETTINGS | {"task": "other"}))
    with pytest.raises(ValueError, match="same cases"):
        compare_marks([[Mark("a", 1, 1)]], [[Mark("b", 1, 1)]])


def test_summary_and_plot():
    one, other = run(range(10)), run(range(5), SETTINGS | {"precision": "int4 <b>"})
    told = run_summary(one)
    assert told["answers"] == 20 and told["precision"] == "int8"
    assert told["measures"]["right"]["share"] == 0.5 and told["measures"]["right"]["low"] == pytest.approx(
        0.299, abs=1e-3
    )
    drawn = plot_runs(TASK, [one, other])
    assert drawn.count('class="score"') == 4 and "50.0 %" in drawn and "25.0 %" in drawn and "0.095" in drawn
    assert "&lt;b&gt;" in drawn
    alone = run_summary(run([0], count=1))
    assert alone["measures"]["far"]["low"] is None
    json.dumps(alone, allow_nan=False)
