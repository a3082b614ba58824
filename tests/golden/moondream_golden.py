"""The golden vectors of Moondream2, and a trace of everything our implementation computes for one case."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from vectors import VECTORS, vectors

from galago.backends.native import Native
from galago.engine.encoded_image import EncodedImage
from galago.engine.engine import Engine
from galago.engine.kv_cache import KVCache
from galago.engine.step import Feed, StepOutput
from galago.families.moondream import prompts
from galago.families.moondream.image import Crops, make_crops
from galago.families.moondream.loading import load_moondream
from galago.families.moondream.model import Moondream
from galago.families.moondream.text import logits_of
from galago.model import Model
from galago.precision import pick_precision
from galago.request import (
    Caption,
    Detect,
    DetectGaze,
    Event,
    GazeFound,
    ObjectFound,
    Point,
    PointFound,
    Query,
    Reasoning,
    Request,
    Sampling,
    Skill,
    TextDelta,
)
from galago.store import hub

CPU = torch.device("cpu")
COMMON = VECTORS / "moondream2-tiny" / "common"
AT = vectors("moondream2-tiny")
FOLDERS = tuple(sorted(AT))


@cache
def expected(folder: str) -> dict[str, Any]:
    return json.loads((AT[folder] / "expected.json").read_text(encoding="utf-8"))


@cache
def keys(file: Path) -> tuple[str, ...]:
    with safe_open(file, framework="pt") as tensors:
        return tuple(tensors.keys())


def tensor(file: Path, key: str) -> Tensor:
    with safe_open(file, framework="pt") as tensors:
        return tensors.get_tensor(key)


@cache
def loaded(folder: str) -> Moondream:
    return load_moondream(hub.locate(AT[folder]), precision=pick_precision("float32", CPU), device=CPU)


@cache
def model(folder: str) -> Model:
    return Model(Native(loaded(folder)))


@cache
def image(folder: str, name: str) -> Image.Image:
    picture = Image.open(AT[folder] / expected(folder)["images"][name]["file"])
    picture.load()
    return picture


@cache
def crops(folder: str, name: str) -> Crops:
    return make_crops(image(folder, name), loaded(folder).config.vision)


@cache
def encoded(folder: str, name: str) -> EncodedImage:
    return loaded(folder).encode_image(image(folder, name))


@cache
def cases(folder: str) -> dict[str, dict[str, Any]]:
    return {case["id"]: case for case in expected(folder)["cases"]}


def picture(folder: str, case: dict[str, Any]) -> Image.Image | EncodedImage | None:
    """The image of a case; encoded once for all where that takes long."""
    name, args = case["image"], case["args"]
    if name is None:
        return None
    anew = len(crops(folder, name).pixels) <= 6 or "lora" in args or args.get("prioritize_accuracy")
    return image(folder, name) if anew else encoded(folder, name)


# --- one case as a request ---------------------------------------------------------------------

SETTINGS = {"max_tokens", "temperature"}
ARGUMENTS = {
    "caption": {"length"} | SETTINGS,
    "query": {"question", "reasoning", "spatial_refs", "lora"} | SETTINGS,
    "detect": {"object", "max_objects", "lora"},
    "point": {"object", "max_objects", "lora"},
    "detect_gaze": {"eye", "face", "force_detect", "prioritize_accuracy", "python_random_seed"},
}
BOX = ("x_min", "y_min", "x_max", "y_max")


def request(folder: str, case: dict[str, Any]) -> Request:
    """Fails for a skill or argument that these tests do not know."""
    args, kind = case["args"], case["skill"]
    assert kind in ARGUMENTS, f"no test for the skill {kind}"
    unknown = set(args) - ARGUMENTS[kind]
    assert not unknown, f"no test for the arguments {unknown} of {kind}"
    skill: Skill
    if kind == "caption":
        skill = Caption(args["length"])
    elif kind == "query":
        refs = tuple(tuple(ref) for ref in args.get("spatial_refs", ()))
        skill = Query(args["question"], args.get("reasoning", False), refs)
    elif kind == "detect":
        skill = Detect(args["object"], args["max_objects"])
    elif kind == "point":
        skill = Point(args["object"], args["max_objects"])
    else:
        eye, face = args.get("eye"), args.get("face")
        skill = DetectGaze(
            eye=eye and tuple(eye),
            face=face and tuple(face[k] for k in BOX),
            accurate=args.get("prioritize_accuracy", False),
            force=args["force_detect"],
        )
    sampling = Sampling(
        temperature=args.get("temperature", 0),
        seed=args.get("python_random_seed"),
        max_tokens=args.get("max_tokens"),
    )
    lora = str(AT[folder] / args["lora"]) if "lora" in args else None
    return Request(skill, picture(folder, case), sampling, lora)


def output(case: dict[str, Any], events: list[Event]) -> dict[str, Any]:
    """Events as the golden outputs are written."""
    kind = case["skill"]
    if kind in ("detect", "point"):
        if kind == "detect":
            return {"objects": [dict(zip(BOX, e.box, strict=True)) for e in events if isinstance(e, ObjectFound)]}
        return {"points": [{"x": e.point[0], "y": e.point[1]} for e in events if isinstance(e, PointFound)]}
    if kind == "detect_gaze":
        (gaze,) = (e.point for e in events if isinstance(e, GazeFound))
        return {"gaze": gaze and {"x": gaze[0], "y": gaze[1]}}
    out: dict[str, Any] = {}
    for e in events:
        if isinstance(e, Reasoning):
            grounding = [
                {"start_idx": g.start, "end_idx": g.end, "points": [list(p) for p in g.points]} for g in e.grounding
            ]
            out["reasoning"] = {"text": e.text, "grounding": grounding}
    text = "".join(e.text for e in events if isinstance(e, TextDelta))
    return out | {"caption" if kind == "caption" else "answer": text}


# --- what is computed on the way ---------------------------------------------------------------


@dataclass
class Fed:
    """One feed: where it began, what it was, and what came of it."""

    start: int
    input: Tensor
    hidden: Tensor
    """[n, dim]"""

    @property
    def token(self) -> int | None:
        """The token fed, or None for a coordinate or size."""
        return None if self.input.is_floating_point() else int(self.input[0])


class Recorder:
    """A model that notes what the engine has it do."""

    def __init__(self, inner: Moondream) -> None:
        self.inner = inner
        self.sequences: list[list[Fed]] = []
        self.cache: KVCache | None = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)

    def new_cache(self, encoded: EncodedImage | None, variant: str | None = None) -> KVCache:
        self.sequences.append([])
        self.cache = self.inner.new_cache(encoded, variant)
        return self.cache

    def forward(self, caches: Sequence[KVCache], feeds: Sequence[Feed]) -> list[StepOutput]:
        return [self.step(cache, feed) for cache, feed in zip(caches, feeds, strict=True)]

    def step(self, cache: KVCache, feed: Feed) -> StepOutput:
        start = cache.length
        hidden = self.inner.hidden(cache, feed.input)
        self.sequences[-1].append(Fed(start, feed.input, hidden))
        heads = {name: self.inner.heads[name](hidden[-1:])[0].float() for name in feed.heads}
        return StepOutput(hidden[-1], heads, cache.room)

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        return logits_of(hidden, self.inner.weights.text).float()


@dataclass
class Trace:
    events: list[Event]
    sequences: list[list[Fed]]
    recorder: Recorder


@cache
def trace(folder: str, case_id: str) -> Trace:
    """All steps of a case, and the one more that the reference takes after the last token or gaze."""
    m, case = loaded(folder), cases(folder)[case_id]
    recorder = Recorder(m)
    engine = Engine(recorder)
    events = list(engine.submit(request(folder, case)))
    engine.close()
    with torch.inference_mode():
        feeds, more = recorder.sequences[-1], None
        if "segments" in case and len(feeds) < sum(1 + len(s["token_ids"]) for s in case["segments"]):
            more = case["segments"][-1]["token_ids"][-1]
        elif case["skill"] == "detect_gaze" and len(recorder.sequences) == 1 and len(feeds) > 1:
            (y,) = (e.point[1] for e in events if isinstance(e, GazeFound) and e.point)
            more = prompts.Coordinate(y)
        if more is not None and recorder.cache:
            recorder.step(recorder.cache, Feed(m.embed((more,))))
    return Trace(events, recorder.sequences, recorder)
