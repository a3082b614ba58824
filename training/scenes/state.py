"""A run before its first step, and the checkpoint that it leaves."""

import math
from pathlib import Path

import torch
from torch import Tensor, nn

from galago.families.moondream.config import MoondreamConfig
from galago.families.moondream.weights import assemble, shapes, table
from galago.precision.linear import Dense
from training.scenes.objective import PatchHeads, ToldHeads
from training.scenes.recipe import prepare
from training.scenes.transplant import transplant
from training.state import State, optimisers, write

FROZEN = {"region.coord_features", "region.size_features"}


def fresh(run: Path, start: Path | None, device: torch.device, rate: float) -> State:
    """A run before its first step, in a folder that may be empty; `start` is a finished checkpoint to begin from."""
    config, _ = prepare(run)
    torch.manual_seed(0)
    tensors = initial(config)
    if start is not None:
        tensors = transplant(start, run / "tokenizer.json", tensors)
    params = {n: nn.Parameter(t.to(device), requires_grad=n not in FROZEN) for n, t in tensors.items()}
    linears = {n: Dense(params[f"{n}.weight"], params[f"{n}.bias"]) for n in table(config).linears}
    patches = {"tower": PatchHeads(config.vision.enc_dim), "projected": PatchHeads(config.text.dim)}
    heads = nn.ModuleDict({**patches, "decoded": ToldHeads(config.text.dim)})
    heads.to(device)
    average = {n: p.detach().clone() for n, p in params.items()}
    weights = assemble(params, linears, config)
    return State(config, params, average, weights, heads, optimisers(params, heads, rate, uses_muon), export)


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


def export(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the checkpoint as it is bundled: Hub names, float16, frequencies in float32."""
    stored = {
        f"model.{n}": t.detach().cpu().to(torch.float32 if n in FROZEN else torch.float16).contiguous()
        for n, t in tensors.items()
    }
    write(stored, folder)
