"""Counters and histograms as plain numbers, from which both Prometheus' exposition and stats() are made."""

from bisect import bisect_left
from dataclasses import dataclass
from itertools import accumulate

Labels = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class MetricSpec:
    """A Prometheus metric with its label names; with `bounds` of buckets (upper, inclusive) a histogram."""

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
        """The q-quantile (0..1) of the values; None where there are none.

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


class Counters:
    """Counts and histograms by family and label values. Not thread-safe: callers hold a lock."""

    def __init__(self) -> None:
        self.counts: dict[MetricSpec, dict[Labels, float]] = {}
        self.histograms: dict[MetricSpec, dict[Labels, Histogram]] = {}

    def count(self, spec: MetricSpec, labels: Labels, n: float = 1) -> None:
        of = self.counts.setdefault(spec, {})
        of[labels] = of.get(labels, 0) + n

    def observe(self, spec: MetricSpec, labels: Labels, value: float) -> None:
        of = self.histograms.setdefault(spec, {})
        if labels not in of:
            of[labels] = Histogram(spec.bounds)
        of[labels].add(value)
