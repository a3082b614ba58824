"""The tokens of a text with their log probabilities, emitted with the pieces of text that they became."""

from collections.abc import Callable
from dataclasses import replace

from galago.engine.sampling import FloatArray, log_probabilities, top_indices
from galago.request import Token


class TokenLog:
    """Keeps tokens until the text in which they begin is emitted."""

    def __init__(self, spell: Callable[[int], tuple[str, bytes | None]], top: int) -> None:
        """`spell` gives a token's text and bytes; `top` is how many of the likeliest are listed with each."""
        self._spell, self._top = spell, top
        self._kept: list[tuple[int, Token]] = []

    def add(self, begin: int, token: int, logits: FloatArray) -> None:
        """Add a token that was drawn from these logits [V], and whose text begins at character `begin`."""
        values = log_probabilities(logits)

        def entry(i: int) -> Token:
            return Token(*self._spell(i), float(values[i]))

        top = tuple(entry(i) for i in top_indices(values, self._top))
        self._kept.append((begin, replace(entry(token), top=top)))

    def pop_before(self, end: float) -> tuple[Token, ...]:
        """Remove and return the tokens that begin before this character."""
        n = next((i for i, (begin, _) in enumerate(self._kept) if begin >= end), len(self._kept))
        out, self._kept = self._kept[:n], self._kept[n:]
        return tuple(token for _, token in out)
