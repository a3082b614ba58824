"""All blocks in one call give what they give one by one, and sequences that step together never touch."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest
import torch
from instruction_sets import HERE, built
from PIL import Image
from torch import Tensor

from galago.engine.kv_cache import KVCache
from galago.families.moondream.loading import load_moondream
from galago.families.moondream.model import Moondream
from galago.families.moondream.vision import crop_features
from galago.lab.eval.scenes.draw import scene_at
from galago.nn.decoder import embed_tokens
from galago.nn.rotary import rotary_table
from galago.nn.stack import Stack
from galago.precision import pick_precision
from galago.store import hub

CPU = torch.device("cpu")
MOST = 16
"""Sequences that step together."""
CLOSE = 5e-3
"""Root mean square of the difference as a share of the values': some activations round the other way."""
CLOSE_IN_BYTES = 0.03
"""Where the stack's attention over all is in int8 and the blocks' is in bfloat16, or in bfloat16 and float32. In
float32 both are nearer.

Of the bundled weights int8 is as far from float32 (0.022) as the two are from each other: it depends on the weights.
"""
MANY = 32
"""Rows from which on a prompt's attention is in bfloat16."""
pytestmark = built


@pytest.fixture(scope="module", params=[(s, p) for s in HERE for p in ("int8", "int4")], ids="-".join)
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


def step(
    m: Moondream, caches: list[KVCache], x: Tensor, rows: list[int], pieces: Sequence[range | None] = (None,)
) -> tuple[Tensor, list[Tensor]]:
    """The residual stream after one call over all, or one for each piece, and copies of what each cache holds then.

    No cache advances, so the call can be repeated.
    """
    assert m.weights.text.stack
    positions = []
    for cache, n in zip(caches, rows, strict=True):
        cache.reserve(n)
        positions.append(torch.arange(cache.length, cache.length + n))
    table = rotary_table(torch.cat(positions), m.config.text.head_dim // 2)
    places = [(cache.kv_buffers(), n) for cache, n in zip(caches, rows, strict=True)]
    x = x.clone()
    for piece in pieces:
        m.weights.text.stack.forward(x, places, table, blocks=piece)
    return x, [kept(cache, n) for cache, n in zip(caches, rows, strict=True)]


def kept(cache: KVCache, new: int) -> Tensor:
    """A copy of a cache's own keys and values, new ones included."""
    return torch.cat(cache._chunks, 3)[:, :, :, : cache.length - cache._prefix_length + new]


@torch.inference_mode()
def test_sequences_that_step_together_give_exactly_what_each_gives_alone(
    model: Moondream, picture: Image.Image
) -> None:
    caches = sequences(model, picture)
    x = embed_tokens(torch.arange(MOST) * 7 + 20, model.weights.text, torch.float32)
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
    x = embed_tokens(torch.arange(MOST) * 5 + 9, model.weights.text, torch.float32)
    together, held = step(model, caches, x, rows)
    for cache, part, given, found in zip(caches, x.split(rows), together.split(rows), held, strict=True):
        out, [wanted] = step(model, [cache], part, [len(part)])
        assert torch.equal(given, out) and torch.equal(found, wanted)


@torch.inference_mode()
def test_pieces_of_a_prefill_give_exactly_what_the_whole_gives(model: Moondream, picture: Image.Image) -> None:
    n, rows = model.config.text.n_layers, [1, 200, 40]
    x = embed_tokens(torch.arange(sum(rows)) * 2 + 9, model.weights.text, torch.float32)
    given, copies = (sequences(model, picture)[5:8] for _ in range(2))
    wanted, held = step(model, copies, x, rows)
    found, pieces_held = step(model, given, x, rows, [range(1), range(1, 1), range(1, n - 1), range(n - 1, n)])
    assert torch.equal(found, wanted) and not torch.equal(found, x)
    assert all(map(torch.equal, pieces_held, held))


@torch.inference_mode()
def test_pieces_over_an_image_give_exactly_what_the_whole_gives(model: Moondream) -> None:
    c, stack = model.config.text, model.weights.text.stack
    assert stack
    rows, n = 200, c.n_layers
    x = embed_tokens(torch.arange(rows) * 3 + 9, model.weights.text, torch.float32)
    table = rotary_table(torch.arange(rows), c.head_dim // 2)

    def run(*pieces: range | None, keys_only: bool = False) -> tuple[Tensor, Tensor]:
        held = torch.zeros(2, n, c.n_kv_heads, rows, c.head_dim, dtype=torch.bfloat16)
        place, out = (held[0].data_ptr(), held[1].data_ptr(), 0, rows), x.clone()
        for piece in pieces:
            stack.forward(out, [([place], rows)], table, together=True, keys_only=keys_only, blocks=piece)
        return out, held

    whole, held = run(None)
    for pieces in ([range(n)], [range(i, i + 1) for i in range(n)], [range(n - 1), range(n - 1, n)]):
        found, kept_by_pieces = run(*pieces)
        assert torch.equal(found, whole) and torch.equal(kept_by_pieces, held)
    # The stream after all blocks but the last is where one stops that makes keys and values alone.
    before, _ = run(range(n - 1))
    for pieces in ([None], [range(n)], [range(2), range(2, n - 1), range(n - 1, n)]):
        found, kept_alone = run(*pieces, keys_only=True)
        assert torch.equal(kept_alone, held) and torch.equal(found, before)


@torch.inference_mode()
def test_pieces_over_a_crop_give_exactly_what_the_whole_gives(model: Moondream) -> None:
    stack = model.weights.vision.tower.stack
    assert stack
    x = torch.randn(200, model.config.vision.enc_dim)
    whole, found, half = x.clone(), x.clone(), len(stack.blocks) // 2
    stack.forward(whole, [((), 200)], together=True)
    for blocks in (range(half), range(half, len(stack.blocks))):
        stack.forward(found, [((), 200)], together=True, blocks=blocks)
    assert torch.equal(found, whole)


@pytest.mark.parametrize("blocks", [range(-1, 2), range(99), range(3, 5), range(0, 4, 2)])
def test_blocks_that_are_not_there_are_refused(model: Moondream, blocks: range) -> None:
    assert model.weights.text.stack
    with pytest.raises(ValueError, match="no piece of 4 blocks"):
        model.weights.text.stack.forward(torch.zeros(1, model.config.text.dim), [((), 1)], blocks=blocks)


@pytest.mark.parametrize("x", [torch.zeros(2, 128).T, torch.zeros(128, 2, dtype=torch.float64).T.contiguous()])
def test_embeddings_of_another_kind_are_refused(model: Moondream, x: Tensor) -> None:
    assert model.weights.text.stack
    with pytest.raises(ValueError, match="contiguous float32"):
        model.weights.text.stack.forward(x, [((), len(x))])


@torch.inference_mode()
def test_a_step_that_memory_does_not_suffice_for_can_be_made_again(model: Moondream, picture: Image.Image) -> None:
    cache, stack = sequences(model, picture)[3], model.weights.text.stack
    assert isinstance(stack, Stack)
    x = embed_tokens(torch.arange(20), model.weights.text, torch.float32)
    wanted, [held] = step(model, [cache], x, [20])
    table = rotary_table(torch.arange(cache.length, cache.length + 20), model.config.text.head_dim // 2)
    for many in (1 << 50, 1 << 46):  # positions that are there already: for their scores no machine has room
        with pytest.raises(MemoryError, match="ran out of memory"):
            stack.forward(x, [([(0, 0, many, many), *cache.kv_buffers()], 20)], table)
        found, [now] = step(model, [cache], x, [20])
        assert torch.equal(found, wanted) and torch.equal(now, held)


@torch.inference_mode()
def test_text_is_as_block_by_block(model: Moondream, picture: Image.Image) -> None:
    plain = one_by_one(model)
    one, other = model.encode_image(picture), plain.encode_image(picture)
    assert off(one.k, other.k) < CLOSE_IN_BYTES and off(one.v, other.v) < CLOSE_IN_BYTES
    caches = model.new_cache(one), plain.new_cache(one)
    for ids in (torch.arange(30) + 40, torch.tensor([99]), torch.tensor([7]), torch.arange(70) + 50):
        found, wanted = (m.hidden(cache, ids) for m, cache in zip((model, plain), caches, strict=True))
        assert off(found, wanted) < (CLOSE if len(ids) < MANY else CLOSE_IN_BYTES)


@torch.inference_mode()
def test_vision_is_as_block_by_block(model: Moondream) -> None:
    assert model.weights.vision.tower.stack
    c, kv = model.config.vision, model.precision.kv
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (2, c.crop_size, c.crop_size, 3), generator=generator, dtype=torch.uint8)
    found = crop_features(pixels, model.weights.vision, c, kv)
    assert off(found, crop_features(pixels, one_by_one(model).weights.vision, c, kv)) < CLOSE_IN_BYTES
    assert torch.equal(found[1:], crop_features(pixels[1:], model.weights.vision, c, kv))
