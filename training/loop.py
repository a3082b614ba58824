"""The loop that trains a bundled model: goes on where its folder ended, as often as wanted.

The learning rate stays up for as long as the run goes. What is to be used comes from a branch in which it
falls to zero; the run itself can go on.
"""

import argparse
import json
import math
import shutil
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from galago.system.device import pick_device
from training.state import STATE, State, follow, keep, rate_at, resume

WARM = 100
"""Steps until the full learning rate."""

Losses = tuple[dict[str, Tensor], Tensor]
"""Each loss by its name, and of each kind of task the sum of its losses and their number [K, 2]."""


@dataclass(frozen=True)
class Options:
    """How to train; the help of the command says what each is."""

    run: Path
    start: Path | None = None
    branch: Path | None = None
    minutes: float = float("inf")
    seen: float = float("inf")
    decay: int = 0
    batch: int = 32
    rows: int = 2
    rate: float = 3e-3
    easy: int = 10_000
    workers: int = 1
    device: str = "auto"
    log_steps: int = 50
    keep_minutes: float = 5.0
    score_minutes: float = 30.0
    score_count: int = 60


@dataclass(frozen=True)
class Recipe:
    """What the training of one model is made of."""

    unit: str
    """what a batch is counted in: scenes, clips"""
    files: tuple[str, ...]
    """of a run's folder, what a branch takes along"""
    fresh: Callable[[Path, Path | None, torch.device, float], State]
    """a run before its first step: folder, finished checkpoint to begin from, device, learning rate"""
    batches: Callable[[Options, int], Iterable[Any]]
    """the batches from this number on, dataclasses"""
    losses: Callable[[Any, State], Losses]
    weights: dict[str, float]
    """how much each loss counts"""
    kinds: tuple[str, ...]
    score: Callable[[Path, int], dict[str, float]]
    """percent of each measure of the checkpoint in a folder, on so many that it was not trained on"""


def train(options: Options, recipe: Recipe) -> State:
    """Train until the minutes or the number are reached, the decay ends or a signal comes; the state is kept."""
    began = time.monotonic()
    run, device = options.run, pick_device(options.device)
    # Attention written out is to be computed in the type of its inputs.
    torch.backends.cuda.allow_fp16_bf16_reduction_math_sdp(True)
    run.mkdir(parents=True, exist_ok=True)
    if options.branch and not (run / STATE).exists():
        for name in (*recipe.files, STATE):
            shutil.copy(options.branch / name, run / name)
    resumes = (run / STATE).exists()
    state = recipe.fresh(run, None if resumes else options.start, device, options.rate)
    if resumes:
        resume(state, run, device)
    if options.decay and state.decay is None:
        state.decay = (state.step, state.step + max(1, options.decay // options.batch))
    last = min(options.seen / options.batch, state.decay[1] if state.decay else float("inf"))

    stopped: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stopped.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        _steps(state, options, recipe, device, began, last, stopped)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    keep(state, run)
    return state


def _steps(
    state: State,
    options: Options,
    recipe: Recipe,
    device: torch.device,
    began: float,
    last: float,
    stopped: list[int],
) -> None:
    if state.step >= last:
        return
    parts = math.gcd(options.batch, torch.get_num_threads() if device.type == "cpu" else 1)
    batches = iter(recipe.batches(replace(options, batch=options.batch // parts), state.step * parts))
    pool = ThreadPoolExecutor(parts, initializer=torch.set_num_threads, initargs=(1,)) if parts > 1 else None
    sums, kinds, since = dict[str, float](), torch.zeros(len(recipe.kinds), 2), time.monotonic()
    kept = scored = began
    first = state.step
    while state.step < last and not stopped and time.monotonic() - began < 60 * options.minutes:
        rate = options.rate * rate_at(state.step, WARM, state.decay)
        together = [_moved(next(batches), device) for _ in range(parts)]
        lost, by_kind, norm = step(state, together, rate, recipe, pool)
        kinds += by_kind.cpu()
        for name, value in lost.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if state.step % options.log_steps == 0:
            count, seconds = min(options.log_steps, state.step - first), time.monotonic() - since
            line = {name: round(value / count, 4) for name, value in sums.items()}
            each = {k: round(float(a / n), 3) for k, (a, n) in zip(recipe.kinds, kinds, strict=True) if n}
            _log(options, recipe, "log", state, line | {"rate": rate, "norm": norm, "kinds": each,
                 "per_s": round(count * options.batch / seconds, 1)})  # fmt: skip
            sums, kinds, since = {}, torch.zeros(len(recipe.kinds), 2), time.monotonic()
        now = time.monotonic()
        if now - kept > 60 * options.keep_minutes:
            keep(state, options.run)
            kept = now
        if now - scored > 60 * options.score_minutes:
            keep(state, options.run)
            _log(options, recipe, "scores", state, dict(recipe.score(options.run, options.score_count)))
            scored = kept = since = time.monotonic()


def step(
    state: State, batches: Sequence[Any], rate: float, recipe: Recipe, pool: Executor | None = None
) -> tuple[dict[str, Tensor], Tensor, float]:
    """One step of the optimisers; the losses, those of each kind of task, and the gradient's norm.

    Several batches are worked on side by side in the pool's threads: two cores with a batch each are a quarter quicker
    than two cores that share every operation.
    """
    device, trained = next(iter(state.params.values())).device.type, state.trained

    def work(batch: Any) -> tuple[dict[str, Tensor], Tensor, Sequence[Tensor | None]]:
        # The cache of weights in bfloat16 is one for all threads: what is cast once and what twice would be chance.
        with torch.autocast(device, torch.bfloat16, cache_enabled=False):
            parts, by_kind = recipe.losses(batch, state)
        whole = torch.stack([recipe.weights[name] * value for name, value in parts.items()]).sum()
        return (
            {n: v.detach() for n, v in parts.items()},
            by_kind,
            torch.autograd.grad(whole, trained, allow_unused=True),
        )

    # On a CPU the fused kernel's backward pass takes more than twice as long as the product written out.
    with sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext():
        done = list(pool.map(work, batches) if pool else map(work, batches))
    for param, each in zip(trained, zip(*(gradients for _, _, gradients in done), strict=True), strict=True):
        known = [gradient for gradient in each if gradient is not None]
        param.grad = torch.stack(known).sum(0).div_(len(done)) if known else None
    norm = nn.utils.clip_grad_norm_(trained, 1.0)
    for optimiser in state.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    state.step += 1
    follow(state)
    means = {name: torch.stack([parts[name] for parts, _, _ in done]).mean() for name in done[0][0]}
    return means, torch.stack([by_kind for _, by_kind, _ in done]).sum(0), round(float(norm), 3)


def _moved(batch: Any, device: torch.device) -> Any:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, Tensor)})


def _log(options: Options, recipe: Recipe, name: str, state: State, line: dict[str, Any]) -> None:
    whole = {"step": state.step, recipe.unit: state.step * options.batch, **line}
    with (options.run / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(whole) + "\n")
    print(json.dumps(whole), flush=True)


def parser(about: str | None, default: Options, unit: str, easy: tuple[str, str]) -> argparse.ArgumentParser:
    """The command of a trainer; `easy` names and explains the option of the same name."""
    p = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--run", type=Path, default=default.run, help="folder of state, log and checkpoint")
    p.add_argument("--start", type=Path, help="finished checkpoint whose weights a new run begins with")
    p.add_argument("--branch", type=Path, help="folder of the run that a new one goes on from")
    p.add_argument("--minutes", type=float, default=default.minutes, help="stop after so long")
    p.add_argument(
        f"--{unit}", dest="seen", type=float, default=default.seen, help=f"stop when so many {unit} were seen"
    )
    p.add_argument("--decay", type=int, default=0, help=f"{unit} over which the learning rate falls to zero")
    p.add_argument("--batch", type=int, default=default.batch, help=f"{unit} in one step")
    p.add_argument(
        "--rows", type=int, default=default.rows, help=f"rows of positions for the tasks of one of the {unit}"
    )
    p.add_argument("--rate", type=float, default=default.rate, help="learning rate on the plateau")
    p.add_argument(f"--{easy[0]}", dest="easy", type=int, default=default.easy, help=easy[1])
    p.add_argument("--workers", type=int, default=default.workers, help="processes that draw")
    p.add_argument("--device", default=default.device)
    p.add_argument("--keep-minutes", type=float, default=default.keep_minutes, help="between checkpoints")
    p.add_argument("--score-minutes", type=float, default=default.score_minutes, help="between held-out scores")
    p.add_argument(f"--score-{unit}", dest="score_count", type=int, default=default.score_count,
                   help=f"{unit} of a held-out score")  # fmt: skip
    return p
