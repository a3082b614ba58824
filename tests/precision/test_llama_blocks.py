"""Llama's blocks (RMSNorm, grouped queries, a gated MLP) in one native call are as when they run part by part."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from instruction_sets import HERE, built
from torch import Tensor

from galago.engine.kv_cache import KVCache
from galago.nn.attention import attend_cached, merge_heads, split_heads
from galago.nn.rotary import rotary_table, rotate
from galago.nn.stack import Block, Stack, stack_of
from galago.precision.linear import LinearWeight, Norm, linear, rms_norm
from galago.precision.quantise import quantise
from galago.precision.quantised import weight_for

CPU = torch.device("cpu")
LAYERS, HEADS, KV_HEADS, HEAD_DIM, INNER = 3, 6, 2, 32, 160
DIM = HEADS * HEAD_DIM
EPS = 1e-5
CLOSE = 0.03
"""Root mean square of the difference as a share of the values'. Attention of many rows is in bfloat16, and after the
least difference some activations round to another of 256 steps; a row that sees one key too many is off by a tenth."""
pytestmark = built


@pytest.fixture(scope="module", params=[(s, bits) for s in HERE for bits in (8, 4)], ids=lambda p: f"{p[0]}-int{p[1]}")
def stack(request: pytest.FixtureRequest) -> Iterator[Stack]:
    instructions, bits = request.param
    generator = torch.Generator().manual_seed(5)

    def weight(n: int, k: int) -> LinearWeight:
        return weight_for(
            quantise(torch.randn(n, k, generator=generator) * k**-0.5, torch.zeros(n), bits), CPU, torch.float32
        )

    def block() -> Block:
        norms = (Norm(torch.rand(DIM, generator=generator) + 0.5), Norm(torch.rand(DIM, generator=generator) + 0.5))
        qkv = weight((HEADS + 2 * KV_HEADS) * HEAD_DIM, DIM)
        return Block(norms, (qkv, weight(DIM, DIM), weight(2 * INNER, DIM), weight(DIM, INNER)))

    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setenv("GALAGO_KERNELS", instructions)
        made = stack_of([block() for _ in range(LAYERS)], HEADS, KV_HEADS, torch.bfloat16)
        assert made
        yield made


def new_cache() -> KVCache:
    return KVCache((LAYERS, KV_HEADS, HEAD_DIM), 2000, torch.bfloat16, CPU)


def table(cache: KVCache, n: int) -> tuple[Tensor, Tensor]:
    return rotary_table(torch.arange(cache.length, cache.length + n), HEAD_DIM)


def natively(stack: Stack, caches: list[KVCache], parts: list[Tensor]) -> list[Tensor]:
    rows = [len(part) for part in parts]
    for cache, n in zip(caches, rows, strict=True):
        cache.reserve(n)
    tables = [table(cache, n) for cache, n in zip(caches, rows, strict=True)]
    joined = torch.cat([cos for cos, _ in tables]), torch.cat([sin for _, sin in tables])
    x = torch.cat(parts)
    stack.forward(x, [(cache.kv_buffers(), n) for cache, n in zip(caches, rows, strict=True)], joined, eps=EPS)
    for cache, n in zip(caches, rows, strict=True):
        cache.advance(n)
    return list(x.split(rows))


def by_parts(stack: Stack, cache: KVCache, x: Tensor) -> Tensor:
    n = len(x)
    cache.reserve(n)
    turns = table(cache, n)
    for i, block in enumerate(stack.blocks):
        qkv, proj, fc1, fc2 = block.linears
        q, k, v = linear(rms_norm(x, block.norms[0].weight, EPS), qkv).split(
            (DIM, KV_HEADS * HEAD_DIM, KV_HEADS * HEAD_DIM), -1
        )
        q, k = rotate(split_heads(q, HEADS), turns), rotate(split_heads(k, KV_HEADS), turns)
        segments = cache.append(i, k, split_heads(v, KV_HEADS))
        x = x + linear(merge_heads(attend_cached(q, segments, cache.length)), proj)
        gate, up = linear(rms_norm(x, block.norms[1].weight, EPS), fc1).chunk(2, -1)
        x = x + linear(F.silu(gate) * up, fc2)
    cache.advance(n)
    return x


def off(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


@torch.inference_mode()
def test_prompts_and_steps_are_as_part_by_part(stack: Stack) -> None:
    """Prompts of many rows take another way through attention than those of few; chunks of the cache end anywhere."""
    one, other = new_cache(), new_cache()
    generator = torch.Generator().manual_seed(1)
    for rows in (1, 33, 5, 200, 1, 70):
        x = torch.randn(rows, DIM, generator=generator)
        [found] = natively(stack, [one], [x.clone()])
        assert off(found, by_parts(stack, other, x)) < CLOSE, rows


@torch.inference_mode()
def test_sequences_give_exactly_what_each_gives_alone(stack: Stack) -> None:
    generator = torch.Generator().manual_seed(2)
    lengths, rows = (3, 64, 130, 1), (1, 40, 2, 90)
    before = [torch.randn(n, DIM, generator=generator) for n in lengths]
    parts = [torch.randn(n, DIM, generator=generator) for n in rows]
    alone = []
    for first, part in zip(before, parts, strict=True):
        cache = new_cache()
        natively(stack, [cache], [first.clone()])
        alone += natively(stack, [cache], [part.clone()])
    caches = [new_cache() for _ in parts]
    natively(stack, caches, [first.clone() for first in before])
    for found, wanted in zip(natively(stack, caches, [part.clone() for part in parts]), alone, strict=True):
        assert torch.equal(found, wanted)


@torch.inference_mode()
def test_no_row_sees_what_comes_after_it(stack: Stack) -> None:
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(100, DIM, generator=generator)
    changed = x.clone()
    changed[60:] = torch.randn(40, DIM, generator=generator)
    [found], [other] = (natively(stack, [new_cache()], [given]) for given in (x.clone(), changed))
    assert torch.equal(found[:60], other[:60]) and not torch.equal(found[60:], other[60:])
