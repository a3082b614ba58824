"""float16 and bfloat16 where the processor has no instructions for them: computed in float32, and rounded once."""

import pytest
import torch
import torch.nn.functional as F

from galago.nn.attention import attend_cached, attention
from galago.precision import linear
from galago.precision.linear import Dense

HALVES = pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])


@pytest.fixture(autouse=True)
def widened(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a processor where that was found to be the quickest, with weights of a few pieces."""
    ways = {torch.float32: F.linear}
    monkeypatch.setattr(linear, "float_product", lambda dtype: ways.get(dtype, linear._widened_linear))
    monkeypatch.setattr(linear, "WIDENED", 64 * 30)


@HALVES
@pytest.mark.parametrize("outputs", [1, 30, 60, 70])
@torch.inference_mode()
def test_a_product_of_many_rows_is_that_of_float32_rounded_once(dtype: torch.dtype, outputs: int) -> None:
    x, weight, bias = (torch.randn(s).to(dtype) for s in ((2, 20, 64), (outputs, 64), (outputs,)))
    wanted = F.linear(x.double(), weight.double(), bias.double())
    found = Dense(weight, bias).forward(x)
    assert found.dtype == dtype and found.shape == (2, 20, outputs)
    # Half a step of the type, and what float32's sums leave.
    assert ((found.double() - wanted).abs() <= torch.finfo(dtype).eps / 2 * wanted.abs() + 1e-5).all()


@HALVES
@torch.inference_mode()
def test_attention_is_that_of_float32_rounded_once(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 2, 9, 16).to(dtype) for _ in range(3))
    assert torch.equal(attention(q, k, v), attention(q.float(), k.float(), v.float()).to(dtype))
    # Keys and values of float16: those of bfloat16 have a kernel of their own.
    k, v = (kept[0].half() for kept in (k, v))
    segments = [(k[:, :4], v[:, :4]), (k[:, 4:], v[:, 4:])]
    assert torch.equal(attend_cached(q[0], segments, 0), attend_cached(q[0].float(), segments, 0).to(dtype))
