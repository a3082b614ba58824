"""Marks of answers, and the scores that they make up.

Every measure is a ratio: what was right (`hits`) over what there was (`total`), both summed over all
answers. F1 fits in as matches over the mean of what was predicted and what was true, and so does a mean of
distances, each over 1.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Mark:
    """What one answer adds to one measure."""

    measure: str
    hits: float
    total: float


@dataclass(frozen=True)
class Score:
    """One measure over all answers: a share in 0..1, or a mean."""

    tasks: int
    share: float
    low: float
    """95 % interval"""
    high: float


def wilson(hits: float, total: float, z: float = 1.96) -> tuple[float, float]:
    """The Wilson score interval of a share; (0, 1) when nothing was measured."""
    if total <= 0:
        return 0.0, 1.0
    share = hits / total
    middle = (share + z * z / (2 * total)) / (1 + z * z / total)
    spread = math.sqrt(share * (1 - share) / total + z * z / (4 * total * total))
    spread *= z / (1 + z * z / total)
    return max(0.0, middle - spread), min(1.0, middle + spread)


def mean_interval(values: Sequence[float], z: float = 1.96) -> tuple[float, float]:
    """The interval of a mean by its standard error; as wide as can be for fewer than two values."""
    if len(values) < 2:
        return -math.inf, math.inf
    mean = sum(values) / len(values)
    spread = z * math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1) / len(values))
    return mean - spread, mean + spread


def summarize(marks: Iterable[Mark], order: Sequence[str] = (), distances: Collection[str] = ()) -> dict[str, Score]:
    """The scores of all measures that came up: those of `order` first, others in the order of their names.

    The intervals take every counted item as independent; items of one picture are not quite.
    """
    found: dict[str, list[Mark]] = {}
    for mark in marks:
        found.setdefault(mark.measure, []).append(mark)
    scores = {}
    for name in (*order, *sorted(set(found) - set(order))):
        if name in found:
            hits, total = sum(m.hits for m in found[name]), sum(m.total for m in found[name])
            values = [m.hits for m in found[name] if m.total]
            interval = mean_interval(values) if name in distances else wilson(hits, total)
            # 0 of 0: nothing was claimed, which earns nothing.
            scores[name] = Score(len(found[name]), hits / total if total else 0.0, *interval)
    return scores


def missed(scores: Mapping[str, Score], least: Mapping[str, float]) -> list[str]:
    """The measures below their least percentage, in words; one not measured is missed too."""
    lines = []
    for name, percent in least.items():
        if name not in scores:
            lines.append(f"{name}: not measured")
        elif 100 * scores[name].share < percent:
            lines.append(f"{name}: {100 * scores[name].share:.1f} % is below {percent:g} %")
    return lines
