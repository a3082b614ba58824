"""Drawing the next token."""

import torch
from torch import Tensor

from galago.request import Sampling


def probabilities(logits: Tensor, temperature: float, top_p: float = 1.0, min_p: float = 0.0) -> Tensor:
    """Logits [..., V] to the float32 probabilities [..., V] that are drawn from; temperature > 0.

    A token falls when those before it, most likely first, already sum to more than top_p, or when it
    is less than min_p times as likely as the first. The first always stays.
    """
    # Below this a float32 temperature may vanish, and the quotient with it; the draw is greedy long before.
    p, order = torch.softmax(logits.float() / max(temperature, 1e-6), dim=-1).sort(dim=-1, descending=True)
    p = p.masked_fill((p.cumsum(-1) - p > top_p) | (p < min_p * p[..., :1]), 0.0)
    return torch.zeros_like(p).scatter(-1, order, p / p.sum(-1, keepdim=True))


def make_generator(seed: int | None) -> torch.Generator:
    """A source of randomness on the CPU, so that a seed means the same on every device."""
    generator = torch.Generator()
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed % 2**64)
    return generator


def sample(logits: Tensor, sampling: Sampling, generator: torch.Generator) -> int:
    """The next token from logits [V]."""
    if sampling.temperature == 0:
        return int(logits.argmax())
    p = probabilities(logits.cpu(), sampling.temperature, sampling.top_p, sampling.min_p)
    return int(torch.multinomial(p, 1, generator=generator))
