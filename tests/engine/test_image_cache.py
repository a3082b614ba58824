"""The cache gives back what was kept under a key and nothing else, and never holds more than it may."""

import io
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from PIL import Image
from torch import Tensor

from galago.engine.encoded_image import EncodedImage
from galago.engine.image_cache import ImageCache, image_key
from galago.engine.tier import PASSING_SHARE

HOT, WARM = 20, 10
KEYS = st.sampled_from("abcdefg")
PREFIX_BYTES, EMBEDDING_BYTES = st.sampled_from([1, 4, 5, 6, 7, HOT + 1]), st.sampled_from([1, 2, 3, 4, WARM + 1])
"""Several to a tier, so that their order matters, and too many."""


def prefix(nbytes: int) -> EncodedImage:
    k = torch.zeros(1, 1, nbytes, 1, dtype=torch.uint8)
    return EncodedImage("m", None, k, k[:, :, :0], (1, 1), 1, nbytes, 0.0, 0.0)


def embedding(nbytes: int) -> Tensor:
    return torch.zeros(1, nbytes, dtype=torch.uint8)


class Expected:
    """A tier as one would explain it: values in order of use, the oldest unpinned one goes first."""

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.held: dict[str, tuple[int, EncodedImage | Tensor]] = {}
        """when used last, and what"""
        self.pins: list[str] = []

    def bytes(self, keys: list[str] | None = None) -> int:
        return sum(value.nbytes for key, (_, value) in self.held.items() if keys is None or key in keys)

    def evictable(self) -> list[tuple[int, str]]:
        return sorted((used, key) for key, (used, _) in self.held.items() if key not in self.pins)

    def get(self, key: str, now: int) -> EncodedImage | Tensor | None:
        if key not in self.held:
            return None
        self.held[key] = (now, self.held[key][1])
        return self.held[key][1]

    def keep(self, key: str, value: EncodedImage | Tensor, now: int) -> None:
        if key in self.held and key in self.pins:
            self.get(key, now)
            return
        self.held.pop(key, None)
        if value.nbytes + self.bytes(self.pins) <= self.budget:
            while self.bytes() + value.nbytes > self.budget:
                del self.held[self.evictable()[0][1]]
            self.held[key] = (now, value)


class Cache(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.cache = ImageCache(HOT, WARM)
        self.hot, self.warm = Expected(HOT), Expected(WARM)
        self.now = 0
        self.given: list[weakref.ref[EncodedImage]] = []

    def tick(self) -> int:
        self.now += 1
        return self.now

    @rule(key=KEYS)
    def prefix(self, key: str) -> None:
        assert self.cache.prefix(key) is self.hot.get(key, self.tick())

    @rule(key=KEYS)
    def embedding(self, key: str) -> None:
        assert self.cache.embedding(key) is self.warm.get(key, self.tick())

    @rule(key=KEYS, nbytes=PREFIX_BYTES)
    def keep_prefix(self, key: str, nbytes: int) -> None:
        encoded = prefix(nbytes)
        self.given.append(weakref.ref(encoded))
        self.cache.keep_prefix(key, encoded)
        self.hot.keep(key, encoded, self.tick())

    @rule(key=KEYS, nbytes=EMBEDDING_BYTES)
    def keep_embedding(self, key: str, nbytes: int) -> None:
        made = embedding(nbytes)
        self.cache.keep_embedding(key, made)
        self.warm.keep(key, made, self.tick())

    @rule(key=KEYS)
    def pin(self, key: str) -> None:
        self.cache.pin(key)
        self.hot.pins.append(key)

    @precondition(lambda self: self.hot.pins)
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(self.hot.pins))
        self.cache.unpin(key)
        self.hot.pins.remove(key)

    @precondition(lambda self: not self.hot.pins)
    @rule(key=KEYS)
    def unpin_too_often(self, key: str) -> None:
        with pytest.raises(ValueError):
            self.cache.unpin(key)

    @rule(to_bytes=st.integers(HOT // 2, HOT + WARM))
    def trim(self, to_bytes: int) -> None:
        self.cache.trim(to_bytes)
        while self.hot.bytes() + self.warm.bytes() > to_bytes:
            tiers = [tier for tier in (self.hot, self.warm) if tier.evictable()]
            if not tiers:
                break
            tier = min(tiers, key=lambda t: t.evictable()[0])
            del tier.held[tier.evictable()[0][1]]

    @precondition(lambda self: self.now % 10 == 9)  # not so often that nothing ever fills
    @rule()
    def clear(self) -> None:
        self.cache.clear()
        for tier in (self.hot, self.warm):
            for _, key in tier.evictable():
                del tier.held[key]

    @invariant()
    def holds_what_is_expected_within_budget(self) -> None:
        stats = self.cache.stats()
        assert (stats.hot.entries, stats.hot.bytes) == (len(self.hot.held), self.hot.bytes())
        assert (stats.warm.entries, stats.warm.bytes) == (len(self.warm.held), self.warm.bytes())
        assert stats.hot.bytes <= stats.hot.budget == HOT and stats.warm.bytes <= stats.warm.budget == WARM

    @invariant()
    def lets_go_of_the_rest(self) -> None:
        alive = [encoded for ref in self.given if (encoded := ref()) is not None]
        assert sum(encoded.nbytes for encoded in alive) == self.hot.bytes()


Cache.TestCase.settings = settings(max_examples=60, stateful_step_count=40)
TestCache = Cache.TestCase


@pytest.mark.parametrize("tier", ["hot", "warm"])
def test_evicts_before_it_takes_more(tier: str) -> None:
    cache = ImageCache(10, 10)
    keep: Callable[..., None] = cache.keep_prefix if tier == "hot" else cache.keep_embedding
    at_death: list[int] = []

    def held() -> int:
        return getattr(cache.stats(), tier).bytes

    for i, nbytes in enumerate((4, 5, 8, 10)):
        value = prefix(nbytes) if tier == "hot" else embedding(nbytes)
        weakref.finalize(value, lambda: at_death.append(held()))
        keep(str(i), value)
        del value
    assert len(at_death) == 3 and max(at_death) <= 10
    assert held() == 10


def test_counts() -> None:
    cache = ImageCache(10, 10)
    cache.keep_prefix("a", prefix(6))
    cache.keep_prefix("b", prefix(6))
    cache.keep_embedding("a", embedding(6))
    for key in ("a", "b", "b"):
        cache.prefix(key)
    cache.embedding("a")
    hot, warm = cache.stats().hot, cache.stats().warm
    assert (hot.entries, hot.bytes, hot.budget, hot.hits, hot.misses, hot.evictions) == (1, 6, 10, 2, 1, 1)
    assert (warm.entries, warm.bytes, warm.budget, warm.hits, warm.misses, warm.evictions) == (1, 6, 10, 1, 0, 0)
    assert cache.stats().disk is None


def test_evicts_what_was_used_least_recently() -> None:
    cache = ImageCache(10, 10)
    for key in ("a", "b"):
        cache.keep_prefix(key, prefix(5))
    cache.prefix("a")
    cache.keep_prefix("c", prefix(5))
    assert [cache.prefix(key) is not None for key in ("a", "b", "c")] == [True, False, True]


def test_trims_both_tiers_by_one_order_of_use() -> None:
    cache = ImageCache(20, 20)
    for key in ("a", "b"):
        cache.keep_prefix(key, prefix(5))
        cache.keep_embedding(key, embedding(5))
    cache.prefix("a")
    left = []
    for to_bytes in (19, 14, 9, 4):
        cache.trim(to_bytes)
        left.append((cache.stats().hot.entries, cache.stats().warm.entries))
    # Used in this order: embedding a, prefix b, embedding b, prefix a.
    assert left == [(2, 1), (1, 1), (1, 0), (0, 0)]


def test_what_cannot_be_kept_evicts_nothing() -> None:
    cache = ImageCache(10, 10)
    cache.keep_prefix("pinned", prefix(5))
    cache.keep_prefix("other", prefix(5))
    cache.pin("pinned")
    cache.keep_prefix("new", prefix(6))
    assert cache.prefix("new") is None
    assert cache.prefix("pinned") and cache.prefix("other")
    cache.unpin("pinned")
    cache.keep_prefix("new", prefix(6))
    assert cache.prefix("new") and cache.prefix("pinned") is None and cache.prefix("other") is None


def test_what_passes_has_a_small_part_and_pushes_nothing_out() -> None:
    cache = ImageCache(hot_bytes=100 * PASSING_SHARE, warm_bytes=10 * PASSING_SHARE)
    for key in "abc":
        cache.keep_prefix(key, prefix(30))
        cache.keep_embedding(key, embedding(3))
    for i in range(100):
        cache.keep_prefix(f"passing {i}", prefix(30), is_passing=True)
        cache.keep_embedding(f"passing {i}", embedding(3), is_passing=True)
        assert cache.prefix(f"passing {i}") is not None
    assert cache.bytes == 3 * 33 + 3 * 30 + 3 * 3
    assert [key for key in (*"abc", *(f"passing {i}" for i in range(100))) if cache.has_prefix(key)] == [
        *"abc", "passing 97", "passing 98", "passing 99",
    ]  # fmt: skip
    # What is read stays, and what finds no room beside that is not kept.
    for i in (97, 98, 99):
        cache.pin(f"passing {i}")
    cache.keep_prefix("another", prefix(30), is_passing=True)
    cache.keep_prefix("large", prefix(101), is_passing=True)
    assert not cache.has_prefix("another") and not cache.has_prefix("large") and cache.has_prefix("passing 97")
    cache.keep_prefix("d", prefix(600))
    assert cache.has_prefix("d") and cache.has_prefix("passing 97")
    for i in (97, 98, 99):
        cache.unpin(f"passing {i}")
    cache.trim()
    assert cache.bytes == 0
    cache.keep_prefix("another", prefix(100), is_passing=True)
    assert cache.bytes == 100


def test_a_view_does_not_hold_more_than_is_counted() -> None:
    cache = ImageCache(0, 100)
    whole = torch.arange(1000, dtype=torch.float32).view(100, 10)
    cache.keep_embedding("a", whole[3:5])
    kept = cache.embedding("a")
    assert kept is not None and torch.equal(kept, whole[3:5])
    assert kept.untyped_storage().nbytes() == cache.stats().warm.bytes == 80


def test_an_embedding_comes_back_from_disk(tmp_path: Path) -> None:
    key = "0" * 64
    made = torch.randn(3, 5)
    ImageCache(0, 1000, tmp_path, 10_000).keep_embedding(key, made)

    cache = ImageCache(0, 1000, tmp_path, 10_000)
    for _ in range(2):
        found = cache.embedding(key)
        assert found is not None and torch.equal(found, made)
        assert found.untyped_storage().nbytes() == found.nbytes
    stats = cache.stats()
    assert stats.disk and (stats.disk.hits, stats.disk.misses, stats.disk.entries) == (1, 0, 1)
    assert (stats.warm.hits, stats.warm.misses, stats.warm.bytes) == (1, 1, 60)

    cache.trim()
    assert cache.stats().warm.bytes == 0 and cache.embedding(key) is not None
    cache.clear()
    assert cache.embedding(key) is None and not list(tmp_path.iterdir())


def test_disk_serves_what_memory_cannot_hold(tmp_path: Path) -> None:
    cache = ImageCache(0, 10, tmp_path, 10_000)
    made = torch.randn(3, 5)
    cache.keep_embedding("0" * 64, made)
    found = cache.embedding("0" * 64)
    assert found is not None and torch.equal(found, made)
    assert cache.stats().warm.entries == 0


# --- addresses -------------------------------------------------------------------------------

SIDES = st.integers(1, 5)


@st.composite
def images(draw: st.DrawFn, mode: str = "RGB") -> Image.Image:
    width, height = draw(SIDES), draw(SIDES) * draw(st.sampled_from([1, 40]))
    size = width * height * len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), draw(st.binary(min_size=size, max_size=size)))


@given(images(), st.data())
def test_any_other_pixel_is_another_image(image: Image.Image, data: st.DataObject) -> None:
    raw = bytearray(image.tobytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= data.draw(st.integers(1, 255))
    assert image_key(Image.frombytes("RGB", image.size, bytes(raw))) != image_key(image)


@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(1, 12), st.integers(0, 255))
def test_any_other_size_is_another_image(w: int, h: int, w2: int, h2: int, grey: int) -> None:
    same = (w, h) == (w2, h2)
    one, other = (Image.new("RGB", size, (grey,) * 3) for size in ((w, h), (w2, h2)))
    assert (image_key(one) == image_key(other)) == same
    assert (image_key(one.resize((h, w))) == image_key(one)) == (w == h)  # the same bytes in another shape


CONTEXT = st.lists(st.text("ab\0é\ud800", max_size=3), max_size=3)


@given(images(), CONTEXT, CONTEXT)
def test_any_other_context_is_another_image(image: Image.Image, one: list[str], other: list[str]) -> None:
    assert (image_key(image, *one) == image_key(image, *other)) == (one == other)


def test_pixels_and_context_do_not_run_together() -> None:
    pixels = bytes(range(3))
    led = pixels + (4).to_bytes(8, "little") + b"abcd"
    one, more = Image.frombytes("RGB", (1, 1), pixels), Image.frombytes("RGB", (1, 5), led)
    assert image_key(one, "abcd") != image_key(more)


@given(st.sampled_from(["L", "LA", "RGBA", "CMYK", "YCbCr", "1", "P"]).flatmap(images))
def test_equal_pixels_are_one_image_in_any_mode(image: Image.Image) -> None:
    rgb = image.convert("RGB")
    assert image_key(image) == image_key(rgb)
    clear = rgb.copy()
    clear.putalpha(7)
    assert image_key(clear) == image_key(rgb)


@given(images(), st.sampled_from(["PNG", "BMP", "TIFF", "PPM", "WEBP"]))
def test_equal_pixels_are_one_image_in_any_file(image: Image.Image, kind: str) -> None:
    file = io.BytesIO()
    image.save(file, kind, lossless=True)
    assert image_key(Image.open(file)) == image_key(image)


def test_is_a_sha256() -> None:
    key = image_key(Image.new("RGB", (3, 2)), "m")
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")
