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


def share_interval(pictures: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """The Wilson interval of a share where the items of one picture, its hits and total, are right or wrong together.

    It is that of as many independent items as would make the share vary as much as it does from picture to picture,
    but never of more than there are (Kish's effective sample size); of a single picture, as many as there are.
    """
    hits, total = map(sum, zip(*pictures, strict=True))
    if not total:
        return wilson(0, 0)
    share = hits / total
    independent = share * (1 - share) * total
    varied = sum((h - share * t) ** 2 for h, t in pictures)
    items = total * min(1.0, independent / varied) if varied > 0 else total
    return wilson(share * items, items)


def mean_interval(pictures: Sequence[tuple[float, float]], z: float = 1.96) -> tuple[float, float]:
    """The interval of a mean by its standard error, from the sum and number of each picture's values.

    It is as wide as can be for fewer than two pictures.
    """
    n = len(pictures)
    if n < 2:
        return -math.inf, math.inf
    values, total = map(sum, zip(*pictures, strict=True))
    mean = values / total
    spread = z * math.sqrt(sum((v - mean * t) ** 2 for v, t in pictures) * n / (n - 1)) / total
    return mean - spread, mean + spread


def summarize(
    pictures: Iterable[Sequence[Mark]], order: Sequence[str] = (), distances: Collection[str] = ()
) -> dict[str, Score]:
    """The scores of all measures that came up: those of `order` first, others in the order of their names.

    The marks of one picture stand together: they are not independent, and the intervals allow for it.
    """
    found: dict[str, list[list[Mark]]] = {}
    for marks in pictures:
        of_this: dict[str, list[Mark]] = {}
        for mark in marks:
            of_this.setdefault(mark.measure, []).append(mark)
        for name, some in of_this.items():
            found.setdefault(name, []).append(some)
    scores = {}
    for name in (*order, *sorted(set(found) - set(order))):
        if name in found:
            sums = [(sum(m.hits for m in some), sum(m.total for m in some)) for some in found[name]]
            hits, total = map(sum, zip(*sums, strict=True))
            counted = [(h, t) for h, t in sums if t]
            interval = mean_interval(counted) if name in distances else share_interval(sums)
            # 0 of 0: nothing was claimed, which earns nothing.
            scores[name] = Score(sum(map(len, found[name])), hits / total if total else 0.0, *interval)
    return scores


def below_minimum(scores: Mapping[str, Score], least: Mapping[str, float]) -> list[str]:
    """The measures below their least percentage, in words; one not measured is missed too."""
    lines = []
    for name, percent in least.items():
        if name not in scores:
            lines.append(f"{name}: not measured")
        elif not 100 * scores[name].share >= percent:  # NaN is missed too
            lines.append(f"{name}: {100 * scores[name].share:.1f} % is below {percent:g} %")
    return lines
