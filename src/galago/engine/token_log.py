"""The tokens of a text with their probabilities, given out beside the pieces of text that they became."""

from collections.abc import Callable
from dataclasses import replace

from galago.engine.sampling import FloatArray, log_probabilities, top_indices
from galago.request import Token


class TokenLog:
    """Keeps tokens until the text in which they begin is given out."""

    def __init__(self, spelled: Callable[[int], tuple[str, bytes | None]], top: int) -> None:
        """`spelled` gives a token's text and bytes; `top` is how many of the likeliest are told with each."""
        self._spelled, self._top = spelled, top
        self._kept: list[tuple[int, Token]] = []

    def add(self, begin: int, token: int, logits: FloatArray) -> None:
        """A token that was drawn from these logits [V], and whose text begins at that character."""
        values = log_probabilities(logits)

        def told(i: int) -> Token:
            return Token(*self._spelled(i), float(values[i]))

        top = tuple(told(i) for i in top_indices(values, self._top))
        self._kept.append((begin, replace(told(token), top=top)))

    def before(self, end: float) -> tuple[Token, ...]:
        """Those that begin before this character, each only once."""
        n = next((i for i, (begin, _) in enumerate(self._kept) if begin >= end), len(self._kept))
        out, self._kept = self._kept[:n], self._kept[n:]
        return tuple(token for _, token in out)
