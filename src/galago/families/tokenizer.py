"""Text to token ids and back, for every family."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path

from tokenizers import AddedToken
from tokenizers import Tokenizer as Backend

from galago.checkpoint.tensors import unreadable_file
from galago.errors import CheckpointError


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

    def spell(self, id: int) -> tuple[str, bytes | None]:
        """The text and the bytes of a token; None for those of control tokens and of ids that no token has."""
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


@cache
def _bytes_by_character() -> dict[str, int]:
    """How byte-level vocabularies write bytes: those that can be seen as they are, the others from U+0100 on."""
    seen = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(0x100 + i): byte for i, byte in enumerate(others)}


def load_tokenizer(file: Path, control: str = r"<\|.*\|>") -> Tokenizer:
    """Read a tokenizer.json, where tokens that match `control` stand for no text.

    What a trainer left in it for its own batches is turned off: cutting and filling up, and pieces left out by chance.
    Raises CheckpointError if it is missing, damaged or of another kind.
    """
    if not file.is_file():
        raise CheckpointError(f"{file} is missing")
    try:
        backend = Backend.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise unreadable_file(file, f"is not a readable tokenizer: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    if getattr(backend.model, "dropout", None):
        backend.model.dropout = None
    # Control tokens that the file does not flag as special would be read out of user text.
    added = backend.get_added_tokens_decoder().values()
    unflagged = [t.content for t in added if not t.special and re.fullmatch(control, t.content)]
    backend.add_special_tokens([AddedToken(content, special=True, normalized=False) for content in unflagged])
    backend.encode_special_tokens = True
    return Tokenizer(backend)
