"""A tiny model of the `motion` architecture: a folder of what it needs, with or without random weights."""

from pathlib import Path
from unittest.mock import patch

import torch

from training.motion import recipe, state

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
TEXT = {
    "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 16,
}  # fmt: skip


def make_folder(folder: Path) -> Path:
    """Config and a tokenizer that knows few words."""
    sizes = {"VISION": recipe.VISION | VISION, "TEXT": recipe.TEXT | TEXT, "CORPUS": 60}
    with patch.multiple(recipe, **sizes):
        recipe.make_folder(folder)
    return folder


def write(folder: Path) -> Path:
    """The same with weights: a model that knows nothing."""
    fresh = state.fresh(make_folder(folder), None, torch.device("cpu"), 1e-3)
    fresh.export(fresh.average, folder)
    return folder
