"""Histograms: what their percentiles can and cannot tell."""

from bisect import bisect_left
from itertools import pairwise
from math import ceil

import pytest
from hypothesis import given
from hypothesis import strategies as st

from galago.engine.counters import Histogram

BOUNDS = (0.001, 0.01, 0.1, 1.0, 10.0)
seconds = st.floats(0, 50, allow_subnormal=False)


def histogram(values: list[float]) -> Histogram:
    made = Histogram(BOUNDS)
    for value in values:
        made.add(value)
    return made


@given(values=st.lists(seconds, min_size=1, max_size=60), q=st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]))
def test_a_percentile_falls_in_the_bucket_of_the_true_one(values: list[float], q: float) -> None:
    true = sorted(values)[ceil(q * len(values)) - 1]
    i = bisect_left(BOUNDS, true)
    low, high = (BOUNDS[i - 1] if i else 0), (BOUNDS[i] if i < len(BOUNDS) else max(values))
    told = histogram(values).quantile(q)
    assert told is not None
    assert low <= told <= high * (1 + 1e-9)
    assert min(values) <= told <= max(values) * (1 + 1e-9)


@given(values=st.lists(seconds, min_size=1, max_size=60))
def test_percentiles_do_not_fall(values: list[float]) -> None:
    made = histogram(values)
    told = [made.quantile(q) or 0.0 for q in (0.0, 0.25, 0.5, 0.9, 0.99, 1.0)]
    assert all(b >= a * (1 - 1e-9) for a, b in pairwise(told))


@given(value=seconds, n=st.integers(1, 5))
def test_one_value_is_told_exactly(value: float, n: int) -> None:
    made = histogram([value] * n)
    assert made.quantile(0.5) == value
    assert made.count == n


def test_evenly_spread_values_are_interpolated() -> None:
    made = histogram([0.2, *(0.1 + 0.009 * i for i in range(1, 100)), 1.0])
    assert made.quantile(0.5) == pytest.approx(0.55, abs=0.02)


def test_a_bound_is_inclusive_and_nothing_has_no_percentile() -> None:
    assert histogram([0.01, 0.0100001, 11.0]).buckets == [0, 1, 1, 0, 0, 1]
    assert histogram([]).quantile(0.5) is None
