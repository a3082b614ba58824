"""Results as a picture: an SVG bar for each, made up of encode, prefill and decode."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from galago.lab.bench.results import FIGURES, figure_value, label
from galago.lab.svg import svg_document

PHASES = (("encode_s", "encode", "#3b6fb6"), ("prefill_s", "prefill", "#e0923d"), ("decode_s", "decode", "#4f9d69"))
WIDTH, ROW, BAR = 860, 34, 20
"""Pixels of the picture (more for long names), of a row, and of the bar in it."""
TOP, BOTTOM, RIGHT = 96, 46, 190
"""Pixels above the first bar, below the last one, and right of the longest."""
MIN_BAR = 300
"""Pixels for the longest bar at least."""
LETTER_WIDTH = 7.2
"""Pixels that a letter of 13 takes at most, on the average."""
_FIGURE = {figure.key: figure for figure in FIGURES}


def plot_results(results: Sequence[Mapping[str, Any]], saved: Sequence[Mapping[str, Any]] = ()) -> str:
    """An SVG document: the medians of each result, and of `saved` ones of the same work, in seconds.

    Results without any of the times are left out.
    """
    named = [*((label(r), r) for r in results), *((f"{label(r)}, saved", r) for r in saved)]
    rows = [(name, parts, r) for name, r in named if sum(parts := _phase_seconds(r))]
    left = 24 + LETTER_WIDTH * max((len(name) for name, _, _ in rows), default=0)
    height = TOP + ROW * len(rows) + BOTTOM
    longest = max((sum(parts) for _, parts, _ in rows), default=1.0)
    step = _tick_step(longest)
    ticks = max(1, math.ceil(longest / step))
    width = max(WIDTH, math.ceil(left + MIN_BAR + RIGHT))
    scale = (width - left - RIGHT) / (ticks * step)
    first = results[0]
    lines = [f'<text x="16" y="48" fill="#666">{escape(_subtitle(first))}</text>', *_legend()]
    lines += _axis(left, height - BOTTOM, ticks, step, scale)
    for place, (name, parts, result) in enumerate(rows):
        lines += _bar(name, parts, result, left, TOP + ROW * place, scale)
    title = f"Caption of a {first['image']} image, {first['tokens']} tokens"
    return svg_document(width, height, title, lines)


def _phase_seconds(result: Mapping[str, Any]) -> list[float]:
    """Seconds of each phase. Where decode is not told it is what the whole request leaves."""
    found = [figure_value(result, _FIGURE[key], "median") for key, _, _ in PHASES]
    if found[2] is None:
        total = figure_value(result, _FIGURE["total_s"], "median") or 0.0
        found[2] = max(0.0, total - sum(part or 0.0 for part in found[:2]))
    return [part or 0.0 for part in found]


def _bar(
    name: str, parts: Sequence[float], result: Mapping[str, Any], left: float, top: float, scale: float
) -> list[str]:
    x, middle = left, top + BAR / 2 + 4.5
    lines = ['<g class="bar">', f'<text x="{left - 8:.1f}" y="{middle:.1f}" text-anchor="end">{escape(name)}</text>']
    for (_, phase, colour), seconds in zip(PHASES, parts, strict=True):
        width = seconds * scale
        lines.append(
            f'<rect x="{x:.1f}" y="{top:.1f}" width="{width:.1f}" height="{BAR}" fill="{colour}">'
            f"<title>{phase} {seconds:.3g} s</title></rect>"
        )
        x += width
    speed = figure_value(result, _FIGURE["decode_tokens_per_s"], "median")
    told = f"{sum(parts):.3g} s" + (f", {speed:.3g} tokens/s" if speed else "")
    return [*lines, f'<text x="{x + 8:.1f}" y="{middle:.1f}" fill="#444">{told}</text>', "</g>"]


def _axis(left: float, bottom: float, ticks: int, step: float, scale: float) -> list[str]:
    lines = []
    for tick in range(ticks + 1):
        x = left + tick * step * scale
        lines.append(f'<line x1="{x:.1f}" y1="{TOP - 8}" x2="{x:.1f}" y2="{bottom}" stroke="#e4e4e4"/>')
        unit = " s" if tick == ticks else ""
        lines.append(
            f'<text x="{x:.1f}" y="{bottom + 20}" text-anchor="middle" fill="#666">{tick * step:g}{unit}</text>'
        )
    return lines


def _legend() -> list[str]:
    lines = []
    for place, (_, phase, colour) in enumerate(PHASES):
        x = 16 + 84 * place
        lines.append(f'<rect x="{x}" y="62" width="12" height="12" fill="{colour}"/>')
        lines.append(f'<text x="{x + 18}" y="73">{phase}</text>')
    return lines


def _tick_step(longest: float) -> float:
    """Seconds between the lines: 1, 2 or 5 times a power of ten, for about six lines."""
    power = 10.0 ** math.floor(math.log10(longest / 6))
    return next(power * m for m in (1, 2, 5, 10) if longest / (power * m) <= 6)


def _subtitle(result: Mapping[str, Any]) -> str:
    machine = result.get("machine")
    cpu = f"{machine['cpu']}, " if isinstance(machine, Mapping) and "cpu" in machine else ""
    threads = result.get("threads")
    return f"{cpu}{threads} thread{'' if threads == 1 else 's'}; medians"
