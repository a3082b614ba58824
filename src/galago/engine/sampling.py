"""Sampling the next token.

In numpy, on one thread: torch's threads would go on spinning for milliseconds after so little work, on cores that
the next step needs.
"""

from collections import Counter

import numpy as np

from galago.engine.arrays import Array, to_numpy
from galago.engine.constraint import Constraint, FloatArray
from galago.errors import NotANumber
from galago.request import Sampling


def finite_logits(logits: Array, what: str) -> FloatArray:
    """A copy of logits [...], which `what` is chosen from. Raises NotANumber where one is NaN or infinite.

    A greedy choice would be the first NaN: often token 0, the end.
    """
    row = to_numpy(logits)
    if not np.isfinite(row).all():
        raise NotANumber(what)
    return row


def log_probabilities(logits: FloatArray) -> FloatArray:
    """Logits [V] to the natural logarithms [V] of the probabilities that they stand for."""
    shifted = logits - logits.max()
    return shifted - np.log(np.exp(shifted).sum())


def top_indices(values: FloatArray, n: int) -> list[int]:
    """The indices of the n largest values, largest first; of equals the first, as in a greedy draw."""
    n = min(n, len(values))
    if not n:
        return []
    least = np.partition(values, -n)[-n]
    among = np.flatnonzero(values >= least)
    return [int(i) for i in among[np.argsort(-values[among], kind="stable")[:n]]]


def probabilities(
    logits: FloatArray, temperature: float, top_p: float = 1.0, min_p: float = 0.0, top_k: int | None = None
) -> FloatArray:
    """Logits [V] to the probabilities [V] that are drawn from; temperature > 0.

    With top_k only so many of the likeliest are looked at. Of those a token falls when the ones before it, most
    likely first, already sum to more than top_p, or when it is less than min_p times as likely as the first. The
    first always stays. Raises NotANumber for logits of which none is a number, or which a low temperature makes none.
    """
    # Below this a temperature may vanish, and the quotient with it; the draw is greedy long before.
    scaled = logits / np.float32(max(temperature, 1e-6))
    if top_k is not None and top_k < len(scaled):
        first = top_indices(scaled, top_k)
        scaled = np.where(np.isin(np.arange(len(scaled)), first), scaled, np.float32(-np.inf))
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    if not np.isfinite(p).all():
        raise NotANumber("the next token")
    kept = p >= min_p * p.max()
    if top_p < 1:
        # All those less likely than this sum to less than what may fall, so they do: most need not be sorted.
        likely = np.flatnonzero(p > 0.5 * (1 - top_p) / len(p))
        # Of two that are equally likely the later comes first, as in the reference.
        order = likely[np.argsort(p[likely], kind="stable")[::-1]]
        before = np.cumsum(p[order], dtype=np.float64) - p[order]
        among = np.zeros_like(kept)
        among[order[before <= top_p]] = True
        kept &= among
    p[~kept] = 0
    return p / p.sum()


def make_generator(seed: int | None) -> np.random.Generator:
    """A source of randomness; a seed means the same on every device."""
    return np.random.default_rng(None if seed is None else seed % 2**64)


def sample(logits: FloatArray, sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits, sampling.temperature, sampling.top_p, sampling.min_p, sampling.top_k)
    tokens = np.flatnonzero(p)
    up_to = np.cumsum(p[tokens], dtype=np.float64)
    drawn = np.searchsorted(up_to, generator.random() * up_to[-1], side="right")
    return int(tokens[min(drawn, len(tokens) - 1)])


class Sampler:
    """Draws the tokens of one answer from one generator of random numbers."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator = make_generator(sampling.seed)
        self._drawn: Counter[int] = Counter()

    def draw(self, logits: FloatArray, constraint: Constraint | None = None, left: int = 1) -> int:
        """Draw the next token from logits [V], which are overwritten, and advance the constraint by it.

        A constraint sees to it that the text can end within `left` tokens, this one among them.
        """
        self._adjust(logits)
        token = constraint.choose(logits, left, self._sample) if constraint else self._sample(logits)
        self._drawn[token] += 1
        return token

    def _sample(self, logits: FloatArray) -> int:
        return sample(logits, self.sampling, self._generator)

    def _adjust(self, logits: FloatArray) -> None:
        """Apply the penalties of tokens drawn so far, and the bias, to logits [V]: no bit changes where none is set."""
        s, penalty = self.sampling, self.sampling.repetition_penalty
        if penalty != 1 and self._drawn:
            ids = list(self._drawn)
            found = logits[ids]
            by = np.float32(min(max(penalty, 1e-6), 1e6))  # so that nothing becomes infinite
            logits[ids] = np.where(found > 0, found / by, found * by)
        if (s.frequency_penalty or s.presence_penalty) and self._drawn:
            counts = np.array(list(self._drawn.values()), np.float32)
            logits[list(self._drawn)] -= counts * np.float32(s.frequency_penalty) + np.float32(s.presence_penalty)
        if s.logit_bias:
            logits[list(s.logit_bias)] += np.array(list(s.logit_bias.values()), np.float32)
