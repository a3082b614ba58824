"""The operations that an answer takes, and how many of them are one piece, which other requests may wait for."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from galago.nn.footprint import tensors_of
from galago.precision import Precision

PIECE_OPERATIONS = {"cpu": 25 * 10**9, "cuda": 10**13, "mps": 10**12}
"""Floating-point operations in one piece of work: a tenth or two of a second."""
INTEGER_SPEEDUP = 4
"""Operations on whole numbers that a CPU does in the time of one on floats."""
MAX_CROPS = 32
"""Crops that an accelerator encodes at once."""
MIN_COUNTED_BYTES = 4096
"""Smaller tensors, biases and norms, are not counted: a step hardly reads them."""


@dataclass(frozen=True)
class Work:
    """The operations of an answer, products with weights alone: attention, norms and the KV cache come on top.

    A multiplication and its addition count as two operations.
    """

    crops: int
    """how many the vision tower encodes"""
    encode: int
    """operations for an image or clip"""
    prefill: int
    """operations for a position of the prompt"""
    decode: tuple[Tensor, ...]
    """the weights that a step reads"""


def work_of(crops: int, encode: int, shapes: Mapping[str, tuple[int, ...]], text: Any) -> Work:
    """The Work of a model whose decoder has these weights `text`, which are `text.blocks` among the shapes."""
    read = tuple(t for t in tensors_of([text.blocks, text.lm_head]) if t.nbytes >= MIN_COUNTED_BYTES)
    return Work(crops, encode, 2 * linear_weights(shapes, "text.blocks."), read)


def linear_weights(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Number of weights of the linear maps whose names start with `prefix`: neither biases nor tables."""
    named = {name: s for name, s in shapes.items() if name.startswith(prefix) and name.endswith(".weight")}
    return sum(math.prod(s) for s in named.values() if len(s) == 2)


def _runs_per_piece(weights: int, device: torch.device, precision: Precision) -> int:
    """How many products with so many weights one piece of work may have."""
    whole = device.type == "cpu" and precision.bits is not None
    return PIECE_OPERATIONS[device.type] * (INTEGER_SPEEDUP if whole else 1) // (2 * weights)


def crops_per_pass(device: torch.device) -> int:
    """Crops in one pass. On a CPU one crop keeps all cores busy, and takes the memory of one."""
    return 1 if device.type == "cpu" else MAX_CROPS


def rows_per_pass(weights: int, device: torch.device, precision: Precision) -> int:
    """Rows of a prompt in one pass over so many weights: no fewer than a batch of decode steps would take."""
    return max(32, _runs_per_piece(weights, device, precision))


def blocks_per_piece(weights: int, device: torch.device, precision: Precision) -> int:
    """Blocks in one piece, of so many weights each, counted once for every row that goes through them."""
    return max(1, _runs_per_piece(weights, device, precision))
