"""All blocks in one call give what they give one by one, and sequences that step together never touch."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch import Tensor

from galago import hub
from galago.engine.kv_cache import KVCache
from galago.eval.scenes.draw import scene_at
from galago.families.moondream.model import Moondream, load_moondream
from galago.families.moondream.text import embedded
from galago.families.moondream.vision import crop_features
from galago.kernels import load
from galago.nn.rotary import rotary_table
from galago.precision import pick_precision

CPU = torch.device("cpu")
SETS = [name for name in ("avx512-vnni-bf16", "avx512-vnni", "avx2", "neon-dotprod") if load(name)]
MOST = 16
"""Sequences that step together."""
CLOSE = 3e-3
CLOSE_IN_BYTES = 0.02
"""Where the stack's attention over all is in int8 and the blocks' is in bfloat16."""
"""Root mean square of the difference as a share of the values': some activations round the other way."""
pytestmark = pytest.mark.skipif(not SETS, reason="the kernels were not built (no C++ compiler)")


@pytest.fixture(scope="module", params=[(s, p) for s in SETS for p in ("int8", "int4")], ids="-".join)
def model(request: pytest.FixtureRequest) -> Iterator[Moondream]:
    """The bundled model, whose heads are as wide as the stack needs."""
    instructions, precision = request.param
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GALAGO_KERNELS", instructions)
        yield load_moondream(hub.locate("scenes"), precision=pick_precision(precision, CPU), device=CPU)


@pytest.fixture(scope="module")
def picture() -> Image.Image:
    return scene_at(3, 4).image


def one_by_one(m: Moondream) -> Moondream:
    """The same weights without their stacks."""
    tower = replace(m.weights.vision.tower, stack=None)
    parts = {"vision": replace(m.weights.vision, tower=tower), "text": replace(m.weights.text, stack=None)}
    return replace(m, weights=replace(m.weights, **parts))


def off(found: Tensor, wanted: Tensor) -> float:
    found, wanted = found.float(), wanted.float()
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


def sequences(m: Moondream, image: Image.Image) -> list[KVCache]:
    """Of different lengths; every other one has an image, and some fill several chunks."""
    encoded = m.encode_image(image)
    caches = []
    for i in range(MOST):
        cache = m.new_cache(encoded if i % 2 else None)
        length = 1 + 11 * i
        m.hidden(cache, (torch.arange(length) * (i + 3)) % m.config.text.vocab_size)
        caches.append(cache)
    return caches


def step(m: Moondream, caches: list[KVCache], x: Tensor, rows: list[int]) -> tuple[Tensor, list[Tensor]]:
    """The residual stream after one call over all, and copies of what each cache holds then.

    No cache advances, so the call can be repeated.
    """
    assert m.weights.text.stack
    positions = []
    for cache, n in zip(caches, rows, strict=True):
        cache.reserve(n)
        positions.append(torch.arange(cache.length, cache.length + n))
    table = rotary_table(torch.cat(positions), m.config.text.head_dim // 2)
    places = [(cache.places(), n) for cache, n in zip(caches, rows, strict=True)]
    out = m.weights.text.stack.forward(x, places, table)
    return out, [kept(cache, n) for cache, n in zip(caches, rows, strict=True)]


def kept(cache: KVCache, new: int) -> Tensor:
    """A copy of a cache's own keys and values, new ones included."""
    return torch.cat(cache._chunks, 3)[:, :, :, : cache.length - cache._start + new]


@torch.inference_mode()
def test_sequences_that_step_together_give_exactly_what_each_gives_alone(
    model: Moondream, picture: Image.Image
) -> None:
    caches = sequences(model, picture)
    x = embedded(torch.arange(MOST) * 7 + 20, model.weights.text, torch.float32)
    x[3] *= 1000  # a neighbour that would take every level of a shared scale
    alone = [step(model, [cache], row.unsqueeze(0), [1]) for cache, row in zip(caches, x, strict=True)]
    for n in range(1, MOST + 1):
        together, held = step(model, caches[:n], x[:n], [1] * n)
        assert torch.equal(together, torch.cat([out for out, _ in alone[:n]])), n
        for found, (_, [wanted]) in zip(held, alone, strict=False):
            assert torch.equal(found, wanted), n


@torch.inference_mode()
def test_prompts_and_steps_may_share_a_call(model: Moondream, picture: Image.Image) -> None:
    caches = sequences(model, picture)[4:8]
    rows = [1, 5, 2, 8]
    x = embedded(torch.arange(MOST) * 5 + 9, model.weights.text, torch.float32)
    together, held = step(model, caches, x, rows)
    for cache, part, given, found in zip(caches, x.split(rows), together.split(rows), held, strict=True):
        out, [wanted] = step(model, [cache], part, [len(part)])
        assert torch.equal(given, out) and torch.equal(found, wanted)


@torch.inference_mode()
def test_text_is_as_block_by_block(model: Moondream, picture: Image.Image) -> None:
    plain = one_by_one(model)
    one, other = model.encode_image(picture), plain.encode_image(picture)
    assert off(one.k, other.k) < CLOSE_IN_BYTES and off(one.v, other.v) < CLOSE_IN_BYTES
    caches = model.new_cache(one), plain.new_cache(one)
    for ids in (torch.arange(30) + 40, torch.tensor([99]), torch.arange(70) + 50, torch.tensor([7])):
        found, wanted = (m.hidden(cache, ids) for m, cache in zip((model, plain), caches, strict=True))
        assert off(found, wanted) < CLOSE


@torch.inference_mode()
def test_vision_is_as_block_by_block(model: Moondream) -> None:
    if not model.weights.vision.tower.stack:
        pytest.skip("this instruction set leaves attention over all to torch")
    c, kv = model.config.vision, model.precision.kv
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, c.crop_size, c.crop_size, 3), generator=generator, dtype=torch.uint8)
    found = crop_features(pixels, model.weights.vision, c, kv)
    assert off(found, crop_features(pixels, one_by_one(model).weights.vision, c, kv)) < CLOSE_IN_BYTES
    assert torch.equal(found[1:], crop_features(pixels[1:], model.weights.vision, c, kv))
