"""Models as ONNX graphs answer as the checkpoints do that they were made of."""

import itertools
import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_moondream
import tiny_smolvlm
from onnx_folder import events_of
from PIL import Image

import galago
from galago.backends.memory_estimate import memory_needed
from galago.backends.onnx.decoder import OnnxModel
from galago.cli.app import main
from galago.engine.limits import Limits
from galago.engine.step import CHUNK
from galago.errors import CheckpointError, GalagoError, InvalidRequest, UnsupportedTask
from galago.media.clip import Clip
from galago.request import (
    Caption,
    Chat,
    Detect,
    DetectGaze,
    Message,
    Point,
    Query,
    Request,
    Sampling,
    Skill,
)

Pair = tuple[galago.Model, galago.Model]
SCHEMA = '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}'


@pytest.fixture(scope="module")
def moondreams(moondream: tuple[Path, Path]) -> Iterator[Pair]:
    """A checkpoint of random weights, and its graphs."""
    with galago.load(moondream[0], precision="float32") as torch, galago.load(moondream[1]) as onnx:
        yield torch, onnx


@pytest.fixture(scope="module")
def smolvlms(smolvlm: tuple[Path, Path]) -> Iterator[Pair]:
    with galago.load(smolvlm[0], precision="float32") as torch, galago.load(smolvlm[1]) as onnx:
        yield torch, onnx


def same(pair: Pair, skill: Skill, image: Any = None, top: int | None = None, **sampling: Any) -> list[str]:
    """What both say."""
    wanted, found = (events_of(model, Request(skill, image, Sampling(**sampling), top_logprobs=top)) for model in pair)
    digits = re.compile(r"-?\d+\.\d+(?:e-?\d+)?")
    # The last digits of a coordinate or a logarithm are of the numbers' own making.
    assert [digits.sub("#", one) for one in found] == [digits.sub("#", one) for one in wanted]
    numbers = ([float(n) for one in said for n in digits.findall(one)] for said in (wanted, found))
    assert np.allclose(*numbers, rtol=1e-4, atol=1e-4)
    return found


@pytest.mark.parametrize("size", [(100, 60), (60, 100), (42, 42), (90, 90), (20, 200), (1, 1)])
def test_images_of_any_size(moondreams: Pair, size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 60).convert("RGB")
    same(moondreams, Caption(), image, max_tokens=8)
    same(moondreams, Detect("x", 3), image)


@pytest.mark.parametrize(
    "skill",
    [
        Caption("short"),
        Query("What is it?"),
        Query("Why?", reasoning=True, spatial_refs=((0.1, 0.2, 0.6, 0.9), (0.5, 0.5))),
        Chat((Message("user", "a"), Message("assistant", "b"), Message("user", "c"))),
        Detect("cat", 4),
        Point("cat", 4),
        DetectGaze((0.4, 0.5)),
        DetectGaze(face=(0.2, 0.2, 0.6, 0.7), accurate=True),
    ],
    ids=lambda skill: type(skill).__name__,
)
def test_every_skill_of_moondream(moondreams: Pair, skill: Skill) -> None:
    same(moondreams, skill, tiny_moondream.IMAGE, max_tokens=10, seed=5)


def test_sampling_stops_constraints_and_probabilities(moondreams: Pair) -> None:
    image = tiny_moondream.IMAGE
    drawn = same(moondreams, Caption(), image, **tiny_moondream.WARM)
    assert drawn != same(moondreams, Caption(), image, **tiny_moondream.WARM | {"seed": 8})
    same(moondreams, Query("no image"), max_tokens=6)
    same(moondreams, Query("x"), image, json_schema=SCHEMA, max_tokens=12, temperature=1.0, seed=1)
    same(moondreams, Query("x"), image, top=2, max_tokens=4)
    same(moondreams, Caption(), image, **tiny_moondream.WARM, frequency_penalty=1.0, logit_bias={40: 3})


def test_a_text_is_streamed_and_cancelled(moondreams: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    cancelled, steps, feed = threading.Event(), itertools.count(), OnnxModel.feed

    def gated(*given: Any) -> Any:
        """A step that waits, once there is text, until the request is cancelled."""
        assert next(steps) < 20 or cancelled.wait(60)
        return feed(*given)

    with monkeypatch.context() as patch:
        patch.setattr(OnnxModel, "feed", gated)
        run = moondreams[1].submit(Request(Caption(), tiny_moondream.IMAGE, Sampling(**tiny_moondream.WARM)))
        next(run)
        run.cancel()
        cancelled.set()
        *_, done = run
    assert done.finish_reason == "cancelled"
    same(moondreams, Caption(), tiny_moondream.IMAGE, **tiny_moondream.WARM)


def test_many_at_once_do_not_mix(moondreams: Pair) -> None:
    pictures = [Image.effect_noise((40 + 20 * i, 60), 50) for i in range(5)]
    settings = [Sampling(seed=i, temperature=1.0, max_tokens=9) for i in range(5)]
    requests = [Request(Query("x"), *one) for one in zip(pictures, settings, strict=True)]
    alone = [events_of(moondreams[0], request) for request in requests]
    runs = [moondreams[1].submit(request) for request in requests]
    assert [[*map(repr, run)][:-1] for run in runs] == [events[:-1] for events in alone]


def test_an_encoded_image_answers_as_the_image(moondreams: Pair) -> None:
    _, onnx = moondreams
    encoded = onnx.encode_image(tiny_moondream.IMAGE)
    settings = tiny_moondream.WARM
    assert onnx.query(encoded, "x", settings=settings) == onnx.query(tiny_moondream.IMAGE, "x", settings=settings)
    with pytest.raises(InvalidRequest, match="the image was encoded by"):
        moondreams[0].query(encoded, "x")


def test_what_was_seen_is_kept_on_disk(moondream: tuple[Path, Path], tmp_path: Path) -> None:
    said = []
    for _ in range(2):
        with galago.load(moondream[1], limits=Limits(disk=tmp_path / "seen", prefix_bytes=0)) as model:
            said.append(model.caption(tiny_moondream.IMAGE, settings=tiny_moondream.WARM))
            stats = model.stats()
    assert said[0] == said[1]
    assert stats["cache"]["disk"]["hits"] == 1 and stats["images"]["miss"] == 0


def test_conversations_images_and_videos_of_smolvlm(smolvlms: Pair) -> None:
    one, two = tiny_smolvlm.picture(1), tiny_smolvlm.picture(2, (90, 40))
    same(smolvlms, Caption(), one, max_tokens=12)
    same(smolvlms, Query("How many?"), two, max_tokens=12, temperature=1.0, seed=3)
    same(smolvlms, Query("no image"), max_tokens=6)
    same(smolvlms, Chat((Message("user", (one, "and", two, "?")),)), max_tokens=8)
    clip = Clip(tuple(tiny_smolvlm.picture(i, (40, 30)) for i in range(3)), (0.0, 1.0, 2.0), 3.0)
    same(smolvlms, Caption("long"), clip, max_tokens=8)


def test_what_it_is_stands_in_the_facts(moondreams: Pair, moondream: tuple[Path, Path]) -> None:
    torch, onnx = moondreams
    assert (onnx.precision, onnx.device, onnx.revision) == ("float32", "cpu", torch.revision)
    assert onnx.kernels.startswith("ONNX Runtime 1.")
    assert onnx.name == moondream[1].name
    # A request may need keys and values for the whole context, beside the weights.
    assert memory_needed(str(moondream[1])) > 2 * sum(f.stat().st_size for f in (moondream[1] / "onnx").iterdir())


def test_each_answer_is_reckoned_with_its_copy_of_the_image(moondream: tuple[Path, Path]) -> None:
    image, one = tiny_moondream.IMAGE, 2 * 2 * 2 * 32 * 4
    prefix, prompt, most = 10, 6, 8
    needed = one * (prefix + prefix + prompt + most + CHUNK)
    with galago.load(moondream[1], limits=Limits(kv_bytes=needed)) as model:
        assert model.query(image, "x", settings={"max_tokens": most})["answer"]
    with (
        galago.load(moondream[1], limits=Limits(kv_bytes=needed - one)) as model,
        pytest.raises(InvalidRequest, match="bytes of keys and values"),
    ):
        model.query(image, "x", settings={"max_tokens": most})


@pytest.mark.parametrize(
    ("options", "kind", "says"),
    [
        ({"precision": "int8"}, InvalidRequest, "holds float32 graphs and cannot run in int8; export it anew"),
        ({"precision": "int3"}, InvalidRequest, "unknown precision"),
        ({"device": "cuda"}, InvalidRequest, "ONNX graphs run on the processor, not on 'cuda'; use auto or cpu"),
        ({"variants": "loras"}, UnsupportedTask, "no LoRA variants"),
        ({"revision": "2025-01-09"}, CheckpointError, "does not go with this tokenizer.json"),
    ],
)
def test_what_a_folder_was_not_made_for(
    moondream: tuple[Path, Path], options: dict[str, Any], kind: type[GalagoError], says: str
) -> None:
    with pytest.raises(kind, match=re.escape(says).replace("'", "[\"']")):
        galago.load(moondream[1], **options)


def test_a_variant_is_refused(moondreams: Pair) -> None:
    with pytest.raises(UnsupportedTask, match="no LoRA variants"):
        moondreams[1].query(tiny_moondream.IMAGE, "x", settings={"variant": "some"})


def test_it_is_measured_as_other_models_are(smolvlm: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", str(smolvlm[1]), "--no-ceilings", "--runs", "1", "--tokens", "3", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["model"] == smolvlm[1].name and told["kernels"].startswith("ONNX Runtime") and told["tokens_made"] > 0
    assert all(told[figure]["best"] > 0 for figure in ("load_s", "encode_s", "prefill_s", "total_s", "peak_rss_bytes"))
    assert "decode_gb_per_s" not in told  # PyTorch's weights are not there to be counted
