"""Drawing the next token.

In numpy, on one thread: torch's threads would go on spinning for milliseconds after so little work, on cores that
the next step needs.
"""

import numpy as np
from numpy.typing import NDArray

from galago.request import Sampling

Row = NDArray[np.float32]


def probabilities(logits: Row, temperature: float, top_p: float = 1.0, min_p: float = 0.0) -> Row:
    """Logits [V] to the probabilities [V] that are drawn from; temperature > 0.

    A token falls when those before it, most likely first, already sum to more than top_p, or when it
    is less than min_p times as likely as the first. The first always stays. Raises ValueError for logits of which
    none is a number.
    """
    # Below this a temperature may vanish, and the quotient with it; the draw is greedy long before.
    scaled = logits / np.float32(max(temperature, 1e-6))
    p = np.exp(scaled - scaled.max())
    p /= p.sum()
    if not np.isfinite(p).all():
        raise ValueError("the logits are not finite")
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


def sample(logits: Row, sampling: Sampling, generator: np.random.Generator) -> int:
    """The next token from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits, sampling.temperature, sampling.top_p, sampling.min_p)
    tokens = np.flatnonzero(p)
    up_to = np.cumsum(p[tokens], dtype=np.float64)
    drawn = np.searchsorted(up_to, generator.random() * up_to[-1], side="right")
    return int(tokens[min(drawn, len(tokens) - 1)])
