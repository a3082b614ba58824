"""How far a precision moves what a model says: the divergence of its distributions from a reference's.

The reference answers greedily; the other model is then fed exactly what the reference was, so that every
position of both has the same past, and what differs is the numbers alone.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.sampling import finite_logits
from galago.engine.step import Feed, Start, StepOutput
from galago.families.base import DecoderModel
from galago.request import Request, Sampling, Skill

NAMES = {"logits": "the next token"}
"""What is chosen by a head, where its name does not say so."""
Logits = dict[str, list[Tensor]]
"""What each of the model's heads gave: [..., choices] each."""


@dataclass(frozen=True)
class ReferenceAnswer:
    """What the reference was fed to answer, step by step."""

    skill: Skill
    feeds: tuple[Feed, ...]


@dataclass(frozen=True)
class Divergence:
    """Of many distributions from the reference's, in nats (Kullback-Leibler)."""

    mean: float
    largest: float
    agreed: float
    """share of them whose likeliest choice is the reference's"""
    count: int


@torch.inference_mode()
def reference_answers(
    reference: DecoderModel, encoded: EncodedImage, skills: Iterable[Skill], max_tokens: int | None = None
) -> list[ReferenceAnswer]:
    """The reference's greedy answers, of at most so many tokens where they are text."""
    found = []
    for skill in skills:
        steps = reference.skill(Request(skill, encoded, Sampling(max_tokens=max_tokens)))
        cache, feeds = reference.new_cache(encoded), []
        answer: EncodedImage | StepOutput | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                break
            answer = encoded if isinstance(step, Start) else None
            if isinstance(step, Feed):
                feeds.append(step)
                (answer,) = reference.forward([cache], [step])
        found.append(ReferenceAnswer(skill, tuple(feeds)))
    return found


@torch.inference_mode()
def replay_logits(m: DecoderModel, image: Image.Image, answers: Sequence[ReferenceAnswer]) -> Logits:
    """What a model would choose from, fed with the reference's answers about the image. Raises NotANumber."""
    encoded = m.encode_image(image)
    found: Logits = {head: [] for head in m.heads}
    for answer in answers:
        cache = m.new_cache(encoded)
        for feed in answer.feeds:
            fed = feed.input.to(m.device, m.dtype if feed.input.is_floating_point() else None)
            # Where the reference ended by a token, nothing else was chosen.
            ended = feed is answer.feeds[-1] and "logits" in feed.heads
            (out,) = m.forward([cache], [Feed(fed, ("logits",) if ended else feed.heads)])
            for head, read in out.heads.items():
                found[head].append(torch.from_numpy(finite_logits(read, NAMES.get(head, f"a {head}"))))
    return found


def divergence(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Divergence:
    """Of logits [..., choices], pair by pair."""
    p, q = (torch.cat([x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0) for x in xs]) for xs in (reference, other))
    lp, lq = p.double().log_softmax(-1), q.double().log_softmax(-1)
    each = (lp.exp() * (lp - lq)).sum(-1)
    agreed = (p.argmax(-1) == q.argmax(-1)).double().mean()
    return Divergence(float(each.mean()), float(each.max()), float(agreed), len(each))
