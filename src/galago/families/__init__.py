"""Model families: each turns one architecture's checkpoints into forward passes and skills.

This file needs no PyTorch; see family.py for the rest.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class FamilyModule:
    """The module of a family, and the checkpoints that belong to it."""

    module: str
    """its FAMILY is the family.Family"""
    model_types: tuple[str, ...]
    """as a config.json has them"""


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model. `revision` may be unknown.

    `config` is its config.json, `preprocessor` its preprocessor_config.json (for images) and `video` that for videos;
    empty where there is none. `source` is the folder or file that was named, None for a model of the catalogue.
    `notes` are sentences on what is slower or larger than it could be.
    """

    name: str
    family: str
    weights: tuple[Path, ...]
    tokenizer: Path
    config: Mapping[str, Any] = field(default_factory=dict)
    revision: str | None = None
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    video: Mapping[str, Any] = field(default_factory=dict)
    source: Path | None = None
    notes: tuple[str, ...] = ()


FAMILIES = {
    "moondream": FamilyModule("galago.families.moondream.loading", ("moondream1",)),
    "smolvlm": FamilyModule("galago.families.smolvlm.loading", ("smolvlm", "idefics3")),
}
"""By name. The first is that of a checkpoint without a config, as its fine-tunes may be."""


def by_model_type() -> dict[str, str]:
    """The name of the family for each `model_type`."""
    return {kind: name for name, listed in FAMILIES.items() for kind in listed.model_types}
