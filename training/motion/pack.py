"""From the questions about one clip to rows of tokens: what is fed, and what must come out, at each position.

All questions of a clip share its frames. Each is a block that attends to them and to its own past, so one pass
over the frames teaches many answers.
"""

from dataclasses import dataclass

import numpy as np

from training.rows import placed

NONE = -1
ROW = 96
"""Positions of one row: blocks never cross from row to row, so attention stays within it."""


@dataclass(frozen=True)
class Block:
    """One question with its answer, position by position."""

    tokens: list[int]
    """fed"""
    next_token: list[int]
    """what must follow, or NONE"""
    kind: int


def block(question: list[int], answer: list[int], end: int, kind: int) -> Block:
    """The tokens of a question, which ask for those of the answer and the end token."""
    return Block(question + answer, [NONE] * (len(question) - 1) + [*answer, end], kind)


@dataclass(frozen=True)
class Packed:
    """Blocks of one clip in R rows; arrays int64 [R, ROW]."""

    block: np.ndarray
    """the block's number, NONE for padding"""
    position: np.ndarray
    """within the block"""
    tokens: np.ndarray
    next_token: np.ndarray
    kind: np.ndarray


def pack(blocks: list[Block], rows: int) -> Packed:
    """As many blocks as fit, longest first, each in the first row that has room."""
    out = Packed(
        block=np.full((rows, ROW), NONE, np.int64),
        position=np.zeros((rows, ROW), np.int64),
        tokens=np.zeros((rows, ROW), np.int64),
        next_token=np.full((rows, ROW), NONE, np.int64),
        kind=np.zeros((rows, ROW), np.int64),
    )
    for number, row, span in placed([len(b.tokens) for b in blocks], rows, ROW):
        one = blocks[number]
        out.block[row, span] = number
        out.position[row, span] = np.arange(len(one.tokens))
        out.tokens[row, span] = one.tokens
        out.next_token[row, span] = one.next_token
        out.kind[row, span] = one.kind
    return out
