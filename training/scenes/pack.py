"""From tasks to one packed sequence: what is fed, and what must come out, at each position.

All tasks of an image share its prefix. Each is a block that attends to the prefix and to its own
past, so one pass over the image teaches a dozen answers.
"""

import functools
import re
from collections.abc import Container
from dataclasses import dataclass

import numpy as np

from galago.families.moondream import prompts
from galago.families.moondream.config import MoondreamConfig
from galago.families.tokenizer import Tokenizer
from galago.lab.eval.scenes.captions import NUMBERS
from galago.lab.eval.scenes.question_mix import SceneQuestion
from training.rows import placed

NONE = -1


@dataclass
class Block:
    """One task, position by position. Values are NaN where a position has none."""

    tokens: list[int]
    """Token id fed, or NONE where a coordinate or size is fed instead."""
    fed: list[tuple[float, float]]
    """Coordinate (x, NaN) or size (width, height) fed."""
    next_token: list[int]
    """Token that must follow, or NONE."""
    next_value: list[tuple[float, float]]
    """Coordinate (x, NaN) or size (width, height) that must be read from this position."""
    weight: list[float]
    """How much what follows counts."""
    kind: str = ""
    """What the task measures, see KINDS."""


KINDS = (
    "caption", "describe", "color", "shape", "shade", "texture", "presence", "count", "reason", "relation", "size",
    "read", "letter", "face", "look", "background", "refer", "detect", "point", "gaze",
)  # fmt: skip
WEIGHT = {
    "color": 1.5, "shape": 2.0, "presence": 2.0, "count": 2.0, "shade": 2.0, "texture": 3.0, "size": 2.0,
    "read": 2.0, "letter": 2.0, "face": 2.0, "look": 2.0, "gaze": 3.0,
}  # fmt: skip
"""How much a position of a task counts, 1 elsewhere: long answers are many positions, hard ones are few."""
HOW_MANY = 3.0
"""How much more a word counts with which a caption says how many: the rest of a group follows from it, and from 'a' in
nine of ten it is soon learnt that 'a' is never far wrong.
"""

NAN = float("nan")
NOTHING = (NAN, NAN)


class _Writer:
    def __init__(self) -> None:
        self.block = Block([], [], [], [], [])

    def prompt(self, items: prompts.Prompt) -> None:
        """What the model is told."""
        for item in items:
            match item:
                case prompts.Coordinate(value):
                    self._feed(NONE, (value, NAN))
                case prompts.Size(width, height):
                    self._feed(NONE, (width, height))
                case token:
                    self._feed(token, NOTHING)

    def expect(self, token: int, value: tuple[float, float] = NOTHING) -> None:
        """What the position written last must give."""
        self.block.next_token[-1] = token
        self.block.next_value[-1] = value

    def say(self, ids: list[int], last: int = NONE, stressed: Container[int] = ()) -> None:
        """Tokens that the model must produce, each from the one before; `last` is not fed."""
        for i in ids:
            self.expect(i)
            if i in stressed:
                self.block.weight[-1] *= HOW_MANY
            self._feed(i, NOTHING)
        if last != NONE:
            self.expect(last)

    def place(self, token: int, value: float) -> None:
        """A coordinate that the model must produce, announced by a token or by what came before."""
        self.expect(token, (value, NAN))
        self._feed(NONE, (value, NAN))

    def size(self, width: float, height: float) -> None:
        self.expect(NONE, (width, height))
        self._feed(NONE, (width, height))

    def _feed(self, token: int, value: tuple[float, float]) -> None:
        self.block.tokens.append(token)
        self.block.fed.append(value)
        self.block.next_token.append(NONE)
        self.block.next_value.append(NOTHING)
        self.block.weight.append(1.0)


_QUOTED = re.compile(r'(?<=")[^"]*(?=")')


def spell(tokenizer: Tokenizer, text: str, *, all: bool = False) -> list[int]:
    """Token ids of an answer in which what stands in the picture (in quotes, or all) is spelt letter by letter.

    Reading goes from one letter to the next; a tokenizer would make 'bo' 'ok' of one word and 'm' 'o' 'on' of
    another. Both spellings decode to the same text.
    """
    spans = [(0, len(text))] if all else [match.span() for match in _QUOTED.finditer(text) if " " not in match[0]]
    ids, at = [], 0
    for start, end in spans:
        ids += tokenizer.encode(text[at:start]) if start > at else []
        ids += [i for letter in text[start:end] for i in tokenizer.encode(letter)]
        at = end
    return ids + (tokenizer.encode(text[at:]) if at < len(text) else [])


def write_block(task: SceneQuestion, c: MoondreamConfig, tokenizer: Tokenizer) -> Block:
    """The sequence of one task, as the skills feed it."""
    t, out = c.tokens, _Writer()
    assert t.answer_id is not None and t.coord_id is not None
    match task.skill:
        case "caption":
            out.prompt(prompts.caption(c, task.length))
            out.say(spell(tokenizer, task.text), t.eos_id, stressed=_counts(tokenizer))
        case "query":
            out.prompt(prompts.query(c, tokenizer, task.question, bool(task.reasoning), task.refs))
            if task.reasoning:
                assert t.start_ground_points_id is not None and t.end_ground_id is not None
                for text, (x, y) in task.reasoning:
                    out.say([t.start_ground_points_id, *tokenizer.encode(text)])
                    out.place(t.coord_id, x)
                    out.place(t.coord_id, y)
                    out.say([t.end_ground_id])
                out.say([t.answer_id])
            out.say(spell(tokenizer, task.text, all=task.spelt), t.eos_id)
        case "detect":
            out.prompt(prompts.detect(c, tokenizer, task.object))
            for x0, y0, x1, y1 in task.boxes:
                out.place(t.coord_id, (x0 + x1) / 2)
                out.place(NONE, (y0 + y1) / 2)
                out.size(x1 - x0, y1 - y0)
            out.expect(t.eos_id)
        case "point" | "gaze":
            out.prompt(prompts.gaze(tokenizer, task.eye) if task.eye else prompts.point(c, tokenizer, task.object))
            for x, y in task.points:
                out.place(t.coord_id, x)
                out.place(NONE, y)
            out.expect(t.eos_id)
        case other:
            raise ValueError(f"unknown skill {other}")
    out.block.kind = task.kind
    return out.block


@functools.cache
def _counts(tokenizer: Tokenizer) -> frozenset[int]:
    """The tokens with which words that say how many begin, at the start of a sentence and within."""
    words = ("a", "an", *NUMBERS)
    return frozenset(tokenizer.encode(text)[0] for word in words for text in (word.capitalize(), f" {word}"))


ROW = 128
"""Positions of one row: blocks never cross from row to row, so attention stays within it."""


@dataclass
class Packed:
    """Blocks of one image in R rows; arrays [R, ROW] of what Block lists."""

    block: np.ndarray
    """int64, the block's number, NONE for padding"""
    position: np.ndarray
    tokens: np.ndarray
    fed: np.ndarray
    """float32 [R, ROW, 2]"""
    next_token: np.ndarray
    next_value: np.ndarray
    kind: np.ndarray
    """int64, index in KINDS"""
    weight: np.ndarray
    """float32, with that of the kind"""


def pack(blocks: list[Block], rows: int) -> Packed:
    """As many blocks as fit, longest first, each in the first row that has room."""
    out = Packed(
        block=np.full((rows, ROW), NONE, np.int64),
        position=np.zeros((rows, ROW), np.int64),
        tokens=np.zeros((rows, ROW), np.int64),
        fed=np.full((rows, ROW, 2), np.nan, np.float32),
        next_token=np.full((rows, ROW), NONE, np.int64),
        next_value=np.full((rows, ROW, 2), np.nan, np.float32),
        kind=np.zeros((rows, ROW), np.int64),
        weight=np.zeros((rows, ROW), np.float32),
    )
    for number, row, span in placed([len(b.tokens) for b in blocks], rows, ROW):
        block = blocks[number]
        out.block[row, span] = number
        out.position[row, span] = np.arange(len(block.tokens))
        out.tokens[row, span] = block.tokens
        out.fed[row, span] = block.fed
        out.next_token[row, span] = block.next_token
        out.next_value[row, span] = block.next_value
        out.kind[row, span] = KINDS.index(block.kind)
        out.weight[row, span] = np.array(block.weight) * WEIGHT.get(block.kind, 1.0)
    return out
