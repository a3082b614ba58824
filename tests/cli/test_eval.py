"""galago eval, from its options to what it prints and keeps."""

import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import made_sets
import pytest
import tiny_motion
import tiny_smolvlm

BAR = "{http://www.w3.org/2000/svg}rect[@class='score']"
FEW = ("--count", 2, "--seed", 5)


@pytest.fixture(scope="module")
def float32(tmp_path_factory):
    """The bundled model's answers to a few scenes."""
    from galago.cli.app import main

    file = tmp_path_factory.mktemp("eval") / "float32.jsonl"
    assert main(["eval", "scenes", "--count", "4", "--seed", "5", "--out", str(file)]) == 0
    return file


def test_answers_and_summary_are_kept(float32):
    settings, *answers = [json.loads(line) for line in float32.read_text().splitlines()]
    assert settings["task"] == "scenes" and settings["precision"] == "float32" and settings["seed"] == 5
    assert {a["id"].split("/")[0] for a in answers} == {"0", "1", "2", "3"}
    assert all(
        set(a) == {"id", "asked", "truth", "answer", "marks", "tokens", "seconds", "shown", "lacks"} for a in answers
    )
    told = json.loads(float32.with_suffix(".summary.json").read_text())
    assert told["answers"] == len(answers) and told["model"] == "scenes"
    detect = [m for a in answers for m in a["marks"] if m[0] == "detect"]
    share = sum(m[1] for m in detect) / sum(m[2] for m in detect)
    measured = told["measures"]["detect"]
    assert measured["share"] == pytest.approx(share) and measured["low"] < share <= measured["high"]


def test_the_table(galago, float32):
    ran = galago("eval", "scenes", "--count", 4, "--seed", 5, "--out", float32)
    assert ran.code == 0 and "goes on after" in ran.err
    assert "scenes float32, 4 of seed 5" in ran.out and "detect-absent" in ran.out and " to " in ran.out


def test_gates(galago, float32):
    again = ("eval", "scenes", "--count", 4, "--seed", 5, "--out", float32)
    assert galago(*again, "--min", "color=0", "--min", "detect=1").code == 0
    ran = galago(*again, "--min", "detect=100.1", "--min", "color=0")
    assert ran.code == 1 and "is below 100.1 %" in ran.err and "color" not in ran.err


def test_blank_stands_beside(galago, tmp_path):
    out = tmp_path / "run.jsonl"
    ran = galago("eval", "scenes", *FEW, "--blank", "--out", out)
    assert ran.code == 0 and "blank" in ran.out
    assert json.loads((tmp_path / "run-blank.jsonl").read_text().splitlines()[0])["blank"] is True
    assert json.loads(out.read_text().splitlines()[0])["blank"] is False


@pytest.mark.slow
def test_shuffled_clips_stand_beside(galago, tmp_path):
    out, model = tmp_path / "run.jsonl", tiny_motion.write(tmp_path / "model")
    asks = ("eval", "motion", "--model", model, *FEW, "--blank", "--shuffle-frames", "--out", out)
    [told] = galago(*asks, "--json").json
    assert told["measures"].keys() == told["shuffled_measures"].keys() == told["blank_measures"].keys()
    views = {file.stem: json.loads(file.read_text().splitlines()[0]) for file in tmp_path.glob("run*.jsonl")}
    assert views.keys() == {"run", "run-blank", "run-shuffled"}
    assert [views["run-shuffled"][name] for name in ("blank", "shuffled")] == [False, True]
    ran = galago(*asks)
    assert ran.code == 0 and "goes on after" in ran.err
    assert re.search(r"measure +│ +n │ +score │ +95 % interval │ +blank │ +shuffled", ran.out.replace("┃", "│"))


def test_a_model_of_images_is_asked_nothing_about_clips(galago):
    assert "clip" in galago("eval", "motion", "-m", "scenes", *FEW).error


def test_two_precisions_side_by_side(galago, tmp_path):
    plot, out = tmp_path / "plot.svg", tmp_path / "run.jsonl"
    ran = galago("eval", "scenes", *FEW, "--compare", "scenes", "scenes-int4", "--plot", plot, "--out", out)
    assert ran.code == 0 and ran.err == ""
    assert "A scenes float32, B scenes int4" in ran.out and "B - A" in ran.out
    drawn = ET.parse(plot).getroot()
    assert len(drawn.findall(BAR)) % 2 == 0 and len(drawn.findall(BAR)) > 20
    files = (tmp_path / "run-A.jsonl", tmp_path / "run-B.jsonl")
    [told] = galago("eval", "--compare", *files, "--json").json
    assert told["a"]["precision"] == "float32" and told["b"]["precision"] == "int4"
    assert told["differences"]["detect"]["tasks"] == told["a"]["measures"]["detect"]["tasks"]


def test_scenes_of_another_range(galago, float32, tmp_path):
    out = tmp_path / "narrow.jsonl"
    narrow = ("eval", "scenes", "--count", 4, "--seed", 5, "--range", 1, "--out", out)
    ran = galago(*narrow)
    assert ran.code == 0 and "range 1" in ran.out
    first, second = (json.loads(file.read_text().splitlines()[0]) for file in (float32, out))
    assert (first["range"], second["range"]) == (2, 1)
    assert json.loads(out.with_suffix(".summary.json").read_text())["range"] == 1
    assert "range 1 there, 2 now" in galago(*narrow[:6], "--out", out).error
    assert "range 2 there, 1 now" in galago(*narrow[:-1], float32).error
    assert "same cases" in galago("eval", "--compare", float32, out).error


def test_what_a_model_cannot_do_is_left_out(galago, float32, tmp_path):
    model, out, plot = tiny_smolvlm.write(tmp_path / "talk"), tmp_path / "run.jsonl", tmp_path / "plot.svg"
    ran = galago("eval", "scenes", "-m", model, "--count", 4, "--seed", 5, "--out", out, "--json")
    [told] = ran.json
    assert told["left_out"]["point at objects"] > 0 and "answer questions" not in told["left_out"]
    assert ran.err.splitlines() == [
        f"talk cannot {what}: {n} cases are left out" if n > 1 else f"talk cannot {what}: 1 case is left out"
        for what, n in told["left_out"].items()
    ]
    kept = json.loads(float32.with_suffix(".summary.json").read_text())
    assert told["answers"] + sum(told["left_out"].values()) == kept["answers"] and kept["left_out"] == {}
    assert "color" in told["measures"] and "detect" not in told["measures"]

    files = (float32, out)
    ran = galago("eval", "--compare", *files, "--plot", plot)
    assert f"{told['answers']} answers of both" in ran.out and "B cannot point at objects: " in ran.out
    assert re.search(r"│ detect +│ +\d+ │ +\d+\.\d % │ +- │", ran.out)
    assert "<text" in plot.read_text() and ">detect<" not in plot.read_text()
    [both] = galago("eval", "--compare", *files, "--json").json
    assert both["b"]["left_out"] == told["left_out"] and "detect" in both["a"]["measures"]
    assert "color" in both["differences"] and "detect" not in both["differences"]
    assert "detect: not measured" in galago("eval", "--compare", *files, "--min", "detect=1").err
    sets = made_sets.gazefollow(tmp_path / "gazes")
    assert (
        "talk cannot follow gazes: no case is left" in galago("eval", "gazefollow", "-m", model, "--data", sets).error
    )


def test_files_of_other_cases_do_not_compare(galago, float32, tmp_path):
    other = tmp_path / "other.jsonl"
    assert galago("eval", "scenes", *FEW, "--out", other).code == 0
    assert "same cases" in galago("eval", "--compare", float32, other).error


ENDS = """
import os, signal, sys
from galago.cli.app import main
from galago.lab.eval import journal
signal.signal(signal.SIGINT, signal.default_int_handler)
write, lines = journal._write, 0
def last_words(*args):
    global lines
    write(*args)
    lines += 1
    if lines == 20:
        os.kill(os.getpid(), getattr(signal, sys.argv[1]))
journal._write = last_words
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize(("how", "code"), [("SIGKILL", -9), ("SIGINT", 130)])
def test_an_ended_run_goes_on(galago, float32, tmp_path, how, code):
    out = tmp_path / "run.jsonl"
    command = ["eval", "scenes", "--count", "4", "--seed", "5", "--out", str(out)]
    ended = subprocess.run([sys.executable, "-c", ENDS, how, *command], capture_output=True, text=True)
    assert ended.returncode == code
    assert ("the same command goes on" in ended.stderr) == (how == "SIGINT")
    begun = out.read_bytes()
    assert begun.count(b"\n") == 20
    assert "goes on after 19 answers" in galago(*command).err
    assert out.read_bytes().startswith(begun)

    def asked(file: Path):
        return [(a["id"], a["asked"], a["truth"]) for a in map(json.loads, file.read_text().splitlines()[1:])]

    assert asked(out) == asked(float32)


@pytest.mark.parametrize("name", ["vqav2", "textvqa", "pope", "countbench", "chartqa", "coco"])
def test_every_set_through_the_model(galago, name, tmp_path):
    folder = getattr(made_sets, name)(tmp_path / name)
    ran = galago("eval", name, "--data", folder, "--json")
    assert ran.code == 0, ran
    assert ran.json[0]["answers"] > 0 and ran.json[0]["measures"]


def test_gazes(galago, tmp_path):
    folder = made_sets.gazefollow(tmp_path)
    [told] = galago("eval", "gazefollow", "--data", folder, "--json").json
    measured = told["measures"]
    assert measured["found"]["tasks"] == 2 and 0 <= measured["found"]["share"] <= 1
    assert 0 <= measured["min-distance"]["share"] <= measured["distance"]["share"] < 2


def test_the_list(galago):
    ran = galago("eval", "list")
    assert ran.code == 0
    assert {"vqav2", "motion", "scenes"} < set(ran.out.split()) and "v2_mscoco_val2014_annotations.json" in ran.out


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((), "which task?"),
        (("gqa",), "no task 'gqa'; there are chartqa"),
        (("pope",), "pope needs --data FOLDER with coco_pope_"),
        (("pope", "--data", "."), "coco_pope_random.json"),
        (("scenes", "--count", "0"), "--count"),
        (("scenes", "--range", "3"), "no range 3; of this task there are 1, 2"),
        (("pope", "--range", "2"), "no range 2; of this task there are none"),
        (("scenes", "--min", "colour=3"), "no measure 'colour'"),
        (("scenes", "--min", "color"), "MEASURE=PERCENT"),
        (("scenes", "--min", "color=high"), "MEASURE=PERCENT"),
        (("scenes", "--min", "color=nan"), "MEASURE=PERCENT"),
        (("scenes", "--min", "color=-inf"), "MEASURE=PERCENT"),
        (("gazefollow", "--min", "distance=3"), "no measure 'distance' in percent; there are found, within-0.1"),
        (("scenes", "--out", "no/such/folder/a.jsonl"), "no/such/folder"),
        (("--compare", "none.jsonl", "other.jsonl"), "none.jsonl"),
        (("scenes", "--blank", "--compare", "a", "b"), "exclude"),
        (("motion", "--shuffle-frames", "--compare", "a", "b"), "exclude"),
        (("scenes", "--shuffle-frames"), "scenes asks about images"),
        (("scenes", "--model", "moondream9"), "moondream9"),
        (("scenes", "--count", "1", "--precision", "int3"), "int3"),
    ],
)
def test_one_line_says_what_was_wrong(galago, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    assert said in galago("eval", *args).error


def test_help_shows_examples_without_torch():
    checked = "import sys; from galago.cli.app import main; main(['eval', '--help']); assert 'torch' not in sys.modules"
    ran = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("Usage: galago eval") and "galago eval vqav2" in ran.stdout
