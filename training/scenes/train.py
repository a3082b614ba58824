"""Train the bundled `scenes` model; resumes from its last checkpoint.

python -m training.scenes.train --out runs/scenes --images 97000
python -m training.scenes.train --out runs/scenes --images 200000  # goes on where that ended
"""

import argparse
import json
import math
import shutil
import time
from dataclasses import fields, replace
from pathlib import Path

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save_file
from torch import Tensor, nn

from galago.checkpoint import read_tensors
from galago.families.moondream.config import MoondreamConfig
from galago.families.moondream.weights import assemble, shapes, table
from galago.nn.device import pick_device
from galago.nn.linear import Dense
from training.scenes.data import Batch, loader
from training.scenes.objective import PatchHeads, losses, total
from training.scenes.recipe import prepare

FROZEN = {"region.coord_features", "region.size_features"}


def initial(c: MoondreamConfig) -> dict[str, Tensor]:
    """Random tensors for every name of a checkpoint."""
    depth = {"text": c.text.n_layers, "vision": c.vision.enc_n_layers}
    out: dict[str, Tensor] = {}
    for name, shape in shapes(c).items():
        if name in FROZEN:
            # Wavelengths from the whole image down to a 64th of it.
            out[name] = torch.randn(shape) * torch.logspace(-1, 4.5, shape[-1], base=2)
        elif name.endswith("bias"):
            out[name] = torch.zeros(shape)
        elif len(shape) == 1:
            out[name] = torch.ones(shape)
        elif name == "vision.pos_emb":
            out[name] = grid_positions(c.vision.grid, c.vision.enc_dim)
        else:
            std = shape[-1] ** -0.5 if len(shape) == 2 and name != "text.wte" else 0.5
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight")) and "blocks" in name:
                std /= (2 * depth[name.split(".")[0]]) ** 0.5
            if name == "text.lm_head.weight":
                std *= 0.2
            out[name] = torch.randn(shape) * std
    return out


def grid_positions(grid: int, dim: int) -> Tensor:
    """Sines and cosines of row and column, [1, grid * grid, dim]: a start that already knows the plane."""
    steps = torch.arange(grid) / grid * 2 * math.pi
    waves = torch.outer(steps, torch.logspace(-1, math.log2(grid / 2), dim // 4, base=2))
    axis = torch.cat((waves.sin(), waves.cos()), dim=1)
    rows, cols = axis[:, None].expand(-1, grid, -1), axis[None].expand(grid, -1, -1)
    return 0.3 * torch.cat((rows, cols), dim=-1).reshape(1, grid * grid, -1)


def uses_muon(name: str, tensor: Tensor) -> bool:
    """Inner matrices are orthogonalised; embeddings, outputs, norms and biases are not."""
    return tensor.ndim == 2 and ("blocks" in name or "proj_mlp" in name or name.endswith("decoder.fc1.weight"))


def optimisers(params: dict[str, nn.Parameter], heads: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    inner = [p for n, p in params.items() if n not in FROZEN and uses_muon(n, p)]
    outer = [p for n, p in params.items() if n not in FROZEN and not uses_muon(n, p)]
    return [
        torch.optim.Muon(inner, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*outer, *heads.parameters()], lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
    ]


def rate_at(done: float, warm: float) -> float:
    """Share of the full learning rate at a share of the run: warm-up, plateau, then down to zero."""
    decay = 0.45
    return min(1.0, done / warm) * (1.0 if done < 1 - decay else max(0.0, (1 - done) / decay))


def moved(batch: Batch, device: torch.device) -> Batch:
    tensors = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{k: v.to(device, non_blocking=True) for k, v in tensors.items() if isinstance(v, Tensor)})


def export(params: dict[str, nn.Parameter], folder: Path) -> Path:
    """Write the checkpoint as it is bundled: Hub names, float16, frequencies in float32."""
    file = folder / "model.safetensors"
    tensors = {
        f"model.{n}": p.detach().cpu().to(torch.float32 if n in FROZEN else torch.float16).contiguous()
        for n, p in params.items()
    }
    save_file(tensors, file, metadata={"format": "pt"})
    return file


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/scenes"), help="folder of checkpoints and log")
    parser.add_argument("--images", type=int, default=97_000, help="scenes to have seen at the end")
    parser.add_argument("--batch", type=int, default=32, help="scenes in one step")
    parser.add_argument("--rate", type=float, default=3e-3, help="learning rate on the plateau")
    parser.add_argument("--rows", type=int, default=2, help="rows of positions for one scene's tasks")
    parser.add_argument("--single", type=int, default=30_000, help="scenes at the start that fit in one view")
    parser.add_argument("--workers", type=int, default=1, help="processes that draw")
    parser.add_argument("--start", type=Path, help="folder of a checkpoint to begin from when there is none to resume")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--keep-every", type=int, default=200, help="steps between checkpoints")
    args = parser.parse_args()

    device = pick_device(args.device)
    state_file, step = args.out / "state.pt", 0
    starts = args.start is not None and not state_file.exists()
    if starts:
        args.out.mkdir(parents=True, exist_ok=True)
        for name in ("config.json", "tokenizer.json"):
            shutil.copy(args.start / name, args.out / name)
    config, _ = prepare(args.out)
    torch.manual_seed(0)
    tensors = initial(config)
    if starts:
        saved_weights = read_tensors([args.start / "model.safetensors"])
        tensors |= {name.removeprefix("model."): tensor.float() for name, tensor in saved_weights}
    params = {n: nn.Parameter(t.to(device), requires_grad=n not in FROZEN) for n, t in tensors.items()}
    linears = {n: Dense(params[f"{n}.weight"], params[f"{n}.bias"]) for n in table(config).linears}
    weights = assemble(params, linears, config)
    heads = nn.ModuleDict({"tower": PatchHeads(config.vision.enc_dim), "projected": PatchHeads(config.text.dim)}).to(
        device
    )
    tuned = optimisers(params, heads, args.rate)
    trained = [p for group in tuned for g in group.param_groups for p in g["params"]]

    if state_file.exists():
        state = torch.load(state_file, map_location=device, weights_only=True)
        step = state["step"]
        for name, tensor in state["params"].items():
            params[name].data.copy_(tensor)
        heads.load_state_dict(state["heads"])
        for optimiser, saved in zip(tuned, state["optimisers"], strict=True):
            optimiser.load_state_dict(saved)

    def keep() -> None:
        state = {
            "step": step,
            "params": {n: p.data for n, p in params.items()},
            "heads": heads.state_dict(),
            "optimisers": [o.state_dict() for o in tuned],
        }
        fresh = state_file.with_suffix(".new")
        torch.save(state, fresh)
        fresh.replace(state_file)  # never half a checkpoint
        export(params, args.out)

    steps = args.images // args.batch
    batches = iter(loader(args.out, args.batch, args.rows, step, args.single, args.workers))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    began, sums = time.monotonic(), dict.fromkeys(("token", "coordinate", "size", "patch", "token_patch"), 0.0)
    with Progress(*columns) as bar, (args.out / "log.jsonl").open("a") as log:
        task = bar.add_task("scenes", total=steps, completed=step)
        while step < steps:
            share = rate_at((step + 1) / steps, min(0.5, 300 / steps))
            for optimiser in tuned:
                for group in optimiser.param_groups:
                    group["lr"] = args.rate * share
            batch = moved(next(batches), device)
            with torch.autocast(device.type, torch.bfloat16):
                parts = losses(batch, weights, config, heads)
            total(parts).backward()
            norm = nn.utils.clip_grad_norm_(trained, 1.0)
            for optimiser in tuned:
                optimiser.step()
                optimiser.zero_grad(set_to_none=True)
            step += 1
            bar.advance(task)
            for name, value in parts.items():
                sums[name] += value.item()
            if step % 50 == 0:
                means = {name: round(value / 50, 4) for name, value in sums.items()}
                sums = dict.fromkeys(sums, 0.0)
                line = {"step": step, "images": step * args.batch, "s": round(time.monotonic() - began), **means}
                line |= {"rate": round(args.rate * share, 6), "norm": round(float(norm), 3)}
                log.write(json.dumps(line) + "\n")
                log.flush()
                bar.update(task, description=f"token {means['token']:.3f} place {means['coordinate']:.3f}")
            if step % args.keep_every == 0:
                keep()
        keep()


if __name__ == "__main__":
    main()
