"""A run before its first step, and the checkpoint that it leaves."""

import math
from functools import partial
from importlib.resources import files
from pathlib import Path

import torch
from torch import Tensor, nn

from galago.families.moondream.weights import read as read_moondream
from galago.families.smolvlm.config import SmolVLMConfig
from galago.families.smolvlm.weights import assemble, checkpoint_tensors, read, shapes, table
from galago.precision.linear import Dense
from training.motion.objective import heads
from training.motion.recipe import prepare
from training.scenes.recipe import prepare as prepare_scenes
from training.scenes.state import grid_positions
from training.state import State, optimisers, write


def fresh(run: Path, start: Path | None, device: torch.device, rate: float) -> State:
    """A run before its first step, in a folder that may be empty; `start` is a finished checkpoint to begin from.

    Without one it begins with random weights behind the first blocks of the tower of `scenes`, which knows colours and
    shapes: frames have the size of its crops.

    Raises CheckpointError where a start has other sizes or another tokenizer's number of tokens.
    """
    c = prepare(run).config
    torch.manual_seed(0)
    tensors = initial(c) | tower(c) if start is None else dict(read([start / "model.safetensors"], c))
    params = {n: nn.Parameter(t.float().to(device)) for n, t in tensors.items()}
    weights = {n: params[f"{n}.weight"] for n in table(c).linears}
    linears = {n: Dense(w, params.get(f"{n}.bias", w.new_zeros(len(w)))) for n, w in weights.items()}
    auxiliary = heads(c).to(device)
    average = {n: p.detach().clone() for n, p in params.items()}
    return State(
        c, params, average, assemble(params, linears, c), auxiliary, optimisers(params, auxiliary, rate, uses_muon),
        partial(export, c),
    )  # fmt: skip


def initial(c: SmolVLMConfig) -> dict[str, Tensor]:
    """Random tensors for every one of the model."""
    depth = {"text": c.text.n_layers, "vision": c.vision.n_layers}
    out: dict[str, Tensor] = {}
    for name, shape in shapes(c).items():
        if name.endswith("bias"):
            out[name] = torch.zeros(shape)
        elif len(shape) == 1:
            out[name] = torch.ones(shape)
        elif name == "vision.pos_emb":
            out[name] = grid_positions(c.vision.grid, c.vision.dim)[0]
        else:
            std = 0.5 if name == "text.wte" else shape[-1] ** -0.5
            if name.endswith(("attn.proj.weight", "mlp.fc2.weight", "mlp.down.weight")):
                std /= (2 * depth[name.split(".")[0]]) ** 0.5
            if name == "text.lm_head.weight":
                std *= 0.2
            out[name] = torch.randn(shape) * std
    return out


def tower(c: SmolVLMConfig) -> dict[str, Tensor]:
    """The tensors of `vision.` by name that the bundled `scenes` has in the same size, in this model's shapes."""
    scenes = Path(str(files("galago") / "assets" / "scenes"))
    seen = dict(read_moondream([scenes / "model.safetensors"], prepare_scenes(scenes)[0]))
    return {
        name: seen[name].reshape(shape)
        for name, shape in shapes(c).items()
        if name.startswith("vision.") and name in seen and seen[name].numel() == math.prod(shape)
    }


def uses_muon(name: str, tensor: Tensor) -> bool:
    """Inner matrices are orthogonalised; embeddings, outputs, norms and biases are not."""
    return tensor.ndim == 2 and ("blocks" in name or name == "vision.proj.weight")


def export(c: SmolVLMConfig, tensors: dict[str, Tensor], folder: Path) -> None:
    """Write the checkpoint as it is bundled: the Hub's names, float16."""
    taken: dict[str, int] = {}
    stored = {}
    for source in checkpoint_tensors(c):
        begin = taken.get(source.ours, 0)
        taken[source.ours] = end = begin + source.shape[0]
        part = tensors[source.ours][begin:end].reshape(source.shape)
        stored[source.name] = part.detach().to("cpu", torch.float16).contiguous()
    write(stored, folder)
