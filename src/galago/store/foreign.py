"""Checkpoints that no family of ours reads, and that the transformers library may."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

from galago.errors import CheckpointError, quoted
from galago.families import by_model_type

FOREIGN = "transformers"
"""Stands for a family in the files of such a checkpoint: the backend that runs it."""
BESIDE = (
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)
"""What transformers reads beside the weights and what our own families read."""


def is_foreign(config: Mapping[str, Any]) -> bool:
    """Whether a config.json is of a model that sees images and that none of our families runs.

    Whether transformers has that model is its backend's question: to ask takes seconds.
    """
    kind, made = config.get("model_type"), config.get("architectures")
    if not isinstance(kind, str) or kind in by_model_type():
        return False
    if kind == "vision-encoder-decoder":
        return True
    # A model without a head gives features, as CLIP does, and no text.
    return "vision_config" in config and not (isinstance(made, list) and made and str(made[0]).endswith("Model"))


def check_installed(config: Mapping[str, Any]) -> None:
    """Raise CheckpointError unless the library is here that runs a foreign checkpoint."""
    if find_spec("transformers") is None:
        raise CheckpointError(
            f"model_type {quoted(config.get('model_type'))} is run by the transformers library, which is not "
            "installed: pip install 'galago[transformers]'"
        )
