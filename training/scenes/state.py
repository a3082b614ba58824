"""All that a training run is between two steps: weights, their average, optimisers, and where it stands."""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from galago.families.moondream.config import MoondreamConfig
from galago.families.moondream.weights import MoondreamWeights, assemble, shapes, table
from galago.nn.linear import Dense
from training.scenes.objective import PatchHeads
from training.scenes.recipe import prepare
from training.scenes.transplant import transplant

FROZEN = {"region.coord_features", "region.size_features"}
STATE = "state.pt"
AVERAGED = 400
"""Steps over which weights are averaged; what is exported is the average."""


@dataclass
class State:
    """One run in memory; its tensors change in place."""

    config: MoondreamConfig
    params: dict[str, nn.Parameter]
    average: dict[str, Tensor]
    weights: MoondreamWeights
    heads: nn.ModuleDict
    optimisers: list[torch.optim.Optimizer]
    step: int = 0
    decay: tuple[int, int] | None = None
    """The steps between which the learning rate falls to zero."""

    @property
    def trained(self) -> list[Tensor]:
        return [p for o in self.optimisers for group in o.param_groups for p in group["params"]]


def fresh(run: Path, start: Path | None, device: torch.device, rate: float) -> State:
    """A run before its first step, in a folder that may be empty; `start` is a finished checkpoint to begin from."""
    config, _ = prepare(run)
    torch.manual_seed(0)
    tensors = initial(config)
    if start is not None:
        tensors = transplant(start, run / "tokenizer.json", tensors)
    params = {n: nn.Parameter(t.to(device), requires_grad=n not in FROZEN) for n, t in tensors.items()}
    linears = {n: Dense(params[f"{n}.weight"], params[f"{n}.bias"]) for n in table(config).linears}
    heads = nn.ModuleDict({"tower": PatchHeads(config.vision.enc_dim), "projected": PatchHeads(config.text.dim)})
    heads.to(device)
    average = {n: p.detach().clone() for n, p in params.items()}
    return State(config, params, average, assemble(params, linears, config), heads, optimisers(params, heads, rate))


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


def rate_at(step: int, warm: int, decay: tuple[int, int] | None) -> float:
    """Share of the full learning rate: warm-up, then a plateau without end, and down to zero once a decay begins."""
    share = min(1.0, (step + 1) / warm)
    if decay is None:
        return share
    done = (step - decay[0]) / max(1, decay[1] - decay[0])
    return share * (1 - min(1.0, max(0.0, done)) ** 0.5)


@torch.no_grad()
def follow(state: State) -> None:
    """Move the average towards the weights; young averages forget sooner."""
    share = 1 / min(AVERAGED, 1 + state.step / 4)
    names = [n for n in state.params if n not in FROZEN]
    torch._foreach_lerp_([state.average[n] for n in names], [state.params[n].data for n in names], share)


def keep(state: State, run: Path) -> None:
    """Write what resumes the run, and the checkpoint; a kill leaves the files of the last time."""
    whole = {
        "step": state.step,
        "decay": state.decay,
        "params": {n: p.data for n, p in state.params.items()},
        "average": state.average,
        "heads": state.heads.state_dict(),
        "optimisers": [o.state_dict() for o in state.optimisers],
    }
    torch.save(whole, run / f"{STATE}.new")
    (run / f"{STATE}.new").replace(run / STATE)
    export(state.average, run)


def resume(state: State, run: Path, device: torch.device) -> None:
    """Bring a fresh state to where the run's last one was kept."""
    whole = torch.load(run / STATE, map_location=device, weights_only=True)
    state.step, state.decay = whole["step"], whole["decay"] and tuple(whole["decay"])
    for name, param in state.params.items():
        param.data.copy_(whole["params"][name])
        state.average[name].copy_(whole["average"][name])
    state.heads.load_state_dict(whole["heads"])
    for optimiser, saved in zip(state.optimisers, whole["optimisers"], strict=True):
        optimiser.load_state_dict(saved)


def export(tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the checkpoint as it is bundled: Hub names, float16, frequencies in float32."""
    stored = {
        f"model.{n}": t.detach().cpu().to(torch.float32 if n in FROZEN else torch.float16).contiguous()
        for n, t in tensors.items()
    }
    fresh_file = folder / "model.safetensors.new"
    save_file(stored, fresh_file, metadata={"format": "pt"})
    fresh_file.replace(folder / "model.safetensors")
