"""All blocks of a transformer in one call of our kernels, where their kinds of weight allow it.

One by one, the kernels for a few rows are shorter than what it takes to call them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from galago.kernels import Kernels, KVBuffer, kernels
from galago.nn.rotary import RotaryTable
from galago.precision.linear import FEW_ROWS, LinearWeight, Norm
from galago.precision.quantised import KernelWeight


@dataclass(frozen=True)
class Block:
    """The weights of one block. With one norm attention and MLP both read it, with two each its own.

    Norms without a bias are RMSNorms.
    """

    norms: tuple[Norm, ...]
    linears: tuple[LinearWeight, LinearWeight, LinearWeight, LinearWeight]
    """qkv, proj, fc1, fc2. The MLP's activation is tanh-GELU; where fc1 gives twice what fc2 takes, it is
    silu(first half) * second half."""


@dataclass(frozen=True)
class Stack:
    """Blocks over quantised weights. Keys and values are bfloat16, in buffers of [layers, kv heads, capacity, dim]."""

    kernels: Kernels
    layers: Any
    blocks: Sequence[Block]
    """keeps the weights alive"""
    sizes: tuple[int, int, int]
    """heads, kv heads, outputs of fc1"""

    def forward(
        self,
        x: Tensor,
        sequences: Sequence[tuple[Sequence[KVBuffer], int]],
        table: RotaryTable | None = None,
        *,
        together: bool = False,
        keys_only: bool = False,
        eps: float = 1e-5,
        blocks: range | None = None,
    ) -> None:
        """Replace x, embeddings float32 [rows, dim], by the residual stream [rows, dim], not normalised.

        Each sequence gives its buffers, with room for its new positions, and how many of the rows are its
        own; rows of different sequences do not meet, and those of one see what came before them. With
        `together` there is one sequence, of these rows alone, and all see each other; it may have no buffers.
        `table` has cosines and sines [rows, half] of the rows' positions. With `keys_only` nothing of the last of all
        blocks is made but the rows' keys and values, and x is worth nothing after it.

        `blocks` are those to run, by default all. Calls for one piece after another, each with what the one
        before gave and otherwise the same, give exactly what a single call gives: so a long one need not
        keep others waiting. Raises ValueError for blocks that are not there or an x that is not contiguous
        float32, and MemoryError, after which x is worth nothing, and a call with what was in it may be made again.
        """
        run = range(len(self.blocks)) if blocks is None else blocks
        keys_only = keys_only and run.stop == len(self.blocks)
        self.kernels.stack(self.layers, x, table, sequences, self.sizes, eps, together, keys_only, run)


def exact_rows(device: torch.device, stack: Stack | None) -> int | None:
    """How many rows may be multiplied together so that each gives exactly what it gives alone; None where any may.

    On an accelerator none is exact, and all go together: docs/many-requests.md says how far apart they are.
    """
    return FEW_ROWS if device.type == "cpu" and stack is None and kernels() else None


def stack_of(blocks: Sequence[Block], heads: int, kv_heads: int, kv: torch.dtype) -> Stack | None:
    """The blocks as a Stack; None where their kinds of weight or the type of keys and values do not allow it."""
    parts = []
    for block in blocks:
        natives = [w for w in block.linears if isinstance(w, KernelWeight)]
        norms = [t for norm in block.norms for t in (norm.weight, norm.bias)]
        if kv != torch.bfloat16 or len(natives) < 4 or any(t.dtype != torch.float32 for t in norms if t is not None):
            return None
        parts.append((norms, [w.handle for w in natives]))
    best = natives[0].kernels
    return Stack(best, best.layers(parts), blocks, (heads, kv_heads, natives[2].stored.n))
