"""What batching, shared images and short prefills are worth: each part measures a loaded model (engine_batching.py).

The weights are to be random ones, of which every answer reaches its limit. A request of one token ends with its first
token, so its time is the time to first token, whatever the text.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any

import numpy as np
from PIL import Image

import galago
from galago.lab.bench.results import best_and_median
from galago.request import Caption, Done, Point, PointFound, Query, Request, Sampling, Skill

Figures = dict[str, Any]
AT_ONCE = (1, 2, 4, 8)
HIGHER = {"tokens_per_s", "requests_per_minute"}
EDGES_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000)


class Images:
    """Noise images, never the same one twice."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = size
        self._seeds = count()

    def new(self) -> Image.Image:
        width, height = self._size
        pixels = np.random.default_rng(next(self._seeds)).integers(0, 256, (height, width, 3), np.uint8)
        return Image.fromarray(pixels)


def question(number: int) -> Query:
    return Query(f"What is number {number} in this picture?")


def ask(model: galago.Model, requests: Sequence[Request]) -> tuple[float, list[Done]]:
    """Seconds until all of these, submitted at once, have ended; and how each did."""
    begin = time.perf_counter()
    runs = [model.submit(request) for request in requests]
    ends = [next(event for event in run if isinstance(event, Done)) for run in runs]
    return time.perf_counter() - begin, ends


def figures(runs: Sequence[Mapping[str, float | None]]) -> Figures:
    """The best and the median of each figure."""
    return {key: best_and_median([run[key] for run in runs], higher=key in HIGHER) for key in runs[0]}


# --- decode ------------------------------------------------------------------------------------


def decode(
    model: galago.Model, images: Images, tokens: int, runs: int, at_once: Sequence[int] = (1, 2, 4, 8)
) -> Figures:
    """Tokens a second in all, of so many captions of different images at once; the images are encoded before.

    What a token costs is the time of whole captions less the time of captions of one token.
    """
    found: dict[int, list[dict[str, float | None]]] = {n: [] for n in AT_ONCE}
    for _ in range(runs):
        for n in AT_ONCE:
            encoded = [model.encode_image(images.new()) for _ in range(n)]
            short, _ = ask(model, [_caption(image, 1) for image in encoded])
            whole, ends = ask(model, [_caption(image, tokens) for image in encoded])
            steps = sum(end.usage.completion_tokens - 1 for end in ends)
            known = whole > short and steps > 0
            found[n].append({"tokens_per_s": steps / (whole - short) if known else None, "total_s": whole})
    return {str(n): figures(runs_of_n) for n, runs_of_n in found.items()}


def _caption(image: Any, tokens: int) -> Request:
    return Request(Caption(), image, Sampling(max_tokens=tokens))


# --- repeated images ---------------------------------------------------------------------------


def repeated(model: galago.Model, images: Images, runs: int, questions: int = 8) -> Figures:
    """Questions one after another, each with its image's pixels: all on one image, and each on another."""
    found: dict[str, list[dict[str, float | None]]] = {"one image": [], "different images": []}
    for _ in range(runs):
        for name, same in (("one image", True), ("different images", False)):
            pictures = [images.new()] * questions if same else [images.new() for _ in range(questions)]
            computed, first = [], []
            for number, picture in enumerate(pictures):
                request = Request(question(number), picture.copy(), Sampling(max_tokens=1))
                seconds, (end,) = ask(model, [request])
                computed.append(end.timings.encode_s + end.timings.prefill_s)
                first.append(seconds)
            # The first one is new in both.
            found[name].append(
                {"computed_s": sum(computed), "all_s": sum(first), "later_ttft_s": float(np.median(first[1:]))}
            )
    return {name: figures(runs_of_one) for name, runs_of_one in found.items()}


# --- questions at once -------------------------------------------------------------------------


def questions_at_once(model: galago.Model, images: Images, tokens: int, n: int = 4) -> dict[str, float]:
    """One run of n questions at once on one new image."""
    picture = images.new()
    skills: list[Skill] = [question(number) for number in range(n)]
    seconds, _ = ask(model, [Request(skill, picture.copy(), Sampling(max_tokens=tokens)) for skill in skills])
    return {"requests_per_minute": 60 * n / seconds, "total_s": seconds}


# --- gaps --------------------------------------------------------------------------------------


def gaps(model: galago.Model, images: Images, points: int, every: int = 8) -> Figures:
    """Times between the points of a running request, alone and while captions of new images keep arriving.

    A point is two tokens, and each is told at once, while a random token seldom makes text. Another image arrives
    after each `every` points.
    """
    alone = list(_gaps(model, images, points, lambda number: None))
    arrived = []

    def arrive(number: int) -> None:
        if number % every == 1:
            arrived.append(model.submit(_caption(images.new(), 1)))

    disturbed = list(_gaps(model, images, points, arrive))
    for run in arrived:
        for _ in run:
            pass
    return {
        "alone": _histogram(alone),
        "while images arrive": {**_histogram(disturbed), "images": len(arrived)},
        "longest_piece_s": model.stats()["scheduler"]["longest_piece_s"],
    }


def _gaps(model: galago.Model, images: Images, points: int, tell: Callable[[int], None]) -> Iterator[float]:
    encoded = model.encode_image(images.new())
    last = None
    for number, event in enumerate(model.submit(Request(Point("thing", points), encoded))):
        now = time.perf_counter()
        if isinstance(event, PointFound):
            if last is not None:
                yield now - last
            last = now
            tell(number)


def _histogram(found: Sequence[float]) -> Figures:
    """How many gaps lie below each edge and not below the one before; the last is open."""
    counts, _ = np.histogram(np.array(found) * 1e3, [0, *EDGES_MS, np.inf])
    return {
        "counts": counts.tolist(),
        "median_s": float(np.median(found)),
        "p99_s": float(np.quantile(found, 0.99)),
        "largest_s": max(found),
    }


# --- overhead ----------------------------------------------------------------------------------


def overhead(model: galago.Model, images: Images, tokens: int, n: int = 16) -> Figures:
    """What a step of n running requests costs, and how much of that is the scheduler's and the skills'."""
    encoded = [model.encode_image(images.new()) for _ in range(n)]
    ask(model, [_caption(image, 2) for image in encoded])
    before = model.stats()["scheduler"]
    seconds, ends = ask(model, [_caption(image, tokens) for image in encoded])
    after = model.stats()["scheduler"]
    steps = after["turns"] - before["turns"]
    return {
        "requests": n,
        "seconds": seconds,
        "tokens": sum(end.usage.completion_tokens for end in ends),
        "steps": steps,
        "step_s": seconds / steps,
        "scheduler_per_step_s": (after["overhead_s"] - before["overhead_s"]) / steps,
        "skills_per_step_s": (after["skills_s"] - before["skills_s"]) / steps,
    }
