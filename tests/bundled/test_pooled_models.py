"""The bundled model in several precisions under one budget."""

import gc
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from galago.backends.memory_estimate import memory_needed
from galago.errors import ModelNotFound, OutOfMemory, size_of
from galago.fleet.pool import ModelPool

EXAMPLE = Image.open(Path(__file__).parents[2] / "examples" / "scene.png").convert("RGB")
QUESTION = "What color is the circle?"


def answer(pool: ModelPool, name: str) -> tuple[str, str]:
    with pool.use(name) as model:
        return model.precision, model.query(EXAMPLE, QUESTION)["answer"].strip()


def names(pool: ModelPool) -> list[str]:
    return [row.name for row in pool.loaded()]


def test_two_models_answer_side_by_side_and_one_leaves_for_a_third() -> None:
    needs = {name: memory_needed(name, device="cpu") for name in ("scenes", "scenes-int8", "scenes-int4")}
    two = needs.pop("scenes") + max(needs.values())
    with ModelPool(two, options={"device": "cpu"}) as pool:
        expected = answer(pool, "scenes")
        assert expected[0] == "float32" and expected[1]
        assert answer(pool, "scenes-int8") == ("int8", expected[1])
        assert names(pool) == ["scenes", "scenes-int8"]
        assert answer(pool, "Scenes-float32") == expected
        assert names(pool) == ["scenes", "scenes-int8"], "the same model by another name"
        assert answer(pool, "scenes-int4")[0] == "int4"
        assert names(pool) == ["scenes", "scenes-int4"]
        assert answer(pool, "scenes-int8") == ("int8", expected[1])
        assert names(pool) == ["scenes-int4", "scenes-int8"]


def test_what_left_is_gone_from_memory() -> None:
    with ModelPool(1 << 30, options={"device": "cpu"}, keep_alive=0) as pool:
        with pool.use("scenes") as model:
            weights = weakref.ref(model.backend.model.weights.text)
            model.query(EXAMPLE, QUESTION)
            del model
        gc.collect()
        assert weights() is None and pool.loaded() == []


def test_a_model_that_does_not_fit_beside_one_in_use_is_refused_with_the_precision_that_would() -> None:
    room = memory_needed("scenes", device="cpu") + memory_needed("scenes-int8", device="cpu")
    with ModelPool(room, options={"device": "cpu"}) as pool, pool.use("scenes") as model:
        with pytest.raises(OutOfMemory) as said:
            pool.load("scenes-bfloat16")
        used, least = (size_of(memory_needed(name, device="cpu")) for name in ("scenes", "scenes-int8"))
        assert f"{used} are in use (scenes {used}); it would fit in int8 ({least})" in str(said.value)
        assert model.query(EXAMPLE, QUESTION)["answer"]


def test_a_real_load_that_breaks_midway_frees_what_was_half_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    from galago.families.moondream import weights

    kept: list[weakref.ref[torch.Tensor]] = []
    whole = weights.assemble

    def breaks(tensors: Any, linears: Any, config: Any) -> Any:
        kept.extend(weakref.ref(tensor) for tensor in tensors.values())
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    with ModelPool(1 << 30, options={"device": "cpu"}) as pool:
        monkeypatch.setattr(weights, "assemble", breaks)
        with pytest.raises(OutOfMemory, match=r"memory ran out while scenes .* less in .*int8") as error:
            pool.load("scenes")
        assert kept and not any(tensor() is not None for tensor in kept), "the error holds them"
        assert error.value.__cause__ is not None
        monkeypatch.setattr(weights, "assemble", whole)
        assert answer(pool, "scenes")[1]


def test_an_unknown_model_is_told_and_not_loaded() -> None:
    with ModelPool(1 << 30) as pool, pytest.raises(ModelNotFound, match="did you mean scenes"):
        pool.load("scnes")


def test_a_process_ends_though_models_are_idle() -> None:
    code = (
        "from galago.fleet.pool import ModelPool\n"
        "pool = ModelPool(1 << 30, options={'device': 'cpu'}, keep_alive=3600)\n"
        "pool.load('scenes')\nprint(*[row.name for row in pool.loaded()])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "scenes"), done.stderr
