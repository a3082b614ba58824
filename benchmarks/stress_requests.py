"""The requests of a stress run: mixed, drawn from a seed, always the same ones."""

import io
from dataclasses import dataclass
from typing import Literal

import numpy as np
from PIL import Image

from galago.lab.eval.scenes.draw import SHAPES, scene_at
from galago.request import (
    Caption,
    Chat,
    Detail,
    Detect,
    DetectGaze,
    Length,
    Message,
    Point,
    Query,
    Sampling,
    Skill,
)

Cancel = Literal["never", "before", "middle", "after", "let go"]
"""Before the first event, after some of them, after the last; or the run is let go of."""

# How many of fifty requests are of each kind.
DECK = {
    "caption": 9,
    "query": 8,
    "reasoning": 5,
    "no image": 6,
    "detect": 6,
    "point": 5,
    "gaze": 3,
    "accurate gaze": 1,
    "chat": 4,
    "broken image": 2,
    "too long": 1,
}
FAILS = {"broken image": "invalid_image", "too long": "context_length_exceeded"}
"""The error that each of these kinds has to end in."""
REPEATED, ODD, ENCODED, SAMPLED, READ_LATE = 0.2, 0.08, 0.2, 0.4, 0.4
CANCELS: dict[Cancel, float] = {"never": 0.7, "before": 0.06, "middle": 0.14, "after": 0.05, "let go": 0.05}
QUESTIONS = (
    "What color is the circle?",
    "How many shapes are there?",
    "Is there a star?",
    "Which shape is left of the square?",
    "What is in the picture?",
    "What does the word say?",
)
ODD_SIZES = ((1, 1), (1, 700), (900, 2), (640, 12), (3, 3), (2, 1500))
TOO_LONG = "Is there a circle and a square? " * 600


@dataclass(frozen=True)
class Asked:
    """One request, and how its client behaves."""

    number: int
    kind: str
    """a key of DECK"""
    skill: Skill
    image: Image.Image | bytes | None
    picture: int | None
    """which image of the run it is: repeated ones have the same number"""
    sampling: Sampling
    detail: Detail
    encoded: bool
    """the client encodes the image first"""
    late: bool
    """the client lets the request go on, and reads all of its events at once"""
    cancel: Cancel
    after: int
    """events before a cancel in the middle, or before it is let go; of other requests, if it is read late"""

    def __str__(self) -> str:
        image = "no image" if self.picture is None else f"image {self.picture}{' encoded' if self.encoded else ''}"
        drawn = f"temperature {self.sampling.temperature:g}" if self.sampling.temperature else "greedy"
        limit = f"at most {self.sampling.max_tokens} tokens" if self.sampling.max_tokens else "no limit"
        return f"#{self.number} {self.kind}, {image}, {self.detail}, {drawn}, {limit}, cancel {self.cancel}"


def draw_requests(seed: int, count: int) -> list[Asked]:
    """`count` requests in the proportions of DECK; of fifty in a row each kind has its share."""
    rng = np.random.default_rng([seed, 0])
    kinds: list[str] = []
    while len(kinds) < count:
        deck = [kind for kind, share in DECK.items() for _ in range(share)]
        kinds += [deck[i] for i in rng.permutation(len(deck))]
    pictures: list[Image.Image] = []
    return [_draw(rng, seed, number, kind, pictures) for number, kind in enumerate(kinds[:count])]


def _draw(rng: np.random.Generator, seed: int, number: int, kind: str, pictures: list[Image.Image]) -> Asked:
    """One request; a new image joins the `pictures`, which later ones may repeat."""
    image: Image.Image | bytes | None = None
    picture = None
    if kind == "broken image":
        image = _broken(rng)
    elif kind not in ("no image", "too long") and not (kind == "chat" and rng.random() < 0.5):
        if not pictures or rng.random() >= REPEATED:
            pictures.append(_picture(rng, seed, len(pictures)))
            picture = len(pictures) - 1
        else:
            picture = int(rng.integers(len(pictures)))
        image = pictures[picture]
    return Asked(
        number=number,
        kind=kind,
        skill=_skill(rng, kind),
        image=image,
        picture=picture,
        sampling=_sampling(rng),
        detail="low" if rng.random() < 0.15 else "high",
        # Accurate gaze looks at the mirrored image, too, and refuses an encoded one.
        encoded=picture is not None and kind != "accurate gaze" and bool(rng.random() < ENCODED),
        late=bool(rng.random() < READ_LATE),
        cancel="never" if kind in FAILS else _cancel(rng),
        after=int(rng.integers(1, 4)),
    )


def _picture(rng: np.random.Generator, seed: int, index: int) -> Image.Image:
    if rng.random() >= ODD:
        return scene_at(seed, index).image
    width, height = ODD_SIZES[int(rng.integers(len(ODD_SIZES)))]
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))


def _broken(rng: np.random.Generator) -> bytes:
    """Bytes that are no image, or only the first part of one."""
    if rng.random() < 0.5:
        return rng.bytes(200)
    png = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (90, 120, 3), np.uint8)).save(png, "PNG")
    return png.getvalue()[: int(rng.integers(60, 3000))]


def _skill(rng: np.random.Generator, kind: str) -> Skill:
    question = QUESTIONS[int(rng.integers(len(QUESTIONS)))]
    name = SHAPES[int(rng.integers(len(SHAPES)))]
    x, y = (float(v) for v in rng.uniform(0.1, 0.6, 2))
    box = (x, y, x + 0.3, y + 0.3)
    lengths: tuple[Length, ...] = ("short", "normal", "long")
    length = lengths[int(rng.integers(3))]
    most = int(rng.integers(1, 12))
    if kind == "caption":
        return Caption(length)
    if kind == "query":
        return Query(question, spatial_refs=((), (box,), ((x, y),))[int(rng.integers(3))])
    if kind == "detect":
        return Detect(name, most)
    if kind == "point":
        return Point(name, most)
    if kind == "gaze":
        return DetectGaze(eye=(x, y), force=bool(rng.random() < 0.3))
    if kind == "accurate gaze":
        return DetectGaze(face=box, accurate=True)
    if kind == "chat":
        before = (Message("user", "Is there a star?"), Message("assistant", "no")) if rng.random() < 0.5 else ()
        return Chat((*before, Message("user", question)))
    return Query(TOO_LONG if kind == "too long" else question, reasoning=kind == "reasoning")


def _sampling(rng: np.random.Generator) -> Sampling:
    limit = (1, 2, 5, 16, 40, 64)[int(rng.integers(6))]
    stop = ((), (), (), ("a ", "."))[int(rng.integers(4))]
    if rng.random() >= SAMPLED:
        # Accurate gaze draws with the seed, too.
        return Sampling(max_tokens=None if rng.random() < 0.3 else limit, seed=0, stop=stop)
    return Sampling(
        temperature=float(rng.choice([0.3, 1.0, 2.0])),
        top_p=float(rng.choice([0.5, 0.9, 1.0])),
        min_p=float(rng.choice([0.0, 0.05])),
        seed=int(rng.integers(2**31)),
        max_tokens=limit,
        stop=stop,
    )


def _cancel(rng: np.random.Generator) -> Cancel:
    """One of CANCELS, as often as it says."""
    names: list[Cancel] = list(CANCELS)
    return names[int(np.searchsorted(np.cumsum(list(CANCELS.values())), rng.random()))]
