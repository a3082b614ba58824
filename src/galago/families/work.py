"""How much work an answer is, and how much of it is done in one piece, for which another may have to wait."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from galago.nn.footprint import tensors_of
from galago.precision import Precision

WORK = {"cpu": 25 * 10**9, "cuda": 10**13, "mps": 10**12}
"""Floating-point operations in one piece: a tenth or two of a second."""
FASTER = 4
"""How many times as many operations on whole numbers a CPU does."""
MAX_CROPS = 32
"""Crops that an accelerator sees at once."""
LEAST_BYTES = 4096
"""Biases and norms are not counted: reading them would take longer than they count."""


@dataclass(frozen=True)
class Work:
    """Products with weights alone: attention, norms and the KV cache come on top.

    A multiplication and its addition count as two operations.
    """

    crops: int
    """views that the vision tower looks at"""
    encode: int
    """operations for an image or clip"""
    prefill: int
    """operations for a position of the prompt"""
    decode: tuple[Tensor, ...]
    """what a step reads"""


def work_of(crops: int, encode: int, shapes: Mapping[str, tuple[int, ...]], text: Any) -> Work:
    """The same with a decoder of these weights, which are `text.blocks` among the shapes."""
    read = tuple(t for t in tensors_of([text.blocks, text.lm_head]) if t.nbytes >= LEAST_BYTES)
    return Work(crops, encode, 2 * matrices(shapes, "text.blocks."), read)


def matrices(shapes: Mapping[str, tuple[int, ...]], prefix: str) -> int:
    """Weights of the linear maps whose names start so: neither biases nor tables."""
    named = {name: s for name, s in shapes.items() if name.startswith(prefix) and name.endswith(".weight")}
    return sum(math.prod(s) for s in named.values() if len(s) == 2)


def times(weights: int, device: torch.device, precision: Precision) -> int:
    """How often so many weights may be gone through in one piece of work."""
    whole = device.type == "cpu" and precision.bits is not None
    return WORK[device.type] * (FASTER if whole else 1) // (2 * weights)


def crops_at_once(device: torch.device) -> int:
    """Crops that one pass sees. On a CPU one crop keeps all cores busy, and takes the memory of one."""
    return 1 if device.type == "cpu" else MAX_CROPS


def rows_at_once(weights: int, device: torch.device, precision: Precision) -> int:
    """Rows of a prompt in one pass over so many weights: no fewer than a batch of decode steps would take."""
    return max(32, times(weights, device, precision))


def blocks_at_once(weights: int, device: torch.device, precision: Precision) -> int:
    """Blocks in one piece, of so many weights each, counted once for every row that goes through them."""
    return max(1, times(weights, device, precision))
