"""The revision of a checkpoint, as far as its tokenizer shows it."""

from galago.errors import CheckpointError, quoted
from galago.families.moondream.config import REVISIONS, PromptFamily, Revision
from galago.families.tokenizer import Tokenizer

STARMIE = "moondream/starmie-v1"
PROMPT_FAMILIES = {"starmie": "2025-06-21", "legacy": "2025-01-09"}


def prompt_family_of(tokenizer: Tokenizer) -> PromptFamily:
    """The prompt family: only the starmie tokenizer has control tokens at its start."""
    start = tuple(tokenizer.backend.id_to_token(i) for i in (0, 1))
    return "starmie" if start == ("<|endoftext|>", "<|md_reserved_0|>") else "legacy"


def decide_revision(stated: str | None, prompt_family: str | None, tokenizer: Tokenizer) -> Revision:
    """The revision whose prompts and sizes a checkpoint was trained with; its tensors do not tell.

    `stated` comes from the caller, the catalogue or config.json; `prompt_family` is our own key in
    config.json. Without either the tokenizer decides where it can. Raises CheckpointError where it
    cannot, for a name that does not exist, and for a tokenizer of the other family.
    """
    family = prompt_family_of(tokenizer)
    name = stated or (PROMPT_FAMILIES[prompt_family] if prompt_family else None)
    if name is None and family == "starmie":
        name = "2025-06-21"
    if name is None:
        raise CheckpointError(
            "the checkpoint leaves its revision open: state it with revision=... in galago.load, --revision on the "
            f'command line or "revision" in config.json; one of {", ".join(REVISIONS)}'
            f" (2025-06-21 also needs the tokenizer of {STARMIE})"
        )
    if name not in REVISIONS:
        raise CheckpointError(f"unknown revision {quoted(name)}; known are {', '.join(REVISIONS)}")
    revision = REVISIONS[name]
    if revision.family != family:
        needed = f"that of {STARMIE}" if revision.family == "starmie" else "the GPT-2 one of the older checkpoints"
        raise CheckpointError(
            f"revision {name} does not go with this tokenizer.json, which is {family}: it needs {needed}"
        )
    return revision
