"""galago bench, from its options to what it prints and writes. No time is judged."""

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

KEYS = {"load_s", "encode_s", "prefill_s", "ttft_s", "decode_tokens_per_s", "total_s", "peak_rss_bytes"}
QUICK = ("--no-ceilings", "--runs", 1, "--tokens", 3)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """What the bundled model's run in two precisions printed, and the folder of what it wrote."""
    folder = tmp_path_factory.mktemp("bench")
    command = [sys.executable, "-m", "galago.cli.app", "bench", "--json"]
    command += ["--precision", "float32", "--precision", "bfloat16", *map(str, QUICK), "--threads", "1"]
    command += ["--save", str(folder / "saved.json"), "--plot", str(folder / "plot.svg")]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ran.stderr == ""
    return ran.stdout, folder


def test_json_has_best_and_median_of_every_figure(measured):
    results = [json.loads(line) for line in measured[0].splitlines()]
    assert [(r["model"], r["precision"]) for r in results] == [("scenes", "float32"), ("scenes", "bfloat16")]
    for r in results:
        assert set(r) >= KEYS | {"ready_s", "decode_s", "decode_gb_per_s", "prefill_tflop_per_s", "encode_tflop_per_s"}
        assert all(set(r[key]) == {"best", "median"} and r[key]["best"] > 0 for key in KEYS)
        assert r["ttft_s"]["best"] == pytest.approx(r["encode_s"]["best"] + r["prefill_s"]["best"], rel=1e-3)
        assert r["ready_s"]["best"] > r["load_s"]["best"] and r["peak_rss_bytes"]["best"] > 50e6
        assert r["threads"] == 1 and r["image"] == "378x378" and r["tokens"] == 3 and 1 <= r["tokens_made"] <= 3
        assert r["crops"] > 1 and not r["random_weights"]
        assert r["machine"]["cores"] >= 1 and "torch" in r["machine"] and r["date"]


def test_saved_is_what_was_printed(measured):
    printed, folder = measured
    assert json.loads((folder / "saved.json").read_text()) == [json.loads(line) for line in printed.splitlines()]


def test_the_plot_has_a_bar_for_each_run(measured):
    drawn = ET.parse(measured[1] / "plot.svg").getroot()
    assert len(drawn.findall("{http://www.w3.org/2000/svg}g[@class='bar']")) == 2


def test_the_table_and_ratios_to_a_saved_run(galago, measured, tmp_path):
    plot = tmp_path / "plot.svg"
    ran = galago("bench", "scenes", *QUICK, "--compare", measured[1] / "saved.json", "--plot", plot)
    assert ran.code == 0 and ran.err == ""
    rows = {line.split("  ")[0]: line for line in ran.out.splitlines()}
    assert "scenes float32" in rows["best / median"]
    for row in ("load, imports included", "time to first token", "whole request", "peak resident memory"):
        assert rows[row].endswith("x")
    assert "scenes float32 to the saved scenes float32" in ran.out
    assert len(ET.parse(plot).getroot().findall("{http://www.w3.org/2000/svg}g[@class='bar']")) == 3


def test_random_weights_of_a_folder(galago, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "cache"))
    [result] = galago("bench", checkpoint, "--random", *QUICK, "--json").json
    assert result["random_weights"] and result["tokens_made"] == 3
    # Results of random and of true weights have the same work, and are compared by this name.
    assert result["model"] == checkpoint.name
    name = f"{checkpoint.name}-random"
    folder = tmp_path / "cache" / "random" / name
    packed = tmp_path / "cache" / "packed" / f"{name}-int8-0123456789abcdef.safetensors"
    packed.parent.mkdir()
    packed.write_bytes(bytes(400_000))
    size = sum(f.stat().st_size for f in folder.iterdir())

    [line] = (line for line in galago("models").out.splitlines() if line.startswith(name))
    assert f" {size / 1e6:.1f} MB " in line and "random weights" in line
    [row] = (row for row in galago("models", "--json").json if row["id"] == name)
    assert row["random_weights"] and row["bytes"] == size
    # Another model's name is not taken for it.
    assert "not installed" in galago("models", "remove", "moondream2").error and folder.exists()
    removed = galago("models", "remove", name)
    assert removed.out == f"{name}: {(size + 400_000) / 1e6:.1f} MB freed, 0.4 MB of it in packed copies\n", removed
    assert not folder.exists() and not packed.exists()
    assert name not in galago("models").out and name in galago("models", "remove", name).error


def test_a_precision_that_there_is_not(galago, measured):
    error = galago("bench", "--precision", "int3", *QUICK).error
    assert "int3" in error and "float32" in error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("--image", "big"), "--image must be WIDTHxHEIGHT"),
        (("--image", "0x5"), "--image must be WIDTHxHEIGHT"),
        (("--image", "90000x90000"), "million"),
        (("--tokens", "0"), "--tokens"),
        (("--threads", "0"), "--threads"),
        (("--runs", "0"), "--runs"),
        (("--rounds", "0"), "--rounds"),
        (("--compare", "none.json"), "none.json"),
        (("--save", "no/such/folder/a.json"), "no/such/folder"),
        (("--plot", "."), "it is a folder"),
        (("moondream9",), "moondream9"),
        (("--random", "moondream9"), "moondream9"),
        (("./nowhere",), "no folder or file"),
    ],
)
def test_one_line_says_what_was_wrong(galago, tmp_path, monkeypatch, args, said):
    monkeypatch.chdir(tmp_path)
    assert said in galago("bench", *args).error


def test_a_checkpoint_that_cannot_be_loaded(galago, checkpoint, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for file in checkpoint.iterdir():
        (broken / file.name).write_bytes(file.read_bytes()[:5000])
    assert "broken" in galago("bench", broken, *QUICK).error


def test_help_shows_examples_without_torch():
    checked = (
        "import sys; from galago.cli.app import main; main(['bench', '--help']); assert 'torch' not in sys.modules"
    )
    ran = subprocess.run([sys.executable, "-c", checked], capture_output=True, text=True, check=True)
    assert ran.stdout.startswith("Usage: galago bench") and "galago bench --random" in ran.stdout
