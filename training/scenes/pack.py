"""From tasks to one packed sequence: what is fed, and what must come out, at each position.

All tasks of an image share its prefix. Each is a block that attends to the prefix and to its own
past, so one pass over the image teaches a dozen answers.
"""

from dataclasses import dataclass

import numpy as np
from tokenizers import Tokenizer

from galago.eval.scenes.tasks import Task
from galago.families.moondream.config import MoondreamConfig

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


NOTHING = (float("nan"), float("nan"))


class _Writer:
    def __init__(self) -> None:
        self.block = Block([], [], [], [])

    def token(self, *ids: int) -> None:
        for i in ids:
            self._feed(i, NOTHING)

    def coordinate(self, value: float) -> None:
        self._feed(NONE, (value, float("nan")))

    def size(self, width: float, height: float) -> None:
        self._feed(NONE, (width, height))

    def expect(self, token: int = NONE, value: tuple[float, float] = NOTHING) -> None:
        """What the position written last must give."""
        if token != NONE:
            self.block.next_token[-1] = token
        if value[0] == value[0]:
            self.block.next_value[-1] = value

    def say(self, ids: list[int]) -> None:
        """Tokens that the model must produce, each from the one before."""
        for i in ids:
            self.expect(token=i)
            self.token(i)

    def _feed(self, token: int, value: tuple[float, float]) -> None:
        self.block.tokens.append(token)
        self.block.fed.append(value)
        self.block.next_token.append(NONE)
        self.block.next_value.append(NOTHING)


def write_block(task: Task, c: MoondreamConfig, tokenizer: Tokenizer) -> Block:
    """The sequence of one task, as the skills feed it."""
    t = c.tokens
    assert t.answer_id is not None and t.thinking_id is not None and t.coord_id is not None and t.size_id is not None
    out = _Writer()

    def ids(text: str) -> list[int]:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)

    def x_then_y(x: float, y: float) -> None:
        out.expect(t.coord_id, (x, float("nan")))
        out.coordinate(x)
        out.expect(value=(y, float("nan")))
        out.coordinate(y)

    match task.skill:
        case "caption":
            out.token(*t.caption[task.length])
            out.say(ids(task.text))
            out.expect(t.eos_id)
        case "query":
            out.token(*t.query.prefix)
            for ref in task.refs:
                x0, y0, x1, y1 = ref if len(ref) == 4 else (*ref, *ref)
                out.coordinate((x0 + x1) / 2)
                out.coordinate((y0 + y1) / 2)
                if len(ref) == 4:
                    out.size(x1 - x0, y1 - y0)
            out.token(*ids(task.question), *t.query.suffix)
            if task.reasoning:
                out.token(t.thinking_id)
                for text, point in task.reasoning:
                    out.say([t.start_ground_points_id or 7, *ids(text)])
                    x_then_y(*point)
                    out.say([t.end_ground_id or 9])
                out.expect(t.answer_id)
            out.token(t.answer_id)
            out.say(ids(task.text))
            out.expect(t.eos_id)
        case "detect":
            out.token(*t.detect.prefix, *ids(" " + task.object), *t.detect.suffix)
            for x0, y0, x1, y1 in task.boxes:
                x_then_y((x0 + x1) / 2, (y0 + y1) / 2)
                out.expect(value=(x1 - x0, y1 - y0))
                out.size(x1 - x0, y1 - y0)
            out.expect(t.eos_id)
        case "point" | "gaze":
            if task.skill == "point":
                out.token(*t.point.prefix, *ids(" " + task.object), *t.point.suffix)
            else:
                assert task.eye is not None
                out.token(*ids("\n\nPoint:"))
                out.coordinate(task.eye[0])
                out.coordinate(task.eye[1])
                out.token(*ids(" gaze\n\n"))
            for x, y in task.points:
                x_then_y(x, y)
            out.expect(t.eos_id)
        case other:
            raise ValueError(f"unknown skill {other}")
    return out.block


ROW = 96
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


def pack(blocks: list[Block], rows: int) -> Packed:
    """As many blocks as fit, longest first, each in the first row that has room."""
    out = Packed(
        block=np.full((rows, ROW), NONE, np.int64),
        position=np.zeros((rows, ROW), np.int64),
        tokens=np.zeros((rows, ROW), np.int64),
        fed=np.full((rows, ROW, 2), np.nan, np.float32),
        next_token=np.full((rows, ROW), NONE, np.int64),
        next_value=np.full((rows, ROW, 2), np.nan, np.float32),
    )
    filled = [0] * rows
    for number, block in enumerate(sorted(blocks, key=lambda b: -len(b.tokens))):
        n = len(block.tokens)
        row = next((r for r in range(rows) if filled[r] + n <= ROW), None)
        if row is None:
            continue
        span = slice(filled[row], filled[row] + n)
        filled[row] += n
        out.block[row, span] = number
        out.position[row, span] = np.arange(n)
        out.tokens[row, span] = block.tokens
        out.fed[row, span] = block.fed
        out.next_token[row, span] = block.next_token
        out.next_value[row, span] = block.next_value
    return out
