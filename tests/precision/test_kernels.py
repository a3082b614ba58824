"""Every instruction set that this processor has gives what torch gives, and rows never touch each other."""

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import ALL, HALVES, HERE, built, or_skipped
from torch import Tensor

from galago.kernels import Kernels, load
from galago.precision.quantise import Quantised, dequantise, quantise

pytestmark = built


@pytest.fixture(params=or_skipped(HERE))
def k(request: pytest.FixtureRequest) -> Kernels:
    found = load(request.param)
    assert found
    return found


@pytest.mark.parametrize("name", ALL)
def test_a_set_is_offered_where_the_processor_has_it(name: str) -> None:
    if name not in HERE:
        pytest.skip(f"needs a processor with {name}: nothing of it is tested here")
    assert (found := load(name)) and found.name == name


def made(n: int, k: int, bits: int) -> Quantised:
    generator = torch.Generator().manual_seed(n * k + bits)
    return quantise(torch.randn(n, k, generator=generator), torch.randn(n, generator=generator), bits)


def handle(k: Kernels, w: Quantised):  # type: ignore[no-untyped-def]
    return k.weight(w.panels, w.total, w.scale, w.bias, w.multiply, w.n, w.k, w.bits)


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize(("n", "n_in"), [(1, 3), (64, 32), (100, 70), (192, 588), (300, 1152)])
@pytest.mark.parametrize("m", [0, 1, 5, 16, 17, 70])
def test_product(k: Kernels, bits: int, n: int, n_in: int, m: int) -> None:
    w = made(n, n_in, bits)
    x = torch.randn(m, n_in) * 2 + 0.5
    found = k.gemm(x, handle(k, w))
    assert found.shape == (m, n)
    if m:
        # Against what the products would be without cancelling, which a few channels may do.
        lost = (found - F.linear(x, dequantise(w), w.bias[:n])).square().mean().sqrt()
        assert lost < 0.02 * F.linear(x.square(), dequantise(w).square()).mean().sqrt()
        torch.testing.assert_close(k.gemm(x, handle(k, w), gelu=True), F.gelu(found, approximate="tanh"))


@pytest.mark.parametrize("bits", [8, 4])
def test_rows_computed_together_are_exactly_those_computed_alone(k: Kernels, bits: int) -> None:
    w = handle(k, kept := made(256, 2048, bits))
    x = torch.randn(40, 2048)
    x[3] *= 1000  # a neighbour that would take every level of a shared scale
    alone = torch.cat([k.gemm(row.unsqueeze(0), w) for row in x])
    for m in (*range(1, 17), 40):
        assert torch.equal(k.gemm(x[:m], w), alone[:m]), m
    assert kept.n == 256


@pytest.mark.parametrize("bits", [8, 4])
def test_every_instruction_set_gives_the_same_numbers(bits: int) -> None:
    w = made(200, 300, bits)
    x = torch.randn(30, 300)
    found = [s.gemm(x, handle(s, w)) for s in map(load, HERE) if s]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("n", "n_in"), [(1, 3), (67, 70), (256, 512)])
def test_floating_point_weights(k: Kernels, dtype: torch.dtype, n: int, n_in: int) -> None:
    weight, bias = torch.randn(n, n_in).to(dtype), torch.randn(n).to(dtype)
    x = torch.randn(16, n_in)
    alone = torch.cat([k.dense(row.unsqueeze(0), weight, bias) for row in x])
    torch.testing.assert_close(alone, F.linear(x, weight.float(), bias.float()), rtol=1e-4, atol=1e-4)
    for m in range(1, 17):
        assert torch.equal(k.dense(x[:m], weight, bias), alone[:m]), m


def test_product_of_rows_that_lie_apart_and_of_extremes(k: Kernels) -> None:
    w = made(64, 48, 8)
    wide = torch.randn(7, 96)
    assert torch.equal(k.gemm(wide[:, :48], handle(k, w)), k.gemm(wide[:, :48].clone(), handle(k, w)))
    flat = torch.stack([torch.zeros(48), torch.full((48,), 5.0), torch.full((48,), -5.0), torch.randn(48) * 1e-20])
    torch.testing.assert_close(k.gemm(flat, handle(k, w)), F.linear(flat, dequantise(w), w.bias), rtol=0.02, atol=0.2)


@pytest.mark.parametrize(
    ("heads", "kv_heads", "t", "s", "dim"), [(4, 4, 1, 70, 64), (4, 2, 5, 40, 32), (3, 3, 13, 300, 80)]
)
@pytest.mark.parametrize("pieces", [1, 2, 3])
def test_attention_over_a_cache(k: Kernels, heads: int, kv_heads: int, t: int, s: int, dim: int, pieces: int) -> None:
    q = torch.randn(heads, t, dim)
    keys, values = torch.randn(2, kv_heads, s, dim).bfloat16()
    cuts = [s * i // pieces for i in range(pieces + 1)]
    # Segments with room behind them, as caches that grow have.
    roomy = [
        tuple(F.pad(x[:, a:b], (0, 0, 0, 3), value=9.0)[:, : b - a] for x in (keys, values))
        for a, b in itertools.pairwise(cuts)
    ]
    mask = torch.ones(t, s, dtype=torch.bool).tril(s - t)
    wide = (x.float().repeat_interleave(heads // kv_heads, 0) for x in (keys, values))
    wanted = F.scaled_dot_product_attention(q, *wide, attn_mask=mask)
    torch.testing.assert_close(k.decode(q, roomy, s - t), wanted, rtol=1e-4, atol=1e-4)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("batch", "heads", "kv_heads", "t", "dim"), [(1, 4, 4, 50, 64), (2, 4, 2, 129, 72), (1, 3, 3, 7, 9)]
)
@pytest.mark.parametrize("k", or_skipped(HERE), indirect=True)
def test_attention_of_all_to_all(k: Kernels, batch: int, heads: int, kv_heads: int, t: int, dim: int) -> None:
    q = torch.randn(batch, t, heads, dim).transpose(1, 2)
    keys, values = torch.randn(2, batch, t, kv_heads, dim).transpose(2, 3)
    wide = (x.repeat_interleave(heads // kv_heads, 1) for x in (keys, values))
    wanted = F.scaled_dot_product_attention(q, *wide)
    assert off(k.attention(q, keys, values), wanted) < (0.01 if k.name in HALVES else 0.002)
    assert off(k.attention(q, keys, values, int8=True), wanted) < 0.02
    # What all keys share takes no steps from them, and an empty query weighs all alike.
    shared = keys + 300 * torch.randn(dim)
    assert off(k.attention(q, shared, values, int8=True), wanted) < 0.02
    nothing = k.attention(torch.zeros_like(q), keys, values, int8=True)
    average = values.mean(2, keepdim=True).repeat_interleave(heads // kv_heads, 1).expand_as(nothing)
    torch.testing.assert_close(nothing, average, rtol=0.02, atol=0.01)
    # Where all is as large as it can be, sums are too.
    most = k.attention(torch.zeros_like(q), keys, torch.full_like(values, -7))
    torch.testing.assert_close(most, torch.full_like(most, -7), rtol=0.01, atol=0)


def test_what_runs_between_the_products(k: Kernels) -> None:
    x, gain, bias = torch.randn(33, 70) * 3 + 1, torch.randn(70), torch.randn(70)
    torch.testing.assert_close(k.norm(x, gain, bias, 1e-5), F.layer_norm(x, (70,), gain, bias))
    torch.testing.assert_close(k.norm(x, gain, None, 1e-5), F.rms_norm(x, (70,), gain, 1e-5))
    a, b = torch.randn(2, 33, 70)
    assert torch.equal(k.add(x, a), x + a) and torch.equal(k.add(x, a, b), x + a + b)
    heads, cos, sin = torch.randn(4, 30, 64), torch.randn(30, 16), torch.randn(30, 16)
    one, two, rest = heads.split((16, 16, 32), -1)
    turned = torch.cat((one * cos - two * sin, one * sin + two * cos, rest), -1)
    k.rotate(heads, cos, sin)
    torch.testing.assert_close(heads, turned)
    words = torch.randint(-(2**31), 2**31, (100_003,), dtype=torch.int64).to(torch.int32)
    assert (k.read(words) - int(words.sum())) % 2**32 == 0


def test_several_threads_may_compute_at_once(k: Kernels) -> None:
    from concurrent.futures import ThreadPoolExecutor

    w = handle(k, kept := made(512, 512, 8))
    xs = [torch.randn(20, 512) for _ in range(8)]
    wanted = [k.gemm(x, w) for x in xs]
    with ThreadPoolExecutor(8) as pool:
        for _ in range(20):
            for found, right in zip(pool.map(lambda x: k.gemm(x, w), xs), wanted, strict=True):
                assert torch.equal(found, right)
    assert kept.bits == 8


@pytest.fixture(params=[1, 2])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def test_memory_runs_out_and_the_next_call_is_right(k: Kernels, threads: int) -> None:
    """Rows and keys that lie on top of each other cost nothing; room to work on so many no machine has."""
    w = handle(k, kept := made(1, 1 << 20, 8))
    row = torch.randn(1, kept.k)
    q, keys, values = torch.randn(4, 1, 64), *torch.randn(2, 4, 1, 64).bfloat16()
    wide = torch.randn(1, 4, 1, 64)

    def right() -> list[Tensor]:
        few = [k.gemm(row, w), k.decode(q, [(keys, values)] * 40, 39)]
        return [*few, k.attention(wide, wide, wide)]

    wanted = right()
    for _ in range(3):
        with pytest.raises(MemoryError):  # in the thread that asks, before others help
            k.gemm(row.expand(1 << 28, -1), w)
        many = [x.expand(-1, 1 << 50, -1) for x in (keys, values)]
        with pytest.raises(MemoryError):  # in each thread
            k.decode(q, [(many[0], many[1])], 0)
        with pytest.raises(MemoryError):
            k.attention(wide, *[wide.expand(-1, -1, 1 << 44, -1)] * 2)
        for found, value in zip(right(), wanted, strict=True):
            assert torch.equal(found, value)


def test_a_forked_child_computes(k: Kernels) -> None:
    import os

    w = handle(k, kept := made(512, 512, 8))
    x = torch.randn(20, 512)
    wanted = k.gemm(x, w)
    child = os.fork()
    if child == 0:
        os._exit(0 if torch.equal(k.gemm(x, w), wanted) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert kept.bits == 8
