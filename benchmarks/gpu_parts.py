"""The parts of gpu_check.py: each yields what it finds, piece by piece, and `failed` or `skipped` with a sentence."""

import argparse
import json
import statistics
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import torch
from batching_parts import Images
from precision_drift import Pairs, compare, opened
from safetensors.torch import load_file
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

import galago
from galago.errors import GalagoError
from galago.families.smolvlm.loading import load_smolvlm
from galago.families.smolvlm.text import logits_of
from galago.families.smolvlm.vision import crop_features, project
from galago.lab.bench.random import ensure_random_checkpoint
from galago.lab.eval.drift import reference_answers
from galago.nn.decoder import embed_tokens
from galago.precision import pick_precision
from galago.request import Done, Query, Request, Sampling
from galago.store import hub
from galago.system.device import available_memory, memory_in_use, pick_device, synchronize
from galago.version import VERSION

SCENE = Path(__file__).resolve().parents[1] / "examples" / "scene.png"
QUESTIONS = ("What color is the circle?", "What shape is yellow?", "Is there a star?", "How many shapes are there?")
BOX_NEAR = 0.01
"""How far apart the sides of a box may be, of the picture's."""
GOLDEN_NEAR = 3e-3
"""How far apart values may be: what tests/golden allows residual streams."""
SIZE = (378, 378)
"""Of the pictures, in pixels."""
Found = dict[str, Any]


def carry_out(args: argparse.Namespace) -> None:
    """Print what the part `args.part` finds as lines of JSON, and why it failed, where it did."""
    try:
        for found in begun(args):
            print(json.dumps(found), flush=True)
    except Exception as error:
        traceback.print_exc()
        said = "".join(str(error).strip().splitlines()[:1])
        # Galago's own are sentences.
        why = said if isinstance(error, GalagoError) else f"{type(error).__name__}: {said}"
        print(json.dumps({"failed": why}), flush=True)


def begun(args: argparse.Namespace) -> Iterator[Found]:
    match args.part:
        case "machine":
            return machine(args)
        case "answers":
            return answers(args)
        case "golden":
            return golden(args)
        case "profile":
            return profile(args, args.models[0], args.precisions[0])
    return speed(args, *args.part.rsplit(" ", 1))


def machine(args: argparse.Namespace) -> Iterator[Found]:
    where = pick_device(args.device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else where.type
    yield {"device": name, "torch": torch.__version__, "cuda": torch.version.cuda, "galago": VERSION}


def answers(args: argparse.Namespace) -> Iterator[Found]:
    """The bundled model's on the device, beside those of the CPU in float32, which float32 has to equal."""

    def asked(precision: str, device: str) -> tuple[list[str], list[dict[str, float]]]:
        with galago.load("scenes", device=device, precision=precision) as model:
            texts = [model.query(SCENE, question)["answer"] for question in QUESTIONS]
            return [*texts, model.caption(SCENE)["caption"]], model.detect(SCENE, "circle")["objects"]

    right, boxes = asked("float32", "cpu")
    for precision in dict.fromkeys(("float32", *args.precisions)):
        texts, there = asked(precision, args.device)
        equal = sum(map(str.__eq__, texts, right))
        sides = [abs(a[k] - b[k]) for a, b in zip(there, boxes, strict=False) for k in a]
        near = len(there) == len(boxes) and max(sides, default=0) <= BOX_NEAR
        yield {precision: {"equal": equal, "of": len(right), "boxes_near": near}}
        if precision == "float32" and not (near and equal == len(right)):
            yield {"failed": f"float32 answers otherwise than on the CPU: {texts}, {there}"}


def golden(args: argparse.Namespace) -> Iterator[Found]:
    """What the device computes in float32 beside the golden vectors: values near, the likeliest choices the same."""
    where, found = pick_device(args.device), False
    for kind, collect in (("moondream2-tiny", compare_moondream), ("smolvlm2-tiny", compare_smolvlm)):
        pairs: Pairs = {}
        for file in sorted(args.golden.glob(f"{kind}/*/expected.safetensors")):
            collect(file.parent, where, pairs)
        for what, both in pairs.items():
            found = True
            ours, wanted = ([x.float().cpu() for x in side] for side in zip(*both, strict=True))
            worst = max(float((a - b).abs().max()) for a, b in zip(ours, wanted, strict=True))
            same = all(torch.equal(a.argmax(-1), b.argmax(-1)) for a, b in zip(ours, wanted, strict=True))
            choices = {"same_choices": same} if "logits" in what else {}
            yield {f"{kind} {what}": {"worst": worst, **choices}}
            if not worst <= GOLDEN_NEAR:  # which no NaN is
                yield {"failed": f"{kind}: {what} are off by {worst:.1e}"}
            elif not choices.get("same_choices", True):
                yield {"failed": f"{kind}: the likeliest of the {what} are others"}
    if not found:
        yield {"skipped": f"no golden vectors in {args.golden}"}


def compare_moondream(folder: Path, where: torch.device, pairs: Pairs) -> None:
    compare(opened(hub.locate(folder), "float32", where), folder, pairs)


@torch.inference_mode()
def compare_smolvlm(folder: Path, where: torch.device, pairs: Pairs) -> None:
    """Collect (ours, golden) of each kind for a case, from its pixels to the logits of each step."""
    given = {name: tensor.to(where) for name, tensor in load_file(folder / "expected.safetensors").items()}
    if "pixel_attention_mask" in given:  # made by hand: no picture comes to have one
        return
    model = json.loads((folder / "expected.json").read_text(encoding="utf-8"))["model"]
    files = hub.locate(folder.parent / f"model_{model}")
    m = load_smolvlm(files, precision=pick_precision("float32", where), device=where)
    x = embed_tokens(given["input_ids"], m.weights.text, m.dtype)
    if "pixel_values" in given:
        features = crop_features(given["pixel_values"], m.weights.vision, m.config.vision)
        seen = project(features, m.weights.vision, m.config.vision)
        x[given["input_ids"] == m.config.image_id] = seen.flatten(0, 1)
        pairs.setdefault("embedding", []).append((seen, given["connector_output"]))
    cache = m.new_cache(None)
    hidden = torch.cat((m.hidden(cache, x)[-1:], m.hidden(cache, given["greedy_ids"][:-1])))
    logits = logits_of(hidden, m.weights.text, m.config.text)
    pairs.setdefault("step logits", []).append((logits, given["logits_steps"]))


def profile(args: argparse.Namespace, model: str, precision: str) -> Iterator[Found]:
    """The ten dearest operations of one request. Where all operations take far less than the request, calling them is
    what costs."""
    where, images = pick_device(args.device), Images(SIZE)
    kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if where.type == "cuda" else [])]
    with galago.load(ensure_random_checkpoint(model), device=args.device, precision=precision) as loaded:
        m = loaded.backend.model

        def request_s() -> float:
            """Of a request in this thread: the profiler does not see the engine's."""
            begin = time.perf_counter()
            reference_answers(m, m.encode_image(images.new()), [Query("What?")], args.tokens)
            synchronize(where)
            return time.perf_counter() - begin

        took = min(request_s() for _ in range(4))  # unwatched: the profiler takes time too
        with torch.profiler.profile(activities=kinds) as seen:
            request_s()
    on_gpu = where.type == "cuda"
    column = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    # On a GPU its kernels alone: the calls that started them have the same time once more.
    events = [event for event in seen.key_averages() if (event.device_type != DeviceType.CPU) == on_gpu]
    operations = [(getattr(event, column) / 1e3, event.count, event.key[:80]) for event in events]
    dearest = [dict(zip(("ms", "calls", "name"), one, strict=True)) for one in sorted(operations, reverse=True)[:10]]
    in_all = sum(ms for ms, _, _ in operations)
    yield {"of": f"{model} {precision}", "request_ms": 1e3 * took, "operations_ms": in_all, "dearest": dearest}


def speed(args: argparse.Namespace, model: str, precision: str) -> Iterator[Found]:
    """Requests a second and the like at so many requests at once, each about a new picture, and memory."""
    where, images, folder = pick_device(args.device), Images(SIZE), ensure_random_checkpoint(model)
    # Keys and values of all that run at once: the usual bound would let few of 64 run.
    limits = galago.Limits(running=max(args.at_once), kv_bytes=available_memory(where) // 2)
    begin = time.perf_counter()
    with galago.load(folder, device=args.device, precision=precision, limits=limits) as loaded:
        load_s = time.perf_counter() - begin  # with packing, where that was not done yet
        yield {"weights": "random", "tokens": args.tokens, "load_s": load_s, "kernels": loaded.kernels}

        def ask(picture: Any, tokens: int) -> Done:
            run = loaded.submit(Request(Query("What is in the picture?"), picture, Sampling(max_tokens=tokens)))
            return next(event for event in run if isinstance(event, Done))

        for n in args.at_once:
            warm, pictures = ([images.new() for _ in range(count)] for count in (n, max(2 * n, 8)))
            with ThreadPoolExecutor(n) as pool:
                list(pool.map(partial(ask, tokens=2), warm))
                begin = time.perf_counter()
                ends = list(pool.map(partial(ask, tokens=args.tokens), pictures))
                wall = time.perf_counter() - begin
            made, memory = sum(end.usage.completion_tokens for end in ends), memory_in_use(where)
            row: Found = {"requests_per_s": len(ends) / wall, "tokens_per_s": made / wall}
            row |= {"p50_ms": 1e3 * statistics.median(end.timings.total_s for end in ends)}
            yield {f"at_once_{n}": row | {"peak_gb": memory.peak / 1e9, "peak_of": memory.of}}
