"""Packed checkpoints: the same answers as packing at load, read from the map, and strict."""

import json
from pathlib import Path

import pytest
import tiny_moondream as tiny
import torch
from safetensors.torch import load_file, save_file

import galago
from galago.backends.memory_estimate import precision_of
from galago.checkpoint.tensors import metadata, read_tensors, write_tensors
from galago.errors import CheckpointError, InvalidRequest
from galago.store import hub, packing


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.write(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module", params=["int8", "int4"])
def packed(request: pytest.FixtureRequest, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    made = tmp_path_factory.mktemp(request.param)
    packing.quantise_model(hub.locate(folder), request.param, made)
    return request.param, made


def test_answers_as_the_original_quantised_at_load(folder: Path, packed: tuple[str, Path]) -> None:
    precision, made = packed
    with galago.load(folder, precision=precision) as one, galago.load(made) as other:
        assert one.precision == other.precision == precision
        assert one.revision == other.revision
        for length in ("short", "normal"):
            settings = {"max_tokens": 12}
            assert one.caption(tiny.IMAGE, length, settings=settings) == other.caption(
                tiny.IMAGE, length, settings=settings
            )
        assert one.detect(tiny.IMAGE, "cat") == other.detect(tiny.IMAGE, "cat")


def test_file_is_small_and_says_what_it_is(packed: tuple[str, Path], folder: Path) -> None:
    precision, made = packed
    about = metadata(made / "model.safetensors")
    assert about["galago.bits"] == precision.removeprefix("int")
    assert sorted(p.name for p in made.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]
    load_file(made / "model.safetensors")  # a well-formed safetensors
    panels = [t for name, t in read_tensors([made / "model.safetensors"]) if name.endswith(".panels")]
    # From the map as it lies, on boundaries of cache lines.
    assert panels and all(t.data_ptr() % 64 == 0 for t in panels)


def test_runs_in_no_other_precision_and_is_not_packed_again(packed: tuple[str, Path], tmp_path: Path) -> None:
    precision, made = packed
    with pytest.raises(InvalidRequest, match=f"holds {precision} weights"):
        galago.load(made, precision="float32")
    with pytest.raises(CheckpointError, match="already"):
        packing.quantise_model(hub.locate(made), "int8", tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("text.lm_head.panels"), "missing tensor text.lm_head.panels"),
        (lambda t: t.update({"text.more": torch.zeros(3)}), "unexpected tensor text.more"),
        (lambda t: t.update({"text.lm_head.scale": torch.zeros(3)}), "tensor text.lm_head.scale has shape"),
        (lambda t: t.update({"text.lm_head.scale": t["text.lm_head.scale"].half()}), "which should be torch.float32"),
    ],
)
def test_one_of_another_shape_names_the_tensor(packed: tuple[str, Path], tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    _, made = packed
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    tensors = dict(load_file(made / "model.safetensors"))
    change(tensors)
    layout = {name: (t.dtype, tuple(t.shape)) for name, t in tensors.items()}
    write_tensors(tmp_path / "model.safetensors", layout, tensors.items(), metadata(made / "model.safetensors"))
    with pytest.raises(CheckpointError, match=message):
        galago.load(tmp_path)


def test_one_of_another_version_is_refused(packed: tuple[str, Path], tmp_path: Path) -> None:
    _, made = packed
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_bytes((made / name).read_bytes())
    about = {**metadata(made / "model.safetensors"), "galago.packed": "0"}
    save_file(load_file(made / "model.safetensors"), tmp_path / "model.safetensors", about)
    with pytest.raises(CheckpointError, match="another version"):
        galago.load(tmp_path)


def test_large_checkpoints_are_packed_once(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAGO_CACHE", str(tmp_path))
    monkeypatch.setattr(packing, "WORTH_KEEPING", 0)
    with galago.load(folder, precision="int8") as first:
        answer = first.caption(tiny.IMAGE, settings={"max_tokens": 8})
    [kept] = (tmp_path / "packed").glob("*.safetensors")
    made = kept.stat().st_mtime_ns
    with galago.load(folder, precision="int8") as second:
        assert second.caption(tiny.IMAGE, settings={"max_tokens": 8}) == answer
    assert [p.stat().st_mtime_ns for p in (tmp_path / "packed").glob("*.safetensors")] == [made]


def test_an_interrupted_packing_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    def interrupt(done: int, of: int) -> None:
        if done > of // 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        packing.quantise_model(hub.locate(folder), "int8", tmp_path, interrupt)
    assert list(tmp_path.iterdir()) == []


def test_the_names_of_models_may_end_in_a_precision() -> None:
    assert precision_of("scenes-int8") == "int8" and precision_of("SCENES-BF16") == "bfloat16"
    with galago.load("scenes-int4") as model:
        assert (model.name, model.precision) == ("scenes", "int4")
    with galago.load("scenes-int4", precision="int8") as model:
        assert model.precision == "int8"
    assert json.loads((hub.locate("scenes").tokenizer).read_text())["version"]


def test_profiles() -> None:
    with galago.load(profile="optimized") as fast, galago.load(profile="standard") as plain:
        assert (fast.precision, plain.precision) == ("int8", "float32")
        assert fast.kernels != plain.kernels and plain.fallbacks == []
    with pytest.raises(InvalidRequest, match="standard or optimized"):
        galago.load(profile="fast")
    with pytest.raises(InvalidRequest, match="int8, int4"):
        galago.load(precision="int2")
