"""Prompts of each skill as the revisions were trained with them.

A prompt is a sequence of token ids with coordinates and sizes between them; the latter are placed by
position, so nothing in a user's text can be taken for one. BOS and the image come before.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from galago.errors import InvalidRequest
from galago.families.moondream.config import MoondreamConfig
from galago.families.tokenizer import Tokenizer
from galago.request import Length, Message, merge_turns
from galago.values import Box, Spot


@dataclass(frozen=True)
class Coordinate:
    """One coordinate, 0..1, that takes the place of a token."""

    value: float


@dataclass(frozen=True)
class Size:
    """A width and a height, 0..1, that take the place of one token."""

    width: float
    height: float


Item = int | Coordinate | Size
Prompt = tuple[Item, ...]


def caption(c: MoondreamConfig, length: Length) -> Prompt:
    """The prompt for a caption. Raises InvalidRequest for a length that the revision lacks."""
    if length not in c.revision.lengths or length not in c.tokens.caption:
        known = ", ".join(c.revision.lengths)
        raise InvalidRequest(f"revision {c.revision.name} has no {length} captions; it has {known}", "length")
    return c.tokens.caption[length]


def query(
    c: MoondreamConfig, t: Tokenizer, question: str, reasoning: bool = False, refs: Sequence[Spot | Box] = ()
) -> Prompt:
    """The question, with places in the image before it. Reasoning ends in its own marker."""
    text = t.encode(" " + question if c.revision.question_space else question)
    template = c.tokens.query
    # The doubled answer marker looks wrong, but the weights were trained with it.
    marker = c.tokens.thinking_id if reasoning else c.tokens.answer_id
    return (
        *template.prefix,
        *(item for ref in refs for item in _place(ref)),
        *text,
        *template.suffix,
        *(() if marker is None else (marker,)),
    )


def _place(ref: Spot | Box) -> Prompt:
    if len(ref) == 2:
        return Coordinate(ref[0]), Coordinate(ref[1])
    x0, y0, x1, y1 = ref
    return Coordinate((x0 + x1) / 2), Coordinate((y0 + y1) / 2), Size(abs(x1 - x0), abs(y1 - y0))


def detect(c: MoondreamConfig, t: Tokenizer, name: str) -> Prompt:
    return (*c.tokens.detect.prefix, *_object(c, t, name), *c.tokens.detect.suffix)


def point(c: MoondreamConfig, t: Tokenizer, name: str) -> Prompt:
    return (*c.tokens.point.prefix, *_object(c, t, name), *c.tokens.point.suffix)


def _object(c: MoondreamConfig, t: Tokenizer, name: str) -> list[int]:
    name = name.strip()
    return t.encode(" " + name if c.revision.object_space else name)


def gaze(t: Tokenizer, eye: Spot) -> Prompt:
    """The legacy text in every revision, spelled with its own tokenizer."""
    x, y = eye
    return (*t.encode("\n\nPoint:"), Coordinate(x), Coordinate(y), *t.encode(" gaze\n\n"))


def conversation(c: MoondreamConfig, messages: Sequence[Message]) -> str:
    """A conversation as one question: system text first, earlier turns as the 2024 releases wrote them."""
    system = [m.text for m in messages if m.role == "system"]
    # With system text taken out of between them, two turns may be one.
    turns = merge_turns((m.role, [m.text]) for m in messages if m.role != "system")
    labels = {"user": "Question: ", "assistant": "Answer: "}
    spoken = list(turns[0][1]) if len(turns) == 1 else [labels[role] + text for role, (text,) in turns]
    text = "\n\n".join((*system, *spoken))
    # Legacy templates write the first label themselves.
    return text.removeprefix(labels["user"]) if c.revision.family == "legacy" and len(turns) > 1 else text
