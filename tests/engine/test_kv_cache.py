"""A cache grows without losing anything and never writes to the image that it started from."""

import torch

from galago.engine.encoded_image import EncodedImage
from galago.engine.kv_cache import CHUNK, KVCache

LAYERS, HEADS, DIM = 3, 2, 4


def cache(limit: int, prefix: EncodedImage | None = None) -> KVCache:
    return KVCache((LAYERS, HEADS, DIM), limit, torch.float32, torch.device("cpu"), prefix)


def encoded(positions: int) -> EncodedImage:
    k = torch.randn(LAYERS, HEADS, positions, DIM)
    return EncodedImage("m", None, k, k + 1, (1, 1), 1, positions - 1, 0.0, 0.0)


def test_grows_and_keeps_everything() -> None:
    found = cache(10 * CHUNK)
    kept = torch.empty(HEADS, 0, DIM)
    for n in (1, 5, CHUNK, 1, 2 * CHUNK + 3):
        new = torch.randn(HEADS, n, DIM)
        kept = torch.cat((kept, new), dim=1)
        for layer in range(LAYERS):
            k, v = found.append(layer, new + layer, new - layer)
            assert torch.equal(k, kept + layer) or torch.allclose(k, kept + layer)
            assert torch.allclose(v, kept - layer)
        found.advance(n)
        assert found.length == kept.shape[1]
        assert found.room == 10 * CHUNK - found.length


def test_starts_with_a_copy_of_the_prefix() -> None:
    image = encoded(7)
    before = image.k.clone(), image.v.clone()
    found = cache(100, image)
    assert found.length == 7
    for _ in range(2):  # two questions about one image
        again = cache(100, image)
        k, v = again.append(1, torch.ones(HEADS, 1, DIM), torch.ones(HEADS, 1, DIM))
        assert torch.equal(k[:, :7], image.k[1]) and torch.equal(v[:, :7], image.v[1])
    assert torch.equal(image.k, before[0]) and torch.equal(image.v, before[1])


def test_holds_what_it_needs_and_a_little_more() -> None:
    found = cache(100_000, encoded(7))
    one = 2 * LAYERS * HEADS * DIM * 4
    assert found.bytes == (7 + CHUNK) * one
    assert cache(20, encoded(7)).bytes == 20 * one
    assert cache(100_000).bytes == 0
