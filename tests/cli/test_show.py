"""galago show and the list of galago models."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from galago.backends.memory_estimate import memory_needed, peak_bytes
from galago.choices import PRECISIONS
from galago.store.catalog import entries, find


@pytest.fixture(autouse=True)
def nothing_installed(tmp_path, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("name", [e.id for e in entries()])
def test_every_model_of_the_catalogue(galago, name):
    entry = find(name)
    [told] = galago("show", name, "--device", "cpu", "--json").json
    assert (told["id"], told["license"], told["parameters"]) == (entry.id, entry.license, entry.parameters)
    assert tuple(told["precisions"]) == entry.precisions and told["packed"] == []
    assert {p: e["memory"] for p, e in told["precisions"].items() if e["measured"]} == entry.memory
    assert all(e["memory"] == peak_bytes(entry, p) for p, e in told["precisions"].items())
    assert all(e["kernels"] and isinstance(e["fallbacks"], list) for e in told["precisions"].values())
    said = galago("show", name).out
    assert entry.description in said and f"{entry.parameters:,}" in said and all(p in said for p in entry.precisions)


def test_what_is_not_installed_is_not_fetched(galago):
    [told] = galago("show", "2b", "--json").json
    assert (told["id"], told["installed"], told["bytes"], told["files"]) == ("moondream2", False, None, [])
    assert "galago models pull moondream2" in galago("show", "2b").out


def test_a_name_that_ends_in_a_precision_shows_that_one(galago):
    [told] = galago("show", "moondream2-int8", "--json").json
    assert told["id"] == "moondream2" and list(told["precisions"]) == ["int8"]
    assert "float32" not in galago("show", "moondream2-int8").out


def test_a_folder_and_a_packed_one(galago, checkpoint, tmp_path):
    from safetensors.torch import load_file

    packed = tmp_path / "small"
    galago("quantize", checkpoint, "--to", "int4", "--out", packed)
    [one] = galago("show", checkpoint, "--json").json
    [other] = galago("show", packed, "--json").json
    weights = load_file(checkpoint / "model.safetensors")
    assert one["parameters"] == other["parameters"] == sum(t.numel() for t in weights.values())
    assert one["id"] == checkpoint.name and one["revision"] == other["revision"] == "2025-06-21"
    assert list(one["precisions"]) == ["float32", "bfloat16", "float16", "int8", "int4"]
    assert list(other["precisions"]) == ["int4"] and other["bytes"] < one["bytes"]
    assert str(packed) in galago("show", packed).out


def test_it_tells_what_is_slower_than_it_could_be(galago, monkeypatch):
    monkeypatch.setenv("GALAGO_KERNELS", "none")
    [told] = galago("show", "scenes", "--device", "cpu", "--json").json
    assert told["precisions"]["int8"]["kernels"] == "torch int8"
    assert ["GALAGO_KERNELS is none" in said for said in told["precisions"]["float32"]["fallbacks"]] == [True]
    assert len(told["precisions"]["int4"]["fallbacks"]) == 2
    said = galago("show", "scenes", "--device", "cpu").out
    assert all(said.count(fallback) == 1 for fallback in told["precisions"]["int4"]["fallbacks"])


def test_a_route_and_what_its_models_need(galago):
    [told] = galago("show", "SmolVLM-hybrid-int4", "--device", "cpu", "--json").json
    assert told["id"] == "smolvlm-hybrid" and [way["takes"] for way in told["ways"]] == [
        ["text", "image"],
        ["images", "video"],
    ]
    for model in (model for way in told["ways"] for model in way["models"]):
        assert model == {"id": model["id"], "memory": memory_needed(model["id"], device="cpu")}
        assert model["id"].endswith("-int4")
    said = galago("show", "smolvlm-hybrid", "--device", "cpu").out
    assert all(name in said for name in ("smolvlm-256m ", "smolvlm2-500m ", "several images, videos"))


@pytest.mark.parametrize(
    "command", [("caption", "x.png", "-m"), ("models", "pull"), ("models", "remove"), ("quantize", "--to", "int8")]
)
def test_what_takes_a_model_names_those_of_a_route(galago, command, tmp_path, photo):
    args = [photo if part == "x.png" else part for part in command]
    more = ("--out", tmp_path / "out") if "quantize" in command else ()
    assert "is a route: name one of smolvlm-500m, smolvlm-256m" in galago(*args, "smolvlm-hybrid", *more).error


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("moondrem2",), "did you mean moondream2?"),
        (("./nowhere",), "no folder or file"),
        (("scenes", "--device", "abacus"), "cpu"),
        ((), "MODEL"),
    ],
)
def test_one_line_says_what_was_wrong(galago, args, said):
    assert said in galago("show", *args).error


def test_weights_are_not_read(galago, checkpoint, tmp_path):
    """All but the header may be missing."""
    folder = tmp_path / "model"
    folder.mkdir()
    for name in ("config.json", "tokenizer.json"):
        (folder / name).write_bytes((checkpoint / name).read_bytes())
    whole = (checkpoint / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    with (folder / "model.safetensors").open("wb") as sparse:
        sparse.write(whole[:header])
        sparse.truncate(len(whole))
    [told] = galago("show", folder, "--json").json
    assert told["files"][0] == str(folder / "model.safetensors")


def test_the_list_has_the_memory_of_each_precision_and_says_what_is_counted(galago):
    head, *lines = galago("models").out.splitlines()
    names = head.split()[2:7]
    assert set(names) == set(PRECISIONS)
    rows = {row["id"]: row for row in galago("models", "list", "--json").json}
    for entry in (entry for entry in entries() if entry.backend == "native"):
        [line] = (text for text in lines if text.startswith(f"{entry.id} "))
        cells = dict(zip(names, re.findall(r"~?\d+\.\d+(?= )", line)[-len(names) :], strict=True))
        assert {p for p, cell in cells.items() if cell.startswith("~")} == set(PRECISIONS) - set(entry.memory)
        sizes = {p: peak_bytes(entry, p) for p in PRECISIONS}
        assert {p: float(v.lstrip("~")) for p, v in cells.items()} == pytest.approx(
            {p: size / 1e9 for p, size in sizes.items()}, rel=0.05
        )
        row = rows[entry.id]
        assert row["memory"] == sizes and set(row["memory_counted"]) == set(PRECISIONS) - set(entry.memory)


def test_the_list_has_two_names(galago):
    assert galago("models").out == galago("models", "list").out
    assert galago("models", "--json").out == galago("models", "list", "--json").out


def test_the_path_of_what_is_installed(galago):
    [path] = galago("models", "path", "scenes").out.splitlines()
    assert Path(path).is_file() and Path(path).suffix == ".safetensors"
    assert "moondream2 is not installed" in galago("models", "path", "2b-int8").error


def test_the_list_needs_no_torch():
    checked = "import sys; from galago.cli.app import main; main(['models']); assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", checked], capture_output=True, check=True)
