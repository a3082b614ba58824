"""A model whose activations overflow says so: no request gets an answer, and no cache a value, that is none.

The weights are numbers, but so large that what is computed with them is not.
"""

import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_moondream as tiny
import tiny_smolvlm
import torch
from safetensors.torch import save_file

import galago
from galago.engine.disk_cache import DiskCache
from galago.engine.limits import Limits
from galago.errors import GalagoError
from galago.lab.eval.drift import reference_answers, replay_logits
from galago.request import Caption, Detect, Query, Request, Sampling, TextDelta

NAMES = ("float32", "bfloat16", "float16", "int8", "int4")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}}
EYE = {"eye": (0.5, 0.5)}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.ERROR)
    yield
    logging.disable(logging.NOTSET)


def huge(precision: str, *shape: int) -> torch.Tensor:
    """Weights that a precision holds, though not the sum of a few."""
    most = 6e4 if precision == "float16" else 2e38
    return torch.randn(shape, generator=torch.Generator().manual_seed(1)).clamp(-1, 1) * most


def with_huge(folder: Path, precision: str, *names: str, family: Any = tiny) -> Path:
    weights = family.tensors()
    for name in names:
        weights[name] = huge(precision, *weights[name].shape)
    family.write(folder, weights=weights)
    return folder


def refused(call: Callable[[], Any], what: str) -> None:
    with pytest.raises(GalagoError) as raised:
        call()
    assert raised.value.code == "not_a_number", raised.value
    assert what in str(raised.value) and "\n" not in str(raised.value)


@pytest.fixture(params=["", "none"], ids=["kernels", "torch"])
def kernels(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param:
        monkeypatch.setenv("GALAGO_KERNELS", request.param)
    return str(request.param)


@pytest.mark.parametrize("precision", NAMES)
def test_no_token_is_chosen_from_what_is_no_number(tmp_path: Path, precision: str, kernels: str) -> None:
    folder = with_huge(tmp_path, precision, "model.text.lm_head.weight")
    with galago.load(folder, precision=precision) as model:
        seen = model.encode_image(tiny.IMAGE)
        asks: list[Callable[[], Any]] = [
            lambda: model.caption(seen),
            lambda: list(model.caption(seen, stream=True)["caption"]),
            lambda: model.query(question="a", settings=tiny.WARM),
            lambda: model.query(question="a", reasoning=True),
            lambda: model.query(question="a", settings=tiny.WARM | {"top_p": 0.5, "top_k": 5, "min_p": 0.1}),
            lambda: model.query(question="a", settings={"json_schema": SCHEMA}),
            lambda: model.query(question="a", settings=tiny.WARM | {"repetition_penalty": 1.3}),
            lambda: list(model.submit(Request(Caption(), seen, Sampling(max_tokens=3), top_logprobs=5))),
            lambda: model.detect(seen, "a"),
            lambda: model.point(seen, "a"),
            lambda: model.detect_gaze(seen, **EYE),
        ]
        for ask in asks:
            refused(ask, "the next token")


@pytest.mark.parametrize("precision", NAMES)
def test_nor_a_place(tmp_path: Path, precision: str, kernels: str) -> None:
    folder = with_huge(tmp_path / "place", precision, "model.region.coord_decoder.fc2.weight")
    with galago.load(folder, precision=precision) as model:
        for ask in (
            lambda: model.detect(tiny.IMAGE, "a"),
            lambda: model.point(tiny.IMAGE, "a"),
            lambda: model.detect_gaze(tiny.IMAGE, **EYE),
            lambda: model.detect_gaze(tiny.IMAGE, face=(0.1, 0.1, 0.9, 0.9), prioritize_accuracy=True),
        ):
            refused(ask, "a coordinate")
        assert "caption" in model.caption(tiny.IMAGE, settings={"max_tokens": 2})
    folder = with_huge(tmp_path / "size", precision, "model.region.size_decoder.fc2.weight")
    with galago.load(folder, precision=precision) as model:
        refused(lambda: model.detect(tiny.IMAGE, "a"), "a size")
        assert model.point(tiny.IMAGE, "a", settings={"max_objects": 1})["points"]


@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize(
    "name", ["vision.proj_mlp.fc2.weight", "vision.blocks.0.mlp.fc2.weight", "vision.blocks.0.attn.qkv.weight"]
)
def test_an_image_that_is_no_number_is_not_kept(tmp_path: Path, precision: str, kernels: str, name: str) -> None:
    folder = with_huge(tmp_path / "model", precision, f"model.{name}")
    with galago.load(folder, precision=precision, limits=Limits(disk=tmp_path / "kept")) as model:
        for _ in range(2):
            refused(lambda: model.caption(tiny.IMAGE), "the image")
            refused(lambda: model.encode_image(tiny.IMAGE), "the image")
        cache = model.stats()["cache"]
        assert cache["hot"]["entries"] == cache["warm"]["entries"] == cache["disk"]["entries"] == 0
        assert not list((tmp_path / "kept").iterdir())
        assert "answer" in model.query(question="a", settings={"max_tokens": 2})


@pytest.mark.parametrize("precision", NAMES)
@pytest.mark.parametrize("name", ["attn.qkv.weight", "mlp.fc2.weight"])
def test_nor_are_keys_and_values(tmp_path: Path, precision: str, kernels: str, name: str) -> None:
    folder = with_huge(tmp_path, precision, f"model.text.blocks.0.{name}")
    with galago.load(folder, precision=precision) as model:
        refused(lambda: model.encode_image(tiny.IMAGE), "the image")
        assert model.stats()["cache"]["hot"]["entries"] == 0
        refused(lambda: model.query(question="a"), "the next token")


@pytest.mark.parametrize("precision", NAMES)
def test_the_other_family(tmp_path: Path, precision: str, kernels: str) -> None:
    head = with_huge(tmp_path / "head", precision, "lm_head.weight", family=tiny_smolvlm)
    with galago.load(head, precision=precision) as model:
        refused(lambda: model.caption(tiny_smolvlm.picture()), "the next token")
        refused(lambda: model.query(question="a", settings=tiny_smolvlm.WARM), "the next token")
    eyes = with_huge(
        tmp_path / "eyes", precision, "model.connector.modality_projection.proj.weight", family=tiny_smolvlm
    )
    with galago.load(eyes, precision=precision) as model:
        refused(lambda: model.caption(tiny_smolvlm.picture()), "the image")
        assert model.stats()["cache"]["warm"]["entries"] == 0


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8"])
def test_the_text_before_it_is_given_out_and_then_the_error(tmp_path: Path, precision: str) -> None:
    """Spaces, until one is read."""
    weights = tiny.tensors()
    space = tiny.ALPHABET.index("Ġ") + len(tiny.CONTROL)
    weights["model.text.wte"][space] = 1e38
    with galago.load(tiny.write(tmp_path, weights=weights), precision=precision) as model:
        run = model.submit(Request(Caption(), tiny.IMAGE, Sampling(max_tokens=8)))
        pieces = []
        with pytest.raises(GalagoError) as raised:
            pieces.extend(run)
        assert raised.value.code == "not_a_number"
        assert [p.text for p in pieces if isinstance(p, TextDelta)] == [" "]


def test_those_beside_it_go_on(tmp_path: Path) -> None:
    weights = {name: tensor.clone() for name, tensor in tiny.lora().items()}
    for name, tensor in weights.items():
        if ".h.1." in name:
            tensor *= 1e25
    save_file(weights, tmp_path / "wild.safetensors")
    save_file(tiny.lora(), tmp_path / "tame.safetensors")
    with galago.load(tiny.write(tmp_path / "model"), variants=tmp_path) as model:

        def ask(seed: int, variant: str | None) -> Request:
            sampling = Sampling(temperature=1.0, seed=seed, max_tokens=20)
            return Request(Caption(), tiny.IMAGE, sampling, variant=variant)

        def text(request: Request) -> str:
            return "".join(e.text for e in model.submit(request) if isinstance(e, TextDelta))

        whole = [ask(seed, ("tame.safetensors", None)[seed % 2]) for seed in range(6)]
        alone = [text(request) for request in whole]
        runs, broken = [], []
        for request in whole:
            runs.append(model.submit(request))
            broken.append(model.submit(ask(9, "wild.safetensors")))
        for run in broken:
            refused(lambda run=run: list(run), "float16")  # type: ignore[misc]
        assert ["".join(e.text for e in run if isinstance(e, TextDelta)) for run in runs] == alone
        stats = model.stats()
        assert stats["skills"]["caption"]["failed"] == len(broken)
        assert stats["failed"] == {"not_a_number": len(broken)}
        json.dumps(stats, allow_nan=False)


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "int8", "int4"])
def test_rows_of_one_pass_stay_apart(tmp_path: Path, precision: str, kernels: str) -> None:
    weights = tiny.tensors()
    weights["model.text.wte"][tiny.ALPHABET.index("X") + len(tiny.CONTROL)] = 1e38
    with galago.load(tiny.write(tmp_path, weights=weights), precision=precision) as model:

        def ask(question: str, seed: int) -> Request:
            return Request(Query(question), sampling=Sampling(temperature=1.0, seed=seed, max_tokens=20))

        def text(run: Iterator[Any]) -> str:
            return "".join(e.text for e in run if isinstance(e, TextDelta))

        whole = [ask("what" * (seed + 1), seed) for seed in range(5)]
        alone = [text(model.submit(request)) for request in whole]
        runs = [model.submit(request) for pair in ((r, ask("X", 3)) for r in whole) for request in pair]
        assert [text(run) for run in runs[::2]] == alone
        for run in runs[1::2]:
            refused(lambda run=run: list(run), "the next token")  # type: ignore[misc]


def test_an_embedding_that_an_earlier_version_left_on_disk(tmp_path: Path) -> None:
    disk, key = DiskCache(tmp_path, 1 << 20), "a" * 64
    disk.keep(key, torch.tensor([[1.0, float("nan")]]))
    assert disk.get(key) is None and disk.stats().dropped == 1 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("skill", [Caption(), Detect("a", 2)])
def test_no_drift_is_measured_of_it(tmp_path: Path, skill: Any) -> None:
    """NaN agreed with NaN."""
    sound = tiny.load(tiny.write(tmp_path / "sound"))
    names = "model.text.lm_head.weight", "model.region.coord_decoder.fc2.weight"
    broken = tiny.load(with_huge(tmp_path / "broken", "float32", *names))
    answers = reference_answers(sound, sound.encode_image(tiny.IMAGE), [skill])
    assert replay_logits(sound, tiny.IMAGE, answers)["logits"]
    refused(lambda: replay_logits(broken, tiny.IMAGE, answers), "the next token")
