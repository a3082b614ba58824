"""galago quantize, and the bar that tells of packing."""

import logging
import shutil
from pathlib import Path

import pytest

import galago as package
from galago.store import hub, packed_cache, packing
from galago.system.files import UNFINISHED


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("precision", ["int8", "int4"])
def test_the_folder_is_a_model_that_answers_as_the_original_in_that_precision(galago, checkpoint, here, precision):
    ran = galago("quantize", checkpoint, "--to", precision)
    folder = here / f"{checkpoint.name}-{precision}"
    assert (ran.code, ran.err) == (0, "") and str(folder.name) in ran.out and "before" in ran.out
    assert sorted(f.name for f in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    settings = {"max_tokens": 12}
    with package.load(folder) as made, package.load(checkpoint, precision=precision) as original:
        assert (made.precision, made.revision) == (precision, original.revision)
        question = [model.query(question="why?", settings=settings) for model in (made, original)]
    assert question[0] == question[1]


def test_json_tells_the_sizes(galago, here):
    ran = galago("quantize", "SCENES", "--to", "int4", "--out", "deep/small", "--json")
    [told] = ran.json
    weights = here / "deep" / "small" / "model.safetensors"
    assert (told["model"], told["precision"], told["folder"]) == ("scenes", "int4", "deep/small")
    assert told["bytes"] == weights.stat().st_size < told["bytes_before"]
    # float16 weights become a quarter, but for tables that are looked up and padding.
    assert told["bytes"] < 0.5 * told["bytes_before"]


def test_a_folder_that_is_not_empty_takes_force(galago, checkpoint, here):
    folder = here / "out"
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    assert "--force" in galago("quantize", checkpoint, "--to", "int8", "--out", folder).error
    assert galago("quantize", checkpoint, "--to", "int8", "--out", folder, "--force").code == 0
    assert (folder / "notes.txt").read_text() == "mine"
    assert galago("quantize", checkpoint, "--to", "int4", "--out", folder, "--force").code == 0
    with package.load(folder) as model:
        assert model.precision == "int4"


def test_what_a_killed_one_left_is_no_reason_to_refuse(galago, checkpoint, here):
    left = here / "out" / UNFINISHED
    left.mkdir(parents=True)
    (left / "model.safetensors").write_bytes(b"half")
    assert galago("quantize", checkpoint, "--to", "int8", "--out", here / "out").code == 0
    assert sorted(f.name for f in (here / "out").iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (("scenes",), "--to"),
        (("scenes", "--to", "int3"), "int8 or int4"),
        (("scenes-int4", "--to", "int8"), "int4"),
        (("moondrem2", "--to", "int8"), "did you mean"),
        (("./nowhere", "--to", "int8"), "no folder or file"),
        (("scenes", "--to", "int8", "--out", "file.txt"), "cannot write file.txt"),
        (("scenes", "--to", "int8", "--out", "file.txt/below"), "cannot write"),
        (("moondream2", "--to", "int8", "--out", "full"), "is not empty"),
        (("moondream2", "--to", "int8"), "HF_HUB_OFFLINE"),
    ],
)
def test_one_line_says_what_was_wrong(galago, here, monkeypatch, args, said):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(here / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    (here / "file.txt").write_text("not a folder")
    (here / "full").mkdir()
    (here / "full" / "notes.txt").write_text("mine")
    before = sorted(here.rglob("*"))
    assert said in galago("quantize", *args).error
    assert sorted(here.rglob("*")) == before


def test_the_original_is_never_overwritten(galago, checkpoint, here):
    before = (checkpoint / "model.safetensors").read_bytes()
    assert "original" in galago("quantize", checkpoint, "--to", "int8", "--out", checkpoint, "--force").error
    assert (checkpoint / "model.safetensors").read_bytes() == before


def test_what_is_packed_is_not_packed_again(galago, checkpoint, here):
    galago("quantize", checkpoint, "--to", "int8", "--out", "small")
    assert "quantized to int8 already" in galago("quantize", "./small", "--to", "int4").error


@pytest.mark.parametrize("existing", [False, True])
def test_an_interrupt_leaves_nothing(checkpoint, here, existing):
    def interrupt(done: int, of: int) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    folder = here / "deep" / "out"
    if existing:
        folder.mkdir(parents=True)
    before = sorted(here.rglob("*"))
    with pytest.raises(KeyboardInterrupt):
        packing.quantise_model(hub.locate(checkpoint), "int8", folder, interrupt)
    assert sorted(here.rglob("*")) == before


# --- the copy that the first load keeps ------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where packed copies go; every checkpoint is large enough for one."""
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    return tmp_path / "cache"


def test_a_terminal_shows_packing_once(galago, checkpoint, cache, photo, monkeypatch):
    command = ("caption", photo, "--model", checkpoint, "--precision", "int8", "--max-tokens", 2)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("TERM", "xterm")
    first, second = galago(*command), galago(*command)
    assert f"Packing {checkpoint.name} to int8 (once)" in first.err and "100%" in first.err
    assert (second.code, second.err) == (0, "") and first.out == second.out


def test_elsewhere_the_log_has_a_line(galago, checkpoint, cache, photo, caplog):
    caplog.set_level(logging.INFO, "galago")
    ran = galago("caption", photo, "--model", checkpoint, "--precision", "int4", "--max-tokens", 2)
    assert (ran.code, ran.err) == (0, "")
    assert [r.getMessage() for r in caplog.records if r.name == "galago.store.packing"] == [
        f"Packing {checkpoint.name} to int4 (once)"
    ]


def test_without_a_cache_that_can_be_written_it_packs_in_memory_and_says_so(galago, checkpoint, cache, photo, caplog):
    said = galago("caption", photo, "--model", checkpoint, "--precision", "int8").out
    for copy in packed_cache.packed_copies():
        copy.file.unlink()
    shutil.rmtree(cache)
    cache.write_text("a file where the folder should be")
    caplog.clear()
    ran = galago("caption", photo, "--model", checkpoint, "--precision", "int8")
    assert (ran.code, ran.out) == (0, said)
    assert f"no packed copy can be kept in {cache / 'packed'}" in caplog.text and "GALAGO_CACHE" in caplog.text


def test_copies_are_listed_and_removed(checkpoint, cache):
    files = hub.locate(checkpoint)
    kept = {p: packing.packed_copy(files, p).weights[0] for p in ("int8", "int4")}
    # Of another model, whose name begins in the same way.
    other = cache / "packed" / f"{files.name}-2-int8-0123456789abcdef.safetensors"
    other.write_bytes(b"other")
    sizes = {p: f.stat().st_size for p, f in kept.items()}
    found = packed_cache.packed_copies(files.name)
    assert {c.precision: (c.file, c.size) for c in found} == {p: (kept[p], sizes[p]) for p in kept}
    assert packed_cache.remove_packed(files.name, "int8") == sizes["int8"] and not kept["int8"].exists()
    assert packed_cache.remove_packed(files.name) == sizes["int4"] and packed_cache.packed_copies(files.name) == []
    assert other.is_file()


def test_show_knows_the_copies(galago, checkpoint, cache):
    made = packing.packed_copy(hub.locate(checkpoint), "int8").weights[0]
    [told] = galago("show", checkpoint, "--json").json
    assert told["packed"] == [{"precision": "int8", "bytes": made.stat().st_size, "file": str(made)}]
    assert str(made) in galago("show", checkpoint).out
