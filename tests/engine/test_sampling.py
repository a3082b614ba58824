"""What can be drawn, and that a seed draws the same again."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from galago.engine.sampling import Sampler, log_probabilities, make_generator, probabilities, sample, top_indices
from galago.errors import NotANumber
from galago.request import Sampling

# Probabilities 0.5, 0.25, 0.125, 0.125 in another order.
LOGITS = np.log(np.array([0.125, 0.5, 0.125, 0.25], np.float32))


@pytest.mark.parametrize(
    ("top_p", "min_p", "kept"),
    [
        (1.0, 0.0, {0, 1, 2, 3}),
        (0.0, 0.0, {1}),
        (0.49, 0.0, {1}),
        # Not more than 0.5 comes before the second: it stays.
        (0.5, 0.0, {1, 3}),
        (0.51, 0.0, {1, 3}),
        (1.0, 0.4, {1, 3}),
        (1.0, 0.6, {1}),
        (1.0, 1.0, {1}),
    ],
)
def test_what_stays(top_p: float, min_p: float, kept: set[int]) -> None:
    p = probabilities(LOGITS, 1.0, top_p, min_p)
    assert {*p.nonzero()[0].tolist()} == kept
    assert float(p.sum()) == pytest.approx(1)


@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    st.floats(0.01, 10),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_most_likely_always_stays(logits: list[float], temperature: float, top_p: float, min_p: float) -> None:
    row = np.array(logits, np.float32)
    p = probabilities(row, temperature, top_p, min_p)
    assert np.isfinite(p).all()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)
    assert row[p.argmax()] == pytest.approx(row.max(), abs=1e-3 * temperature)  # or one that is just as likely


@given(st.integers(0, 2**32), st.floats(0.1, 4), st.floats(0, 1))
def test_what_falls_is_what_a_full_sort_drops(seed: int, temperature: float, top_p: float) -> None:
    row = np.random.default_rng(seed).normal(0, 3, 500).astype(np.float32)
    p = np.exp(row.astype(np.float64) / temperature)
    p /= p.sum()
    order = np.argsort(-p)
    before = np.cumsum(p[order]) - p[order]
    kept = {*np.flatnonzero(probabilities(row, temperature, top_p)).tolist()}
    assert {*order[before <= top_p - 1e-5].tolist()} <= kept <= {int(order[0]), *order[before <= top_p + 1e-5].tolist()}


def test_suppressed_tokens_are_never_drawn() -> None:
    logits = np.array([0.0, -np.inf, 0.0], np.float32)
    p = probabilities(logits, 5.0)
    assert p.tolist() == pytest.approx([0.5, 0, 0.5])


def draws(seed: int | None) -> list[int]:
    generator = make_generator(seed)
    return [sample(np.zeros(1000, np.float32), Sampling(temperature=1.0), generator) for _ in range(20)]


@pytest.mark.parametrize("seed", [0, 1234, -1, 2**64 + 5])
def test_a_seed_draws_the_same_again(seed: int) -> None:
    assert draws(seed) == draws(seed)


def test_seeds_differ() -> None:
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)


def test_temperature_zero_is_greedy_and_draws_nothing() -> None:
    generator = make_generator(0)
    before = generator.bit_generator.state
    assert sample(LOGITS, Sampling(), generator) == 1
    assert generator.bit_generator.state == before


@pytest.mark.parametrize("logits", [[0.0, float("nan")], [-np.inf, -np.inf], [np.inf, 0.0]])
def test_logits_that_are_no_numbers_are_refused(logits: list[float]) -> None:
    with np.errstate(invalid="ignore"), pytest.raises(NotANumber, match="the next token"):
        probabilities(np.array(logits, np.float32), 1.0)


def test_draws_follow_the_probabilities() -> None:
    generator = make_generator(7)
    drawn = [sample(LOGITS, Sampling(temperature=1.0), generator) for _ in range(4000)]
    assert np.bincount(drawn) / 4000 == pytest.approx([0.125, 0.5, 0.125, 0.25], abs=0.03)


@pytest.mark.parametrize(
    ("top_k", "top_p", "kept"), [(1, 1.0, {1}), (2, 1.0, {1, 3}), (9, 1.0, {0, 1, 2, 3}), (2, 0.6, {1})]
)
def test_top_k_goes_before_top_p(top_k: int, top_p: float, kept: set[int]) -> None:
    p = probabilities(LOGITS, 1.0, top_p, 0.0, top_k)
    assert {*p.nonzero()[0].tolist()} == kept


@given(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0]), max_size=12), st.integers(0, 14))
def test_likeliest_are_in_the_order_of_greedy_draws(values: list[float], n: int) -> None:
    left, drawn = np.array(values, np.float32), []
    for _ in range(min(n, len(values))):
        drawn.append(int(left.argmax()))
        left[drawn[-1]] = -np.inf
    assert top_indices(np.array(values, np.float32), n) == drawn


@given(st.lists(st.floats(-80, 80, width=32), min_size=1, max_size=20), st.floats(-1e4, 1e4, width=32))
def test_log_probabilities_sum_to_one(logits: list[float], shift: float) -> None:
    row = np.array(logits, np.float32)
    values = log_probabilities(row)
    assert float(np.exp(values, dtype=np.float64).sum()) == pytest.approx(1, abs=1e-5)
    assert log_probabilities(row + np.float32(shift)) == pytest.approx(values, abs=1e-2)


PENALTY = st.sampled_from([0.0, 0.0, 0.5, -1.25, 2.0, -2.0])
BIAS = st.dictionaries(st.integers(0, 4), st.sampled_from([0.0, 0.25, -100.0, 100.0]), max_size=3)


@given(PENALTY, PENALTY, BIAS, st.lists(st.lists(st.integers(-8, 8), min_size=5, max_size=5), min_size=1, max_size=8))
def test_penalties_and_bias_are_as_openai_documents_them(
    frequency: float, presence: float, bias: dict[int, float], rows: list[list[int]]
) -> None:
    """logits - count * frequency - (count > 0) * presence + bias, of which the largest is taken."""
    sampler = Sampler(Sampling(frequency_penalty=frequency, presence_penalty=presence, logit_bias=bias))
    count = np.zeros(5)
    for row in rows:
        logits = np.array(row, np.float32)
        wanted = np.array(row) - count * frequency - (count > 0) * presence
        wanted += [bias.get(token, 0) for token in range(5)]
        drawn = sampler.draw(logits)
        assert logits.tolist() == wanted.tolist()
        assert drawn == wanted.argmax()
        count[drawn] += 1


def test_no_penalty_changes_no_bit() -> None:
    sampler, row = Sampler(Sampling()), np.array([-0.0, 1e-45, 3.1], np.float32)
    for _ in range(3):
        logits = row.copy()
        sampler.draw(logits)
        assert logits.tobytes() == row.tobytes()


def test_repeated_tokens_become_less_likely() -> None:
    """Towards zero where they were likely, further away where they were not."""
    sampler = Sampler(Sampling(repetition_penalty=3.0))
    rows = [[3.0, 2.0, -1.0], [3.0, 2.0, -1.0], [0.5, 0.5, -1.0], [0.0, 0.0, -1.0]]
    assert [sampler.draw(np.array(row, np.float32)) for row in rows] == [0, 1, 0, 0]
    assert sampler.draw(np.array([-1.0, -1.1, -2.9], np.float32)) == 2
