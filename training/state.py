"""All that a training run is between two steps: weights, their average, optimisers, and where it stands."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

STATE = "state.pt"
AVERAGED = 400
"""Steps over which weights are averaged; what is exported is the average."""


@dataclass
class State:
    """One run in memory; its tensors change in place."""

    config: Any
    params: dict[str, nn.Parameter]
    """those that are not trained need no gradient"""
    average: dict[str, Tensor]
    weights: Any
    """the family's tree over the parameters"""
    heads: nn.ModuleDict
    optimisers: list[torch.optim.Optimizer]
    export: Callable[[dict[str, Tensor], Path], None]
    """writes the checkpoint of the average into a folder"""
    step: int = 0
    decay: tuple[int, int] | None = None
    """The steps between which the learning rate falls to zero."""

    @property
    def trained(self) -> list[Tensor]:
        return [p for o in self.optimisers for group in o.param_groups for p in group["params"]]


def optimisers(
    params: dict[str, nn.Parameter], heads: nn.Module, rate: float, inner: Callable[[str, Tensor], bool]
) -> list[torch.optim.Optimizer]:
    """Muon for the inner matrices, AdamW for all others."""
    trained = {n: p for n, p in params.items() if p.requires_grad}
    inside = [p for n, p in trained.items() if inner(n, p)]
    outside = [p for n, p in trained.items() if not inner(n, p)]
    return [
        torch.optim.Muon(inside, lr=rate, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW([*outside, *heads.parameters()], lr=rate, betas=(0.9, 0.98), weight_decay=0.01, fused=True),
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
    names = [n for n, p in state.params.items() if p.requires_grad]
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
    state.export(state.average, run)


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


def write(stored: dict[str, Tensor], folder: Path) -> None:
    """The tensors as the folder's model.safetensors; a kill leaves the file of the last time."""
    fresh_file = folder / "model.safetensors.new"
    save_file(stored, fresh_file, metadata={"format": "pt"})
    fresh_file.replace(folder / "model.safetensors")
