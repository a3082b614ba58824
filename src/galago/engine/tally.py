"""Counts and histograms in plain numbers, from which both the exposition and stats() are made."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

Labels = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class Family:
    """What is counted, under its name in the exposition; with `bounds` (upper, inclusive) a histogram."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()


class Histogram:
    """How many values fell into each bucket, the last of which is for those above all bounds."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.buckets = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.least = float("inf")
        self.most = float("-inf")

    @property
    def count(self) -> int:
        return sum(self.buckets)

    def add(self, value: float) -> None:
        self.buckets[bisect_left(self.bounds, value)] += 1
        self.sum += value
        if value < self.least:
            self.least = value
        if value > self.most:
            self.most = value

    def quantile(self, q: float) -> float | None:
        """The value that a part q (0..1) of all does not exceed; None where there are none.

        Only its bucket is known: within that, values are taken to be spread evenly between its bounds,
        and between the least and the most value seen.
        """
        totals = list(accumulate(self.buckets))
        if not totals[-1]:
            return None
        rank = q * totals[-1]
        i = bisect_left(totals, max(rank, 1e-9))  # empty buckets in front hold no value
        low = max(self.bounds[i - 1], self.least) if i else self.least
        high = min(self.bounds[i], self.most) if i < len(self.bounds) else self.most
        return low + (high - low) * (rank - (totals[i] - self.buckets[i])) / self.buckets[i]


class Tally:
    """Counts and histograms by family and label values. Its caller keeps threads apart."""

    def __init__(self) -> None:
        self.counts: dict[Family, dict[Labels, float]] = {}
        self.histograms: dict[Family, dict[Labels, Histogram]] = {}

    def count(self, family: Family, labels: Labels, n: float = 1) -> None:
        of = self.counts.setdefault(family, {})
        of[labels] = of.get(labels, 0) + n

    def observe(self, family: Family, labels: Labels, value: float) -> None:
        of = self.histograms.setdefault(family, {})
        if labels not in of:
            of[labels] = Histogram(family.bounds)
        of[labels].add(value)
