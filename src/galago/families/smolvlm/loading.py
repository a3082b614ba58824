"""Loading a checkpoint of SmolVLM: its config, tokenizer and weights, and its outline without the weights."""

from pathlib import Path

import torch

from galago.errors import CheckpointError, InvalidRequest
from galago.families import ModelFiles
from galago.families.base import check_vocabulary, identity_of, kv_values
from galago.families.family import Family, Outline
from galago.families.smolvlm import prompts
from galago.families.smolvlm.config import SmolVLMConfig, make_config
from galago.families.smolvlm.model import SmolVLM
from galago.families.smolvlm.published import blueprint
from galago.families.smolvlm.skills import skill_steps
from galago.families.smolvlm.weights import HEAD, checkpoint_tensors, load, read, table
from galago.families.tokenizer import Tokenizer, load_tokenizer
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
    tokenizer = load_tokenizer(files.tokenizer, control=r"<[^<>\s]+>")
    check_vocabulary(tokenizer, config.text)
    needed = (prompts.START, prompts.END, prompts.AROUND, prompts.IMAGE)
    _, eos_id, _, image_id = (_token_id(tokenizer, name) for name in needed)
    if image_id != config.image_id:
        raise CheckpointError(f"config.json: image_token_id is {config.image_id}, in tokenizer.json it is {image_id}")
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


def _token_id(tokenizer: Tokenizer, name: str) -> int:
    found = tokenizer.backend.token_to_id(name)
    if found is None:
        raise CheckpointError(f"tokenizer.json has no {name}")
    return int(found)


def config_of(files: ModelFiles) -> SmolVLMConfig:
    """The config that the files give. Raises CheckpointError."""
    return make_config(files.config, files.preprocessor, files.video)


def outline(files: ModelFiles) -> Outline:
    """The outline of a checkpoint."""
    config, tokenizer = config_of(files), load_tokenizer(files.tokenizer)
    stored = {source.name: source.shape for source in checkpoint_tensors(config)}
    end, t = _token_id(tokenizer, prompts.END), config.text
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
