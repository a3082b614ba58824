"""What can be drawn, and that a seed draws the same again."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from galago.engine.sampling import make_generator, probabilities, sample
from galago.request import Sampling

# Probabilities 0.5, 0.25, 0.125, 0.125 in another order.
LOGITS = torch.tensor([0.125, 0.5, 0.125, 0.25]).log()


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
    assert {*p.nonzero().flatten().tolist()} == kept
    assert float(p.sum()) == pytest.approx(1)


@settings(deadline=None)
@given(
    st.lists(st.floats(-50, 50), min_size=1, max_size=20),
    st.floats(0.01, 10),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_the_most_likely_always_stays(logits: list[float], temperature: float, top_p: float, min_p: float) -> None:
    p = probabilities(torch.tensor(logits), temperature, top_p, min_p)
    assert torch.isfinite(p).all()
    assert float(p.sum()) == pytest.approx(1, abs=1e-4)
    before = torch.softmax(torch.tensor(logits) / temperature, -1)
    assert float(before[int(p.argmax())]) == float(before.max())  # or one that is just as likely


def test_suppressed_tokens_are_never_drawn() -> None:
    logits = torch.tensor([0.0, float("-inf"), 0.0])
    p = probabilities(logits, 5.0)
    assert p.tolist() == pytest.approx([0.5, 0, 0.5])


def draws(seed: int | None) -> list[int]:
    generator = make_generator(seed)
    return [sample(torch.zeros(1000), Sampling(temperature=1.0), generator) for _ in range(20)]


@pytest.mark.parametrize("seed", [0, 1234, -1, 2**64 + 5])
def test_a_seed_draws_the_same_again(seed: int) -> None:
    assert draws(seed) == draws(seed)


def test_seeds_differ() -> None:
    assert draws(1) != draws(2)
    assert draws(None) != draws(None)


def test_temperature_zero_is_greedy_and_draws_nothing() -> None:
    generator = make_generator(0)
    before = generator.get_state()
    assert sample(LOGITS, Sampling(), generator) == 1
    assert torch.equal(generator.get_state(), before)
