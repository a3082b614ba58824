"""Train the `scenes` model; goes on where its folder ended, as often as wanted.

python -m training.scenes.train --run runs/scenes --start src/galago/assets/scenes --minutes 60
python -m training.scenes.train --run runs/scenes --minutes 600
python -m training.scenes.train --run runs/final --branch runs/scenes --decay 30000  # to be bundled

The learning rate stays up for as long as the run goes. What is to be used comes from a branch in which it
falls to zero; the run itself can go on.
"""

import argparse
import json
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from galago.nn.device import pick_device
from training.scenes.data import Batch, loader
from training.scenes.heldout import score
from training.scenes.objective import losses, total
from training.scenes.pack import KINDS
from training.scenes.state import STATE, State, follow, fresh, keep, rate_at, resume

WARM = 100
"""Steps until the full learning rate."""


@dataclass(frozen=True)
class Options:
    """How to train; the help of the command says what each is."""

    run: Path
    start: Path | None = None
    branch: Path | None = None
    minutes: float = float("inf")
    scenes: float = float("inf")
    decay: int = 0
    batch: int = 32
    rows: int = 2
    rate: float = 3e-3
    single: int = 10_000
    workers: int = 1
    device: str = "auto"
    log_steps: int = 50
    keep_minutes: float = 5.0
    score_minutes: float = 30.0
    score_scenes: int = 60


def train(options: Options) -> State:
    """Train until the minutes or the scenes are reached, the decay ends or a signal comes; the state is kept."""
    began = time.monotonic()
    run, device = options.run, pick_device(options.device)
    run.mkdir(parents=True, exist_ok=True)
    if options.branch and not (run / STATE).exists():
        for name in ("config.json", "tokenizer.json", STATE):
            shutil.copy(options.branch / name, run / name)
    resumes = (run / STATE).exists()
    state = fresh(run, None if resumes else options.start, device, options.rate)
    if resumes:
        resume(state, run, device)
    if options.decay and state.decay is None:
        state.decay = (state.step, state.step + max(1, options.decay // options.batch))
    last = min(options.scenes / options.batch, state.decay[1] if state.decay else float("inf"))

    stopped: list[int] = []
    before = {s: signal.signal(s, lambda number, _: stopped.append(number)) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        _steps(state, options, device, began, last, stopped)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    keep(state, run)
    return state


def _steps(state: State, options: Options, device: torch.device, began: float, last: float, stopped: list[int]) -> None:
    if state.step >= last:
        return
    batches = iter(loader(options.run, options.batch, options.rows, state.step, options.single, options.workers))
    sums, kinds, since = dict[str, float](), torch.zeros(len(KINDS), 2), time.monotonic()
    kept = scored = began
    first = state.step
    while state.step < last and not stopped and time.monotonic() - began < 60 * options.minutes:
        rate = options.rate * rate_at(state.step, WARM, state.decay)
        parts, by_kind, norm = step(state, _moved(next(batches), device), rate)
        kinds += by_kind.cpu()
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value)
        if state.step % options.log_steps == 0:
            count, seconds = min(options.log_steps, state.step - first), time.monotonic() - since
            line = {name: round(value / count, 4) for name, value in sums.items()}
            each = {k: round(float(a / n), 3) for k, (a, n) in zip(KINDS, kinds, strict=True) if n}
            _log(options, "log", state, line | {"rate": rate, "norm": norm, "kinds": each,
                 "per_s": round(count * options.batch / seconds, 1)})  # fmt: skip
            sums, kinds, since = {}, torch.zeros(len(KINDS), 2), time.monotonic()
        now = time.monotonic()
        if now - kept > 60 * options.keep_minutes:
            keep(state, options.run)
            kept = now
        if now - scored > 60 * options.score_minutes:
            keep(state, options.run)
            _log(options, "scores", state, dict(score(options.run, options.score_scenes)))
            scored = kept = since = time.monotonic()


def step(state: State, batch: Batch, rate: float) -> tuple[dict[str, Tensor], Tensor, float]:
    """One step of the optimisers; the losses, those of each kind of task, and the gradient's norm."""
    device = batch.pixels.device.type
    with torch.autocast(device, torch.bfloat16):
        parts, by_kind = losses(batch, state.weights, state.config, state.heads)
    total(parts).backward()
    norm = nn.utils.clip_grad_norm_(state.trained, 1.0)
    for optimiser in state.optimisers:
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
    state.step += 1
    follow(state)
    return {name: part.detach() for name, part in parts.items()}, by_kind, round(float(norm), 3)


def _moved(batch: Batch, device: torch.device) -> Batch:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, Tensor)})


def _log(options: Options, name: str, state: State, line: dict[str, Any]) -> None:
    whole = {"step": state.step, "scenes": state.step * options.batch, **line}
    with (options.run / f"{name}.jsonl").open("a") as file:
        file.write(json.dumps(whole) + "\n")
    print(json.dumps(whole), flush=True)


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Options(Path("runs/scenes"))
    parser.add_argument("--run", type=Path, default=default.run, help="folder of state, log and checkpoint")
    parser.add_argument("--start", type=Path, help="finished checkpoint whose weights a new run begins with")
    parser.add_argument("--branch", type=Path, help="folder of the run that a new one goes on from")
    parser.add_argument("--minutes", type=float, default=default.minutes, help="stop after so long")
    parser.add_argument("--scenes", type=float, default=default.scenes, help="stop when so many scenes were seen")
    parser.add_argument("--decay", type=int, default=0, help="scenes over which the learning rate falls to zero")
    parser.add_argument("--batch", type=int, default=default.batch, help="scenes in one step")
    parser.add_argument("--rows", type=int, default=default.rows, help="rows of positions for one scene's tasks")
    parser.add_argument("--rate", type=float, default=default.rate, help="learning rate on the plateau")
    parser.add_argument("--single", type=int, default=default.single, help="scenes at the start that fit in one view")
    parser.add_argument("--workers", type=int, default=default.workers, help="processes that draw")
    parser.add_argument("--device", default=default.device)
    parser.add_argument("--keep-minutes", type=float, default=default.keep_minutes, help="between checkpoints")
    parser.add_argument("--score-minutes", type=float, default=default.score_minutes, help="between held-out scores")
    parser.add_argument("--score-scenes", type=int, default=default.score_scenes, help="scenes of a held-out score")
    train(Options(**vars(parser.parse_args(argv))))


if __name__ == "__main__":
    main()
