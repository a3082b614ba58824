"""Text that fits a JSON schema: at each step only tokens are allowed after which it can still fit and end in time."""

import json
from collections import deque
from collections.abc import Callable, Iterator
from itertools import takewhile
from typing import Any

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from numpy.typing import NDArray

from galago.engine.closed_schema import close_schema
from galago.engine.shortest_end import Place, Vocabulary, shortest_end
from galago.errors import GenerationFailed, InvalidRequest

MAX_DIGITS = 19  # of a number, as in 64 bits
NARROW, WIDE = (4, 1), (64, 99)  # Searches for a way to the end: while the text is written, and before it.
MAX_DRAWS = 4

FloatArray = NDArray[np.float32]
TokenPath = tuple[int, ...]
"""Tokens after which a text may end."""


def vocabulary(tokenizer_json: str, size: int, eos_id: int) -> Vocabulary:
    """A tokenizer as constraints need it, from its JSON; `size` is the number of logits. Slow: make it once."""
    return Vocabulary(LLTokenizer(tokenizer_json, n_vocab=size, eos_token=eos_id), eos_id)


class Constraint:
    """Constrains one text to a JSON schema, and to an end within a number of tokens.

    Blanks stand only where json.dumps writes them, numbers have at most MAX_DIGITS digits where the schema does not ask
    for more, and objects have no members that it does not speak of (see closed_schema). From the first token on a way
    to a valid end is known. A token after which none is found that fits into what is left is drawn again, and after
    some tries it is the next of that way. After most tokens the way that was known still leads to an end, which one
    call tells. Where none is found at the start, the text is cut.
    """

    def __init__(self, words: Vocabulary, json_schema: str) -> None:
        """Raises InvalidRequest, naming the part, for what is no JSON Schema or cannot be enforced."""
        json_schema = close_schema(json_schema)
        try:
            # Blanks are fixed: a small model may write them without end. The rest a schema could loosen otherwise.
            grammar = LLMatcher.grammar_from_json_schema(
                json_schema,
                overrides={
                    "whitespace_flexible": False,
                    "whitespace_pattern": None,
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
        schema = json.loads(json_schema)
        if _requires_members(schema):
            raise InvalidRequest('json_schema cannot be enforced: unimplemented keys: ["minProperties"]', "json_schema")
        self._matcher = LLMatcher(words.tokenizer, grammar, log_level=0, limits=LLParserLimits(verbose_errors=False))
        if self._matcher.is_error():
            raise InvalidRequest(f"json_schema cannot be enforced: {self._matcher.get_error()}", "json_schema")
        self._words = words
        self._required = {json.dumps(name, ensure_ascii=False)[1:-1].encode() for name in _required_names(schema)}
        self._place = Place()
        self._is_begun = False
        self._is_last = False
        self._way: TokenPath | None = None
        self._openings: deque[TokenPath] = deque(maxlen=8)
        self.is_shortened = False
        """Whether the limit on tokens changed the text."""

    @property
    def is_complete(self) -> bool:
        """Whether no token can follow any more."""
        return bool(self._matcher.is_stopped())

    def choose(self, logits: FloatArray, left: int, draw: Callable[[FloatArray], int]) -> int:
        """Draw the next of at most `left` tokens from logits [V], which are overwritten, and advance by it."""
        if not self._is_begun:
            self._is_begun = True
            self._way = self._find_way(self._matcher, self._place, left)
            if self._way is None:
                self._way = shortest_end(self._matcher, self._words, self._place, left, WIDE)
        self.mask(logits)
        token = draw(logits)
        if self._way is not None:
            token = self._choose_in_time(token, self._way, logits, left, draw)
        self.accept(token)
        return token

    def _choose_in_time(
        self, token: int, way: TokenPath, logits: FloatArray, left: int, draw: Callable[[FloatArray], int]
    ) -> int:
        """This token or one drawn instead, so that a way is known to what is left after it."""
        if len(way) == left and not self._is_last:
            self._way = way = self._find_way(self._matcher, self._place, left) or way
            self._is_last = len(way) == left
        for _ in range(MAX_DRAWS):
            if len(way) == left or logits[token] == -np.inf:
                break
            if self._keeps_way(token, way, left - 1):
                return token
            self.is_shortened = True
            logits[token] = -np.inf
            token = draw(logits) if logits.max() > -np.inf else token
        following, self._way = (way[0], way[1:]) if way else (self._words.eos_id, way)
        self.is_shortened |= token != following
        return following

    def mask(self, logits: FloatArray) -> None:
        """Set the logits [V] of tokens that cannot come next to -inf; the end token can, where the text may end."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        self._check()
        digits = self._words.digits
        allowed = np.unpackbits(bits, bitorder="little")[: min(len(logits), len(digits))]
        if not self._place.in_string:
            short = allowed & (digits[: len(allowed)] <= MAX_DIGITS - self._place.digits)
            allowed = short if short.any() else allowed
        logits[: len(allowed)][allowed == 0] = -np.inf
        logits[len(allowed) :] = -np.inf

    def accept(self, token: int) -> None:
        """Advance by a token."""
        self._matcher.consume_token(token)
        self._check()
        self._place = self._place.after(self._words.spellings[token])

    def _keeps_way(self, token: int, known: TokenPath, left: int) -> bool:
        """Whether after a token a way to the end of at most `left` tokens is found; it is kept then."""
        if token == self._words.eos_id:
            return True
        after = self._matcher.deep_copy()
        after.consume_token(token)
        for way in self._guesses(known, token):
            if len(way) <= left and after.validate_tokens([*way, self._words.eos_id]) == len(way) + 1:
                self._way = way
                return True
        found = self._find_way(after, self._place.after(self._words.spellings[token]), left)
        if found is None:
            return False
        shared = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(found), reversed(known), strict=False))
        self._openings.appendleft(found[: len(found) - len(list(shared))])
        self._way = found
        return True

    def _find_way(self, matcher: LLMatcher, place: Place, left: int) -> TokenPath | None:
        return shortest_end(matcher, self._words, place, left, NARROW, self._required)

    def _guesses(self, known: TokenPath, token: int) -> Iterator[TokenPath]:
        """Ways that may lead on after a token: mostly it is one of the known way, or text of a value that ends as
        before, or it opens a value as others did."""
        if token in known:
            yield known[known.index(token) + 1 :]
        yield known
        for opening in self._openings:
            for gone in range(3):
                yield opening + known[gone:]

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


def _required_names(part: Any) -> Iterator[str]:
    """The names of members that any object of a schema must have."""
    if isinstance(part, dict) and isinstance(names := part.get("required"), list):
        yield from (name for name in names if isinstance(name, str))
    for inner in part.values() if isinstance(part, dict) else part if isinstance(part, list) else ():
        yield from _required_names(inner)
