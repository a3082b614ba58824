"""The way to a valid end of a JSON text under a grammar in few tokens, found by search."""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from llguidance import LLMatcher, LLTokenizer
from numpy.typing import NDArray

DIGITS = b"0123456789"
IN_NUMBER = DIGITS + b".eE+-"
# Which bytes are tried first at the start of a value, in a number and in a string that may not end yet.
FIRST = b'0"[{n951tf'
# Texts of equal length after which the same may come can still differ in what comes later, numbers above all.
SAME_STATES, SAME_NUMBERS = 3, 32
ANY_TEXT = 64  # where more bytes than these may come
MAX_NAME = 64
MAX_TRIES = 10_000  # tokens tried in one search: some 10 us each


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer as constraints need it, and what its tokens spell."""

    tokenizer: LLTokenizer
    eos_id: int

    @cached_property
    def spellings(self) -> list[bytes]:
        return [self.tokenizer.decode_bytes([i]) for i in range(self.tokenizer.vocab_size)]

    @cached_property
    def byte_ids(self) -> dict[int, int]:
        """Token ids of single bytes, in the order in which they are tried."""
        found = {s[0]: i for i, s in enumerate(self.spellings) if len(s) == 1 and i != self.eos_id}
        return {byte: found[byte] for byte in dict.fromkeys((*FIRST, *range(256))) if byte in found}

    def allowed_bytes(self, mask: bytes) -> list[int]:
        """The single bytes whose tokens a matcher's bit mask allows, in that order."""
        bytes_, ids = self._bytes_and_ids
        return bytes_[np.frombuffer(mask, np.uint8)[ids >> 3] >> (ids & 7) & 1 == 1].tolist()

    @cached_property
    def _bytes_and_ids(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        return np.array(list(self.byte_ids)), np.array(list(self.byte_ids.values()))

    @cached_property
    def digits(self) -> NDArray[np.uint8]:
        """How many digits each token [vocab] adds to a number that it continues, and the one that must follow it."""
        counts = []
        for text in self.spellings:
            start = text[: len(text) - len(text.lstrip(IN_NUMBER))]
            is_open = start == text != b"" and not text[-1:].isdigit()
            counts.append(min(sum(byte in DIGITS for byte in start) + is_open, 255))
        return np.array(counts, np.uint8)


@dataclass(frozen=True)
class Place:
    """Where in JSON a text stops."""

    in_string: bool = False
    escaped: bool = False
    digits: int = 0
    """of the number that it may go on with"""
    ended: int = 0
    """commas and closing brackets so far: how far it is in what has to come"""
    string: bytes = b""
    """the start of the string that it is in"""

    def after(self, text: Iterable[int]) -> "Place":
        """The place after some more bytes."""
        in_string, escaped, digits, ended = self.in_string, self.escaped, self.digits, self.ended
        string = self.string
        for byte in text:
            if in_string:
                in_string, escaped = byte != ord('"') or escaped, byte == ord("\\") and not escaped
                string = (string + bytes([byte]))[:MAX_NAME]
            elif byte == ord('"'):
                in_string, digits, string = True, 0, b""
            else:
                digits = digits + (byte in DIGITS) if byte in IN_NUMBER else 0
                ended += byte in b",]}"
        return Place(in_string, escaped, digits, ended, string if in_string else b"")


@dataclass(frozen=True)
class _State:
    matcher: LLMatcher
    place: Place
    tokens: tuple[int, ...] = field(default=())

    def then(self, words: Vocabulary, token: int) -> "_State | None":
        """The state after a token and what the grammar forces to follow it; None where that is too much work for it."""
        matcher = self.matcher.deep_copy()
        if not matcher.consume_token(token):
            return None
        return _State(matcher, self.place.after(words.spellings[token]), (*self.tokens, token)).forced(words)

    def forced(self, words: Vocabulary) -> "_State | None":
        """The state after what the grammar forces to come next; advances this one's matcher."""
        text = self.matcher.compute_ff_bytes()
        tokens = words.tokenizer.tokenize_bytes(text) if text else []
        if not self.matcher.consume_tokens(tokens):
            return None
        return _State(self.matcher, self.place.after(text), (*self.tokens, *tokens))

    def choices(self, words: Vocabulary, required: Collection[bytes]) -> list[int]:
        """Single bytes that may lead to the shortest end: where a value can end, it does, and members that may be left
        out are."""
        allowed = words.allowed_bytes(self.matcher.compute_bitmask())
        if not self.place.escaped:
            for end in b'"' if self.place.in_string else b"}],":
                if end in allowed:
                    return [end]
            if self.place.in_string:
                start, n = self.place.string, len(self.place.string)
                following = {name[n] for name in required if name.startswith(start) and len(name) > n}
                allowed = [byte for byte in allowed if byte in following] or allowed
        if len(allowed) > ANY_TEXT:
            allowed = [byte for byte in allowed if 32 <= byte < 127 and byte != ord("\\")]
        return allowed


def shortest_end(
    matcher: LLMatcher,
    words: Vocabulary,
    place: Place,
    limit: int,
    breadth: tuple[int, int],
    required: Collection[bytes] = (),
) -> tuple[int, ...] | None:
    """At most `limit` tokens after which the text that `matcher` has seen may end, or None where none were found.

    A beam search in steps of single bytes and of whole stretches that the grammar forces. `breadth` says how many ways
    of each length are followed, and how many letters tried where any text may come; MAX_TRIES bound it. Names in
    `required`, as JSON spells them, go before others. So it may miss the shortest, but what it gives is a way.
    """
    width, letters = breadth
    start = _State(matcher.deep_copy(), place).forced(words)
    waiting: defaultdict[int, list[tuple[int, _State]]] = defaultdict(list)
    if start:
        waiting[len(start.tokens)].append((0, start))
    tries = 0
    for length in range(limit + 1):
        seen: Counter[tuple[bytes, int]] = Counter()
        followed = 0
        reached = sorted(waiting.pop(length, ()), key=lambda r: (-r[1].place.ended, r[0]))
        for _, state in reached:
            if state.matcher.is_accepting():
                return state.tokens
        for rank, state in reached:
            seen[key := (state.matcher.compute_bitmask(), state.place.ended)] += 1
            if seen[key] > (SAME_NUMBERS if state.place.digits else SAME_STATES):
                continue
            followed += 1
            if followed > width or tries > MAX_TRIES:
                break
            choices, alike = state.choices(words, required), set[bytes]()
            for i, byte in enumerate(choices[: letters if len(choices) > ANY_TEXT else 2 * width]):
                tries += 1
                after = state.then(words, words.byte_ids[byte])
                if after and len(choices) > ANY_TEXT:  # one letter is as good as another after which the same may come
                    mask = after.matcher.compute_bitmask()
                    after = None if mask in alike else after
                    alike.add(mask)
                if after:
                    waiting[len(after.tokens)].append((rank + i, after))
        if not waiting:
            break
    return None
