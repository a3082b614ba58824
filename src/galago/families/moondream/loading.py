"""Loading a checkpoint of Moondream: its config, tokenizer and weights, and its outline without the weights."""

from pathlib import Path

import torch

from galago.families import ModelFiles
from galago.families.family import Blueprint, Family, Outline
from galago.families.moondream.common import config_of
from galago.families.moondream.model import Moondream
from galago.families.moondream.skills import skill_steps
from galago.families.moondream.weights import (
    FLOAT32,
    load,
    read,
    shapes,
    table,
)
from galago.families.text_model import check_vocabulary, identity_of, kv_values
from galago.families.tokenizer import load_tokenizer
from galago.precision import Precision


def load_moondream(
    files: ModelFiles,
    *,
    precision: Precision,
    device: torch.device,
    revision: str | None = None,
    variants: Path | None = None,
) -> Moondream:
    """Read a checkpoint; the caller's revision goes before the catalogue's and config.json's.

    `variants` is the folder of LoRA files. Raises CheckpointError.
    """
    tokenizer = load_tokenizer(files.tokenizer)
    config = config_of(files, tokenizer, revision)
    check_vocabulary(tokenizer, config.text)
    return Moondream(
        name=files.name,
        identity=identity_of(files, config.revision, precision, device),
        config=config,
        weights=load(files.weights, config, precision, device),
        tokenizer=tokenizer,
        eos_id=config.tokens.eos_id,
        device=device,
        precision=precision,
        steps=skill_steps,
        variants=variants,
    )


def outline(files: ModelFiles) -> Outline:
    """The outline of a checkpoint."""
    config = config_of(files, load_tokenizer(files.tokenizer))
    stored = {f"model.{name}": shape for name, shape in shapes(config).items()}
    exact = frozenset(f"model.{name}" for name in FLOAT32)
    head, end, t = "model.text.lm_head.bias", config.tokens.eos_id, config.text
    return Outline(
        config.revision.name,
        stored,
        head,
        end,
        kv_values(t),
        t.max_context,
        table(config),
        lambda: read(files.weights, config),
        exact,
    )


def blueprint(name: str, other: ModelFiles) -> Blueprint:
    """A blueprint of the published sizes. The revision is that of the tokenizer: the shapes are the same in all, and
    which ids a text becomes does not matter here, only that they exist."""
    config = {"model_type": "moondream1", "revision": other.revision}
    return Blueprint(name, config, other.tokenizer, "moondream")


FAMILY = Family(load_moondream, outline, blueprint)
