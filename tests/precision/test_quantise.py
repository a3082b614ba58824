"""What a weight becomes, how it is packed, and that huge channels do not drown the others."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from galago.precision.quantise import dequantise, panel_bytes, quantise, values
from galago.precision.quantised import RowMajor, weight_for, weight_only

CPU = torch.device("cpu")
LOSS = {8: 0.01, 4: 0.1}
"""Root mean square of what normal weights lose, as a share of theirs."""


def off(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt().clamp_min(1e-30))


@given(st.integers(1, 150), st.integers(1, 150), st.sampled_from([8, 4]), st.integers(0, 9))
def test_any_shape(n: int, k: int, bits: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weight, bias = torch.randn(n, k, generator=generator), torch.randn(n, generator=generator)
    w = quantise(weight, bias, bits)
    assert w.panels.shape == (-(-n // 64), panel_bytes(k, bits)) and w.panels.dtype == torch.uint8
    q = values(w)
    assert q.shape == (n, k) and int(q.abs().max()) <= (127 if bits == 8 else 120)
    assert torch.equal(w.total[:n], q.sum(1, dtype=torch.int32)) and torch.equal(w.bias[:n], bias)
    if k > 20:
        assert off(dequantise(w), weight) < 1.3 * LOSS[bits]


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("factor", [30.0, 100.0])
def test_huge_channels_cost_the_others_nothing(bits: int, factor: float) -> None:
    weight, bias = torch.randn(256, 512), torch.zeros(256)
    x = torch.randn(64, 512)
    plain = weight_for(quantise(weight, bias, bits), CPU, torch.float32).forward(x)
    huge = torch.ones(512)
    huge[::37] = factor
    rescaled = weight_for(quantise(weight / huge, bias, bits), CPU, torch.float32).forward(x * huge)
    wanted = F.linear(x, weight)
    assert off(rescaled, wanted) < 1.1 * off(plain, wanted)


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_of_nothing(bits: int) -> None:
    weight = torch.zeros(70, 40)
    weight[3, 5] = 1e-9
    found = weight_for(quantise(weight, torch.ones(70), bits), CPU, torch.float32).forward(torch.randn(3, 40))
    torch.testing.assert_close(found, torch.ones(3, 70), rtol=0, atol=1e-6)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("m", [1, 7, 40])
def test_torch_computes_the_same_where_there_are_no_kernels(bits: int, m: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GALAGO_KERNELS", "none")
    w = quantise(torch.randn(96, 128), torch.randn(96), bits)
    kind = weight_for(w, CPU, torch.float32)
    assert isinstance(kind, RowMajor)
    x = torch.randn(m, 128)
    wanted = F.linear(x, dequantise(w), w.bias[:96])
    assert off(kind.forward(x), wanted) < 0.02
    assert off(kind.forward(x, activate=True), F.gelu(wanted, approximate="tanh")) < 0.02


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("m", [5, 40])
def test_the_kind_for_accelerators(bits: int, dtype: torch.dtype, m: int) -> None:
    """Run on the CPU, which is a device to torch like any other."""
    w = quantise(torch.randn(96, 128), torch.randn(96), bits)
    x = torch.randn(2, m, 128)
    found = weight_only(w, CPU, dtype).forward(x.to(dtype), activate=True)
    assert found.shape == (2, m, 96) and found.dtype == dtype
    assert off(found.float(), F.gelu(F.linear(x, dequantise(w), w.bias[:96]), approximate="tanh")) < 0.02
