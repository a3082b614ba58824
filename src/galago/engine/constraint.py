"""Text that fits a JSON schema: at each step only tokens are allowed after which it can still fit."""

import json
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from galago.errors import GenerationFailed, InvalidRequest


def vocabulary(tokenizer_json: str, size: int, eos_id: int) -> LLTokenizer:
    """A tokenizer as constraints need it, from its JSON; `size` is the number of logits. Slow: make it once."""
    return LLTokenizer(tokenizer_json, n_vocab=size, eos_token=eos_id)


class Constraint:
    """Constrains one text to a JSON schema. Blanks stand only where json.dumps writes them."""

    def __init__(self, words: LLTokenizer, json_schema: str) -> None:
        """Raises InvalidRequest, naming the part, for what is no JSON Schema or cannot be enforced."""
        try:
            # Blanks are fixed: a small model may write them without end. The rest a schema could loosen otherwise.
            grammar = LLMatcher.grammar_from_json_schema(
                json_schema,
                overrides={
                    "whitespace_flexible": False,
                    "item_separator": ", ",
                    "key_separator": ": ",
                    "coerce_one_of": False,
                    "lenient": False,
                    # Without \\u each text has one spelling. With it, an additional member could have the name of a
                    # listed one, which the grammar does not see.
                    "json_allowed_escapes": 'nrbtf\\"',
                },
            )
        except ValueError as error:
            raise InvalidRequest(f"json_schema is not a JSON object: {error}", "json_schema") from None
        if _requires_members(json.loads(json_schema)):
            raise InvalidRequest('json_schema cannot be enforced: unimplemented keys: ["minProperties"]', "json_schema")
        self._matcher = LLMatcher(words, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if self._matcher.is_error():
            raise InvalidRequest(f"json_schema cannot be enforced: {self._matcher.get_error()}", "json_schema")

    @property
    def is_complete(self) -> bool:
        """Whether no token can follow any more."""
        return bool(self._matcher.is_stopped())

    def mask(self, logits: NDArray[np.float32]) -> None:
        """Set the logits [V] of tokens that cannot come next to -inf; the end token can, where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        allowed = np.unpackbits(bits, bitorder="little")[: len(logits)]
        logits[: len(allowed)][allowed == 0] = -np.inf
        logits[len(allowed) :] = -np.inf

    def accept(self, token: int) -> None:
        """Advance by a token."""
        self._matcher.consume_token(token)
        self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            raise GenerationFailed(f"the JSON schema is too much work: {self._matcher.get_error()}")


def _requires_members(part: Any) -> bool:
    """Whether an object must have several members: the matcher counts a name that occurs twice, readers do not."""
    if isinstance(part, list):
        return any(map(_requires_members, part))
    if not isinstance(part, dict):
        return False
    least = part.get("minProperties")
    return (isinstance(least, int | float) and least > 1) or any(map(_requires_members, part.values()))
