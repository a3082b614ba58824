"""Outliers put into a checkpoint: channels that are huge, as large models have them, at no change of function.

A few channels of a large model carry activations a hundred times those of the others, which are then lost
where rows of activations share a scale. Small models lack such channels, so without them a small model's
scores say little of what a precision does to a large one.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from galago.checkpoint.tensors import read_tensors, write_tensors
from galago.families import ModelFiles

LEAST = 3
"""Channels of each place that become huge, also where 1 % would be fewer."""


def with_outliers(tensors: Mapping[str, Tensor], factor: float, seed: int = 0) -> dict[str, Tensor]:
    """A Moondream2 checkpoint, float32, where 1 % of the channels of each place are `factor` times as large.

    Behind a norm its gain and bias go up, and the columns of the weights that read it down; in attention the
    rows that make values go up, and the columns of the output projection down. Each query head must have
    keys and values of its own.
    """
    made = {name.removeprefix("model."): tensor.float().clone() for name, tensor in tensors.items()}
    generator = torch.Generator().manual_seed(seed)

    def chosen(width: int) -> Tensor:
        return torch.randperm(width, generator=generator)[: max(LEAST, width // 100)]

    def behind_norm(norm: str, *readers: str) -> None:
        width = len(made[f"{norm}.weight"])
        huge = chosen(width)
        for part in ("weight", "bias"):
            made[f"{norm}.{part}"][huge] *= factor
        for reader in readers:
            # The projection of the image reads two views side by side.
            made[f"{reader}.weight"].unflatten(1, (-1, width))[:, :, huge] /= factor

    def among_values(attention: str) -> None:
        proj = made[f"{attention}.proj.weight"]
        width = proj.shape[1]
        assert len(made[f"{attention}.qkv.weight"]) == 3 * width, "query heads share keys and values"
        huge = chosen(width)
        for part in ("weight", "bias"):
            made[f"{attention}.qkv.{part}"][-width:][huge] *= factor
        proj[:, huge] /= factor

    for name in sorted(made):
        block = name.removesuffix(".attn.qkv.weight")
        if block == name:
            continue
        if block.startswith("text."):
            behind_norm(f"{block}.ln", f"{block}.attn.qkv", f"{block}.mlp.fc1")
        else:
            behind_norm(f"{block}.ln1", f"{block}.attn.qkv")
            behind_norm(f"{block}.ln2", f"{block}.mlp.fc1")
        among_values(f"{block}.attn")
    behind_norm("text.post_ln", "text.lm_head")
    behind_norm("vision.post_ln", "vision.proj_mlp.fc1")
    return made


def write_with_outliers(files: ModelFiles, folder: Path, factor: float, seed: int = 0) -> Path:
    """The same as a checkpoint folder that can be loaded."""
    folder.mkdir(parents=True, exist_ok=True)
    made = with_outliers(dict(read_tensors(files.weights)), factor, seed)
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in made.items()}
    write_tensors(folder / "model.safetensors", layout, made.items(), {"format": "pt"})
    shutil.copy(files.tokenizer, folder / "tokenizer.json")
    (folder / "config.json").write_text(json.dumps(dict(files.config)), encoding="utf-8")
    return folder
