"""Quantising a weight [n, k] to whole numbers, and packing these as the kernels read them.

int8: w[i, j] ~ scale[i] * q[i, j] / multiply[j], q in -127..127.
int4: q[i, j] = group_scale[i, j // 32] * c[i, j], with c in -8..7 and whole group scales 0..15: so an int4
weight is an int8 weight that is stored in half the space, and both are computed with in the same way.

`multiply` evens out the input channels: each column of w * multiply is as large as the others. A channel
whose activations are huge has small weights, or it would drown the rest; divided by them, it no longer
takes the few levels of a row's activations for itself (the idea of SmoothQuant, arXiv:2211.10438, without data).

Packed, 64 output channels lie together in a panel: int8 [k / 4][64][4]; int4 for each group of 32 input
channels [4][64][4] bytes (the low half of a byte is input channel 8 a + c, the high half 8 a + 4 + c), then
32 bytes of group scales (low half: output channels 0..31, high half: 32..63). Channels are padded with zeros,
panels to whole cache lines.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from galago.kernels import GROUP, PANEL

GROUP_BYTES = (GROUP * PANEL + PANEL) // 2
"""Bytes of one group of an int4 panel."""
UNIT = {8: 16, 4: GROUP}
"""Input channels are padded to a multiple of this, by bits."""
AT_ONCE = 16 * PANEL
"""Rows that are worked on together: few enough to stay in the processor's caches."""
MOST = {8: 127.0, 4: 112.5}
"""What the largest weight of a row becomes: for int4 7.5 times the largest group scale."""


@dataclass(frozen=True)
class Quantised:
    """A linear map of n outputs and k inputs as it is stored."""

    panels: Tensor
    """uint8 [n / 64 rounded up, bytes]"""
    scale: Tensor
    """float32 [n rounded up to 64]"""
    total: Tensor
    """int32 [n rounded up to 64], sums of q over the inputs"""
    bias: Tensor
    """float32 [n rounded up to 64]"""
    multiply: Tensor
    """float32 [k]"""
    n: int
    k: int
    bits: int


def panel_bytes(k: int, bits: int) -> int:
    """Bytes of one panel for k input channels."""
    padded = -(-k // UNIT[bits]) * UNIT[bits]
    return padded * PANEL if bits == 8 else -(-padded // GROUP * GROUP_BYTES // 64) * 64


def quantise(weight: Tensor, bias: Tensor, bits: int) -> Quantised:
    """Quantise a floating-point weight [n, k] with its bias [n], on the CPU."""
    n, k = weight.shape
    multiply = F.pad(_column_scales(weight, bits), (0, -k % UNIT[bits]), value=1.0)
    panels, scales, totals = [], [], []
    for rows in weight.split(AT_ONCE):
        w = F.pad(rows.float(), (0, -k % UNIT[bits], 0, -len(rows) % PANEL)) * multiply
        scale = (w.abs().amax(1) / MOST[bits]).clamp_min_(1e-30)
        q, packed = (_panels8 if bits == 8 else _panels4)(w.div_(scale[:, None]))
        panels.append(packed)
        scales.append(scale)
        totals.append(q.sum(1, dtype=torch.int32))
    # Inputs are multiplied by what the weights were divided by.
    return Quantised(
        panels=torch.cat(panels),
        scale=torch.cat(scales),
        total=torch.cat(totals),
        bias=F.pad(bias.float(), (0, -n % PANEL)),
        multiply=(1.0 / multiply)[:k].contiguous(),
        n=n,
        k=k,
        bits=bits,
    )


def _column_scales(weight: Tensor, bits: int) -> Tensor:
    """Factors [k] that make all columns equally large.

    Large is for int8, where a whole row shares one scale, its largest weight: with the root of its mean square
    the bundled model's answers diverge half as much again from those of float32. For int4, where 32 weights
    share a scale, it is that root.
    """
    squares, largest = torch.zeros(2, weight.shape[1], dtype=torch.float32, device=weight.device)
    for rows in weight.split(AT_ONCE):
        w = rows.float()
        w = (w / w.abs().amax(1, keepdim=True).clamp_min(1e-30)).square_()
        squares += w.sum(0)
        torch.maximum(largest, w.amax(0), out=largest)
    columns = (largest if bits == 8 else squares / len(weight)).sqrt()
    typical = columns[columns > 0].median() if (columns > 0).any() else columns.new_ones(())
    # A column of almost nothing stays so.
    return typical / columns.clamp_min(typical * 1e-4)


def _panels8(w: Tensor) -> tuple[Tensor, Tensor]:
    n, k = w.shape
    q = w.round_().to(torch.int8)
    packed = q.view(n // PANEL, PANEL, k // 4, 4).transpose(1, 2).contiguous()
    return q, packed.view(torch.uint8).view(n // PANEL, -1)


def _panels4(w: Tensor) -> tuple[Tensor, Tensor]:
    n, k = w.shape
    groups = w.view(n, k // GROUP, GROUP)
    most = (groups.abs().amax(2) / 7.5).ceil_()
    best_scale = torch.zeros_like(most)
    best_error = torch.full_like(most, torch.inf)
    # The smallest scale that reaches the largest weight of a group, and some below it: clipping one weight
    # often costs less than coarser steps for the others.
    for less in range(3):
        scale = (most - less).clamp(1, 15)
        error = (groups - _codes(groups, scale) * scale[:, :, None]).square_().sum(2)
        better = error < best_error
        best_scale, best_error = torch.where(better, scale, best_scale), torch.where(better, error, best_error)
    codes = _codes(groups, best_scale)
    q = (codes * best_scale[:, :, None]).to(torch.int8).view(n, k)
    nibbles = (
        (codes + 8).to(torch.uint8).view(n // PANEL, PANEL, k // GROUP, GROUP // 8, 2, 4).permute(0, 2, 3, 4, 1, 5)
    )
    body = (nibbles[:, :, :, 0] | nibbles[:, :, :, 1] << 4).flatten(2)
    scales = best_scale.to(torch.uint8).view(n // PANEL, 2, PANEL // 2, k // GROUP).permute(0, 3, 1, 2)
    tail = scales[:, :, 0] | scales[:, :, 1] << 4
    packed = torch.cat((body, tail), 2).flatten(1)
    return q, F.pad(packed, (0, panel_bytes(k, 4) - packed.shape[1]))


def _codes(groups: Tensor, scale: Tensor) -> Tensor:
    return (groups / scale[:, :, None]).round_().clamp_(-8, 7)


def values(w: Quantised) -> Tensor:
    """Unpack a weight: its whole numbers q, int8 [n, k]."""
    panels = w.panels
    if w.bits == 8:
        q = panels.view(torch.int8).view(len(panels), -1, PANEL, 4).transpose(1, 2).flatten(2)
    else:
        groups = panels[:, : panels.shape[1] // GROUP_BYTES * GROUP_BYTES].unflatten(1, (-1, GROUP_BYTES))
        body, tail = groups[:, :, : GROUP * PANEL // 2], groups[:, :, GROUP * PANEL // 2 :]
        codes = torch.stack((body & 15, body >> 4), 2).to(torch.int8) - 8
        codes = codes.view(len(panels), -1, 2, GROUP // 8, PANEL, 4).permute(0, 4, 1, 3, 2, 5).flatten(3)
        scales = torch.cat((tail & 15, tail >> 4), 2).to(torch.int8).transpose(1, 2)
        q = (codes * scales[:, :, :, None]).flatten(2)
    return q.flatten(0, 1)[: w.n, : w.k].contiguous()


def dequantise(w: Quantised) -> Tensor:
    """The floating-point weight, float32 [n, k], that a packed one stands for."""
    return values(w).float() * w.scale[: w.n, None] * w.multiply
