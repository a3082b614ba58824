"""The golden vectors of SmolVLM2, and what our implementation makes of one case."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor
from vectors import VECTORS, vectors

from galago.engine.kv_cache import KVCache
from galago.engine.step import Feed, ImageInput, Prefix, StepOutput
from galago.families import ModelFiles
from galago.families.smolvlm.loading import load_smolvlm
from galago.families.smolvlm.model import SmolVLM
from galago.media.clip import Clip
from galago.nn.passes import finish
from galago.precision import pick_precision
from galago.request import Message
from galago.store import hub

CPU = torch.device("cpu")
AT = vectors("smolvlm2-tiny")
CASES = tuple(sorted(AT))


def tables() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((VECTORS / "smolvlm2-tiny" / "tables.json").read_text(encoding="utf-8"))
    return found


def rows(name: str) -> list[Any]:
    return tables()[name]["rows"]


@cache
def expected(case: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((AT[case] / "expected.json").read_text(encoding="utf-8"))
    return found


@cache
def tensors(case: str) -> dict[str, Tensor]:
    return load_file(AT[case] / "expected.safetensors")


def files_of(case: str) -> ModelFiles:
    """The files of a case's model, with the case's own preprocessing."""
    files = hub.locate(AT[case].parent / f"model_{expected(case)['model']}")
    return replace(files, preprocessor={**files.preprocessor, **expected(case)["processor_overrides"]})


@cache
def loaded(case: str, precision: str = "float32") -> SmolVLM:
    return load_smolvlm(files_of(case), precision=pick_precision(precision, CPU), device=CPU)


def images(case: str) -> list[Image.Image]:
    return [Image.open(AT[case] / name) for name in expected(case)["images"]]


def clip(case: str) -> Clip:
    """The frames that the reference looked at."""
    video = expected(case)["video"]
    frames = json.loads((AT[case] / "frames" / "timestamps.json").read_text(encoding="utf-8"))["frames"]
    times = tuple(video["timestamps_s"])
    chosen = [one["file"] for one in frames if one["time_s"] in times]
    pictures = tuple(Image.open(AT[case] / "frames" / name).convert("RGB") for name in chosen)
    return Clip(pictures, times, video["metadata"]["duration"])


def messages(case: str) -> tuple[Message, ...]:
    """The conversation, with the images and the clip in their places."""
    shown = iter(images(case))

    def part(item: dict[str, str]) -> Any:
        match item["type"]:
            case "text":
                return item["text"]
            case "image":
                return next(shown)
            case "video":
                return clip(case)
        raise AssertionError(item)

    return tuple(Message(m["role"], tuple(map(part, m["content"]))) for m in expected(case)["messages"])


def features_of(case: str) -> Tensor:
    """Of the given pixels, masks and all."""
    from galago.families.smolvlm.vision import crop_features

    m, given = loaded(case), tensors(case)
    return crop_features(given["pixel_values"], m.weights.vision, m.config.vision, mask=mask_of(case))


def mask_of(case: str) -> Tensor | None:
    """Which patches hold something, where a case says so."""
    v, given = loaded(case).config.vision, tensors(case)
    if "pixel_attention_mask" not in given:
        return None
    side = v.grid * v.patch_size
    mask = given["pixel_attention_mask"][:, :side, :side]
    return mask.unflatten(1, (v.grid, v.patch_size)).unflatten(3, (v.grid, v.patch_size)).sum((2, 4)) > 0


@torch.inference_mode()
def begun(case: str) -> tuple[KVCache, StepOutput]:
    """The prompt over the given pixels, fed."""
    from galago.families.smolvlm.vision import project

    m, ids = loaded(case), tensors(case)["input_ids"]
    places = (ids == m.config.image_id).nonzero().flatten().tolist()
    encoded = None
    end = places[-1] + 2 if places else 0
    if places:
        seen = project(features_of(case), m.weights.vision, m.config.vision).flatten(0, 1)
        prefix = Prefix((ImageInput(Image.new("RGB", (1, 1))),), end, tuple(ids[:end].tolist()))
        encoded = finish(m.encode_prefix(prefix, [seen]))
    cache = m.new_cache(encoded)
    return cache, m.forward([cache], [Feed(ids[end:])])[0]


class Recorder:
    """A model that notes what the engine feeds it and what comes of it."""

    def __init__(self, inner: SmolVLM, rows_per_pass: int | None = None) -> None:
        self.inner = inner
        self.rows_per_pass = rows_per_pass or inner.rows_per_pass
        self.prefixes: list[Prefix] = []
        self.fed: list[list[int]] = []
        self.logits: list[Tensor] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def encode_prefix(self, prefix: Prefix, embeddings: Sequence[Tensor], variant: str | None = None) -> Any:
        self.prefixes.append(prefix)
        return self.inner.encode_prefix(prefix, embeddings, variant)

    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[StepOutput]:
        found = self.inner.forward(caches, feeds)
        for feed, out in zip(feeds, found, strict=True):
            self.fed.append(feed.input.tolist())
            if out.logits is not None:
                self.logits.append(out.logits)
        return found
