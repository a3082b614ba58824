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
from galago.engine.sampling import numbers
from galago.engine.step import Feed, Output, Start
from galago.families.moondream.model import Moondream
from galago.families.moondream.region import coordinate_logits, size_logits
from galago.request import Detect, DetectGaze, Point, Request, Sampling, Skill

PLACES = {Detect: ("coordinate", "coordinate", "size"), Point: ("coordinate",) * 2, DetectGaze: ("coordinate",) * 2}
"""What the positions of one object choose, over and over."""
Logits = dict[str, list[Tensor]]
"""By what they choose, token, coordinate or size: [..., choices] each."""


@dataclass(frozen=True)
class Answered:
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
def answered(reference: Moondream, encoded: EncodedImage, skills: Iterable[Skill]) -> list[Answered]:
    """The reference's greedy answers."""
    found = []
    for skill in skills:
        steps = reference.skill(Request(skill, encoded, Sampling()))
        cache, feeds = reference.new_cache(encoded), []
        answer: EncodedImage | Output | None = None
        while True:
            try:
                step = steps.send(answer)
            except StopIteration:
                break
            answer = encoded if isinstance(step, Start) else None
            if isinstance(step, Feed):
                feeds.append(step)
                (answer,) = reference.forward([cache], [step])
        found.append(Answered(skill, tuple(feeds)))
    return found


@torch.inference_mode()
def logits(m: Moondream, image: Image.Image, answers: Sequence[Answered]) -> Logits:
    """What a model would choose from, fed with the reference's answers about the image. Raises NotANumber."""
    encoded = m.encode_image(image)
    found: Logits = {"token": [], "coordinate": [], "size": []}
    for answer in answers:
        cache = m.new_cache(encoded)
        places = PLACES.get(type(answer.skill))
        for i, feed in enumerate(answer.feeds):
            fed = feed.input.to(m.device, m.dtype if feed.input.is_floating_point() else None)
            (out,) = m.forward([cache], [Feed(fed, feed.logits)])
            if out.logits is not None:
                found["token"].append(torch.from_numpy(numbers(out.logits, "the next token")))
            # Where the reference ended, no place was chosen.
            if places and (i + 1 < len(answer.feeds) or not feed.logits):
                choice = places[i % len(places)]
                read = coordinate_logits if choice == "coordinate" else size_logits
                found[choice].append(torch.from_numpy(numbers(read(out.hidden, m.weights.region), f"a {choice}")))
    return found


def divergence(reference: Sequence[Tensor], other: Sequence[Tensor]) -> Divergence:
    """Of logits [..., choices], pair by pair."""
    p, q = (torch.cat([x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0) for x in xs]) for xs in (reference, other))
    lp, lq = p.double().log_softmax(-1), q.double().log_softmax(-1)
    each = (lp.exp() * (lp - lq)).sum(-1)
    agreed = (p.argmax(-1) == q.argmax(-1)).double().mean()
    return Divergence(float(each.mean()), float(each.max()), float(agreed), len(each))
