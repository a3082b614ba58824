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
    tensor: str
    """part of the name of one of their tensors that no other family has"""


@dataclass(frozen=True)
class ModelFiles:
    """The files of one model. `revision` may be unknown.

    `config` is its config.json, `preprocessor` its preprocessor_config.json (for images) and `video` that for videos;
    empty where there is none. `source` is the folder or file that was named, None for a model of the catalogue.
    `notes` are sentences on what is slower or larger than it could be. A GGUF file is its own `tokenizer`, and has a
    `projector` beside it, by which it sees.
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
    projector: Path | None = None

    @property
    def size(self) -> int:
        """Bytes of the weights, the tokenizer and the projector."""
        return sum(file.stat().st_size for file in {*self.weights, self.tokenizer, *filter(None, [self.projector])})

    @property
    def commit(self) -> str | None:
        """The commit of the hub's repository that the weights are of, as the cache of its client tells."""
        folder = self.weights[0].parent
        return folder.name if folder.parent.name == "snapshots" else None


FAMILIES = {
    "moondream": FamilyModule("galago.families.moondream.loading", ("moondream1",), "region.coord_encoder."),
    "smolvlm": FamilyModule("galago.families.smolvlm.loading", ("smolvlm", "idefics3"), ".modality_projection."),
}
"""By name. The first is that of a checkpoint without a config, as its fine-tunes may be."""


def by_model_type() -> dict[str, str]:
    """The name of the family for each `model_type`."""
    return {kind: name for name, listed in FAMILIES.items() for kind in listed.model_types}
