"""Paired comparison of two runs over the same cases: what is a difference, and what is chance.

The marks of a run come in the same order whatever was answered, so those of two runs pair up.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from galago.lab.eval.score import Mark


@dataclass(frozen=True)
class Difference:
    """One measure of a run less that of the reference; shares in -1..1."""

    tasks: int
    share: float
    """of the run itself"""
    change: float
    spread: float
    """half the width of the change's 95 % interval"""
    lost: int
    """answers that were better in the reference"""
    won: int
    p: float
    """how likely so uneven a split of lost and won is by chance (exact sign test; McNemar's of right and wrong)"""


def compare_marks(
    reference: Sequence[Sequence[Mark]],
    run: Sequence[Sequence[Mark]],
    order: Sequence[str] = (),
    distances: Collection[str] = (),
) -> dict[str, Difference]:
    """The differences in all measures: those of `order` first, others in the order of their names.

    The marks of one picture stand together, and are not independent; where there is only one, its answers are taken
    as if they were. Of `distances` the lower one is the better. Raises ValueError for runs over other cases.
    """
    if [[m.measure for m in marks] for marks in reference] != [[m.measure for m in marks] for marks in run]:
        raise ValueError("the runs were not over the same cases")
    pairs: dict[str, list[tuple[int, Mark, Mark]]] = {}
    for picture, (before, after) in enumerate(zip(reference, run, strict=True)):
        for a, b in zip(before, after, strict=True):
            pairs.setdefault(a.measure, []).append((picture, a, b))
    names = (*order, *sorted(set(pairs) - set(order)))
    return {name: _difference(pairs[name], name in distances) for name in names if name in pairs}


def _difference(found: Sequence[tuple[int, Mark, Mark]], lower_is_better: bool) -> Difference:
    pairs = [(a, b) for _, a, b in found]
    before, after = (_ratio(marks) for marks in zip(*pairs, strict=True))
    several = len({picture for picture, _, _ in found}) > 1
    # How much each picture moves the difference of the two ratios, to first order.
    moves: dict[int, float] = {}
    for place, (picture, a, b) in enumerate(found):
        key = picture if several else place
        moves[key] = moves.get(key, 0.0) + _influence(b, after) - _influence(a, before)
    lost = sum(_missing(b) > _missing(a) for a, b in pairs)
    won = sum(_missing(b) < _missing(a) for a, b in pairs)
    if lower_is_better:
        lost, won = won, lost
    spread = 1.96 * math.sqrt(sum(move * move for move in moves.values()))
    return Difference(len(pairs), after[0], after[0] - before[0], spread, lost, won, sign_test(lost, won))


def _ratio(marks: Sequence[Mark]) -> tuple[float, float]:
    """The share of all marks, and their total."""
    total = sum(mark.total for mark in marks)
    return (sum(mark.hits for mark in marks) / total if total else 0.0), total


def _influence(mark: Mark, of: tuple[float, float]) -> float:
    share, total = of
    return (mark.hits - share * mark.total) / total if total else 0.0


def _missing(mark: Mark) -> float:
    return mark.total - mark.hits


def sign_test(lost: int, won: int) -> float:
    """The probability of a split at least as uneven where both sides are equally likely, 0..1."""
    n, fewer = lost + won, min(lost, won)
    tail = sum(math.comb(n, i) for i in range(fewer + 1)) / 2**n
    return min(1.0, 2 * tail)
