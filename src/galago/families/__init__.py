"""Model families: each turns one architecture's checkpoints into forward passes and skills.

Here stands what is told of them without PyTorch; see family.py for the rest.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Listed:
    """Where a family is, and which checkpoints are its."""

    module: str
    """its FAMILY is the family.Family"""
    model_types: tuple[str, ...]
    """as a config.json has them"""


FAMILIES = {
    "moondream": Listed("galago.families.moondream.model", ("moondream1",)),
    "smolvlm": Listed("galago.families.smolvlm.model", ("smolvlm", "idefics3")),
}
"""By name. The first is that of a checkpoint without a config, as its fine-tunes may be."""


def by_model_type() -> dict[str, str]:
    """The name of the family for each `model_type`."""
    return {kind: name for name, listed in FAMILIES.items() for kind in listed.model_types}
