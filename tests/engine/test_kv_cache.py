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
            found.reserve(n)
            pieces = found.append(layer, new + layer, new - layer)
            k, v = (torch.cat(part, 1) for part in zip(*pieces, strict=True))
            assert torch.equal(k, kept + layer) or torch.allclose(k, kept + layer)
            assert torch.allclose(v, kept - layer)
        found.advance(n)
        assert found.length == kept.shape[1]
        assert found.room == 10 * CHUNK - found.length


def test_shares_the_prefix_and_keeps_its_own_apart() -> None:
    image = encoded(7)
    before = image.k.clone(), image.v.clone()
    for n in (1, 3):  # two questions about one image
        found = cache(100, image)
        assert found.length == 7
        found.reserve(n)
        prefix, own = found.append(1, torch.ones(HEADS, n, DIM), torch.ones(HEADS, n, DIM))
        assert prefix[0].data_ptr() == image.k[1].data_ptr() and prefix[1].data_ptr() == image.v[1].data_ptr()
        assert own[0].shape == (HEADS, n, DIM) and own[0].eq(1).all() and own[1].eq(1).all()
    assert torch.equal(image.k, before[0]) and torch.equal(image.v, before[1])


def test_holds_what_it_needs_and_a_little_more() -> None:
    one = 2 * LAYERS * HEADS * DIM * 4

    def after(limit: int, positions: int) -> KVCache:
        found = cache(limit, encoded(7))
        found.reserve(positions)
        for layer in range(LAYERS):
            found.append(layer, torch.ones(HEADS, positions, DIM), torch.ones(HEADS, positions, DIM))
        found.advance(positions)
        return found

    assert after(100_000, 1).bytes == CHUNK * one
    assert after(20, 2).bytes == 13 * one and after(20, 2).room == 11
    assert cache(100_000).bytes == 0
