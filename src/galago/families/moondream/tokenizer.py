"""Text to token ids and back, and what a tokenizer tells about its checkpoint."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from galago.errors import CheckpointError
from galago.families.moondream.config import REVISIONS, Family, Revision

STARMIE = "moondream/starmie-v1"
_PROMPT_FAMILIES = {"starmie": "2025-06-21", "legacy": "2025-01-09"}


@dataclass(frozen=True)
class Tokenizer:
    """The tokenizer of a checkpoint. Text never becomes a control token, whatever it spells."""

    backend: Backend

    def encode(self, text: str) -> list[int]:
        """Ids of the text alone: nothing is added before or after."""
        return list(self.backend.encode(text, add_special_tokens=False).ids)

    def decode(self, ids: Sequence[int]) -> str:
        """Text of the ids without control tokens; bytes that are not UTF-8 become U+FFFD."""
        return str(self.backend.decode(list(ids), skip_special_tokens=True))

    def spelled(self, id: int) -> tuple[str, bytes | None]:
        """A token's text and its bytes; None for control tokens, and for ids that no token has."""
        added = self._added.get(id)
        if added is not None:
            return added.content, None if added.special else added.content.encode()
        characters = self.backend.id_to_token(id)
        if characters is None:
            return "", None
        data = bytes(_bytes_by_character()[c] for c in characters)
        return data.decode("utf-8", "replace"), data

    @cached_property
    def _added(self) -> dict[int, AddedToken]:
        return dict(self.backend.get_added_tokens_decoder())

    @property
    def family(self) -> Family:
        """The prompt family: only the starmie tokenizer has control tokens at its start."""
        start = (self.backend.id_to_token(0), self.backend.id_to_token(1))
        return "starmie" if start == ("<|endoftext|>", "<|md_reserved_0|>") else "legacy"


@cache
def _bytes_by_character() -> dict[str, int]:
    """How byte-level vocabularies write bytes: those that can be seen as they are, the others from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def load_tokenizer(file: Path) -> Tokenizer:
    """Read a tokenizer.json. Raises CheckpointError if it is missing or damaged."""
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise CheckpointError(f"{file}: not a readable tokenizer: {error}") from error
    # Control tokens that the file does not flag as special would be read out of user text.
    added = backend.get_added_tokens_decoder().values()
    unflagged = [t.content for t in added if not t.special and re.fullmatch(r"<\|.*\|>", t.content)]
    backend.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in unflagged])
    backend.encode_special_tokens = True
    return Tokenizer(backend)


def decide_revision(stated: str | None, prompt_family: str | None, tokenizer: Tokenizer) -> Revision:
    """The revision whose prompts and sizes a checkpoint was trained with; its tensors do not tell.

    `stated` comes from the caller, the catalogue or config.json; `prompt_family` is our own key in
    config.json. Without either the tokenizer decides where it can. Raises CheckpointError where it
    cannot, for a name that does not exist, and for a tokenizer of the other family.
    """
    if prompt_family is not None and prompt_family not in _PROMPT_FAMILIES:
        raise CheckpointError(
            f"config.json: unknown prompt_family {prompt_family!r}; known are {', '.join(_PROMPT_FAMILIES)}"
        )
    name = stated or (_PROMPT_FAMILIES[prompt_family] if prompt_family else None)
    if name is None and tokenizer.family == "starmie":
        name = "2025-06-21"
    if name is None:
        raise CheckpointError(
            "the checkpoint leaves its revision open: state it with revision=... in galago.load, --revision on the "
            f'command line or "revision" in config.json; one of {", ".join(REVISIONS)}'
            f" (2025-06-21 also needs the tokenizer of {STARMIE})"
        )
    if name not in REVISIONS:
        raise CheckpointError(f"unknown revision {name!r}; known are {', '.join(REVISIONS)}")
    revision = REVISIONS[name]
    if revision.family != tokenizer.family:
        needed = f"that of {STARMIE}" if revision.family == "starmie" else "the GPT-2 one of the older checkpoints"
        raise CheckpointError(
            f"revision {name} does not go with this tokenizer.json, which is {tokenizer.family}: it needs {needed}"
        )
    return revision
