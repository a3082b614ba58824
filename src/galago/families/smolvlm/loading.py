"""Loading a checkpoint of SmolVLM: its config, tokenizer and weights, and its outline without the weights."""

from pathlib import Path

import torch

from galago.errors import InvalidRequest
from galago.families import ModelFiles
from galago.families.family import Family, Outline
from galago.families.smolvlm import prompts
from galago.families.smolvlm.common import checked_tokenizer, config_of, token_id
from galago.families.smolvlm.model import SmolVLM
from galago.families.smolvlm.published import blueprint
from galago.families.smolvlm.skills import skill_steps
from galago.families.smolvlm.weights import HEAD, checkpoint_tensors, load, read, table
from galago.families.text_model import identity_of, kv_values
from galago.families.tokenizer import load_tokenizer
from galago.precision import Precision


def load_smolvlm(
    files: ModelFiles,
    *,
    precision: Precision,
    device: torch.device,
    revision: str | None = None,
    variants: Path | None = None,
) -> SmolVLM:
    """Read a checkpoint; there are no variants.

    Raises CheckpointError, and InvalidRequest for another revision than the checkpoint's.
    """
    config = config_of(files)
    if revision not in (None, config.name):
        raise InvalidRequest(f"{files.name} is of the revision {config.name}, not {revision}", "revision")
    tokenizer, eos_id = checked_tokenizer(files, config)
    return SmolVLM(
        name=files.name,
        identity=identity_of(files, config, precision, device),
        config=config,
        weights=load(files.weights, config, precision, device),
        tokenizer=tokenizer,
        eos_id=eos_id,
        device=device,
        precision=precision,
        steps=skill_steps,
    )


def outline(files: ModelFiles) -> Outline:
    """The outline of a checkpoint."""
    config, tokenizer = config_of(files), load_tokenizer(files.tokenizer)
    stored = {source.name: source.shape for source in checkpoint_tensors(config)}
    end, t = token_id(tokenizer, prompts.END), config.text
    return Outline(
        config.name,
        stored,
        HEAD,
        end,
        kv_values(t),
        t.max_context,
        table(config),
        lambda: read(files.weights, config),
    )


FAMILY = Family(load_smolvlm, outline, blueprint)
