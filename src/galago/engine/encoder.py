"""Images on their way to becoming prefixes: each encoded once, whoever asks, a piece of work at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from galago.engine.decoding import DECODING
from galago.engine.encoded_image import EncodedImage
from galago.engine.image_cache import ImageCache, address, addressed, digest_of, joined
from galago.engine.metrics import Tier
from galago.engine.sequence import Sequence
from galago.engine.step import Look, Prefix, Start, StepModel
from galago.errors import NotANumber
from galago.media.picture import Picture
from galago.nn.finite import is_finite
from galago.nn.passes import Passes
from galago.system.device import return_memory, synchronize
from galago.system.machine import usable_cores
from galago.system.threads import begin

CPU = torch.device("cpu")
LARGE = 64 << 20
"""Bytes of a picture whose memory goes back to the system before the next may have as much."""
T = TypeVar("T")
Tell = Callable[[Sequence, "EncodedImage | Exception"], None]


@dataclass(eq=False)
class _Prefix:
    """A prefix to be made, and who waits for it."""

    key: str
    wanted: Prefix
    variant: str | None
    images: tuple[str, ...]
    """the addresses of its images, in their order"""
    waiting: list[Sequence] = field(default_factory=list)
    embeddings: dict[str, Tensor] = field(default_factory=dict)
    """those that are there, by the address of the image"""
    encode_s: float = 0.0
    tried: bool = False
    """whether memory ran out for it"""

    @property
    def ready(self) -> bool:
        return all(key in self.embeddings for key in self.images)

    @property
    def rank(self) -> tuple[bool, float]:
        return min(s.job.rank for s in self.waiting)


@dataclass(eq=False)
class _Sight:
    """An image that the vision tower is to see, and the prefixes that its embedding is for."""

    key: str
    views: "Future[Any]"
    prefixes: list[_Prefix] = field(default_factory=list)
    features: list[Tensor] = field(default_factory=list)
    """of the crops seen so far"""
    seconds: float = 0.0
    tried: bool = False
    """whether memory ran out for it"""

    @property
    def live(self) -> list[_Prefix]:
        return [p for p in self.prefixes if p.waiting]

    @property
    def rank(self) -> tuple[bool, float]:
        return min(p.rank for p in self.live)


class Encoder:
    """Gives each sequence that begins with images its EncodedImage, through `tell`.

    Decoding, reading pixels and cutting crops happens in threads of its own, all else in the engine's, in `work`. A
    picture that comes as its file is decoded there, when DECODING has room for it, and kept no longer than it takes to
    cut its crops.
    """

    def __init__(
        self,
        model: StepModel,
        images: ImageCache,
        wake: Callable[[], None],
        tell: Tell,
        relieve: Callable[[Exception], bool],
        count: Callable[[Tier, int], None],
    ) -> None:
        """`wake` is called from other threads; `relieve` says whether an error is worth another try."""
        self._count = count
        self._model, self._images, self._wake, self._tell, self._relieve = model, images, wake, tell, relieve
        self._threads = ThreadPoolExecutor(usable_cores(), "galago-images")
        self._addressed: SimpleQueue[tuple[Sequence, Start, list[str], BaseException | None]] = SimpleQueue()
        self._sights: dict[str, _Sight] = {}
        self._views: dict[str, Future[Any]] = {}
        """of pictures, by their addresses: made while they were decoded"""
        self._claiming = threading.Lock()
        self._prefixes: dict[str, _Prefix] = {}
        self._used: dict[str, tuple[EncodedImage, int]] = {}
        """prefixes that running requests use, the cache may have had no room for them; and how many do"""
        self._active: Iterator[None] | None = None
        """the piece of work that is under way"""
        self._active_for: list[_Prefix] = []

    def __len__(self) -> int:
        """Prefixes on their way."""
        return len(self._prefixes)

    def want(self, s: Sequence, start: Start, prefix: Prefix) -> None:
        """Tell s of this prefix when it is made."""

        def read() -> tuple[list[str], BaseException | None]:
            keys: list[str] = []
            try:
                for look in prefix.looks:
                    if s.start is start:
                        keys.append(self._address(look, prefix, start, s))
            except BaseException as error:  # most often an image whose file cannot be read to its end
                return keys, error
            return keys, None

        def tell(found: "Future[tuple[list[str], BaseException | None]]") -> None:
            if not found.cancelled():
                self._addressed.put((s, start, *found.result()))
            self._wake()

        begin(self._threads, read).add_done_callback(tell)

    def _address(self, look: Look, prefix: Prefix, start: Start, s: Sequence) -> str:
        """The address of an image; one that comes as its file is decoded for that, and its crops cut if they may lack.

        An empty text once nobody wants it any more.
        """
        shown, context = look.image, (self._model.identity, look.detail)
        if not isinstance(shown, Picture):
            return address(shown, *context)
        with shown.reading:  # of several requests with this picture the others find it known
            key = addressed(shown.known[0], *context) if shown.known else None
            if key and self._has(key, prefix, start):
                return key
            with DECODING.hold(shown.needs, lambda: s.start is start) as held:
                if not held:
                    return ""
                key = self._decoded(look, shown, prefix, start)
                if shown.needs >= LARGE:
                    # The C library keeps what a thread has freed for that thread; the next picture is another's.
                    return_memory(CPU)
                return key

    def _decoded(self, look: Look, shown: Picture, prefix: Prefix, start: Start) -> str:
        image = shown.decoded()
        if not shown.known:
            shown.known.append(digest_of(image))
        key = addressed(shown.known[0], self._model.identity, look.detail)
        with self._claiming:
            if self._has(key, prefix, start):
                return key
            views = self._views[key] = Future()
            views.set_running_or_notify_cancel()  # others may be after them by the time that this request has gone
        try:
            views.set_result(self._model.views(image, look.detail))
        except BaseException as error:
            views.set_exception(error)
        self._wake()
        return key

    def _has(self, key: str, prefix: Prefix, start: Start) -> bool:
        """Whether an image's crops are there or on their way, or will hardly be needed; asked from any thread."""
        whole = joined((key,), prefix.plan, start.variant) if len(prefix.looks) == 1 else ""
        # In the order in which an image goes on, so that none is missed while it does.
        there = key in self._views or key in self._sights or self._images.has_embedding(key)
        return there or whole in self._prefixes or self._images.has_prefix(whole) or whole in self._used

    def drop(self, s: Sequence) -> None:
        """s does not want its prefix any more."""
        for prefix in self._prefixes.values():
            if s in prefix.waiting:
                prefix.waiting.remove(s)
        for key in [key for key, p in self._prefixes.items() if not p.waiting]:
            del self._prefixes[key]
        for key in [key for key, sight in self._sights.items() if not sight.live]:
            self._sights.pop(key).views.cancel()
        DECODING.wake()
        if self._active and not any(p.waiting for p in self._active_for):
            self._active, self._active_for = None, []

    def close(self) -> None:
        DECODING.wake()
        self._threads.shutdown(wait=True, cancel_futures=True)
        del self._tell, self._relieve  # which hold whoever holds this, and so the model until garbage is collected

    def sort(self) -> None:
        """Look at the images whose addresses are known by now: in the cache, on their way already, or new."""
        while not self._addressed.empty():
            s, start, keys, failed = self._addressed.get()
            if s.start is start:  # not gone meanwhile
                if isinstance(failed, Exception):
                    self._tell(s, failed)
                elif failed:
                    raise failed
                else:
                    assert isinstance(start.prefix, Prefix)
                    self._sort(s, start.prefix, start.variant, tuple(keys))
            for key in keys:
                if (views := self._views.get(key)) and views.done():
                    del self._views[key]  # not needed after all

    def _sort(self, s: Sequence, wanted: Prefix, variant: str | None, keys: tuple[str, ...]) -> None:
        whole = joined(keys, wanted.plan, variant)
        s.image, s.shared = whole, wanted.positions * self._model.kv_bytes
        if encoded := self._images.prefix(whole) or self._used.get(whole, (None, 0))[0]:
            self._count("hot", len(keys))
            return self._give(s, whole, encoded, reused=True, seconds=(0.0, 0.0))
        if whole in self._prefixes:
            self._count("shared", len(keys))
            self._prefixes[whole].waiting.append(s)
            return
        looks = dict(zip(keys, wanted.looks, strict=True))
        embeddings = {key: self._images.embedding(key) for key in looks}
        for key, embedding in embeddings.items():
            lacks = embedding is None and key not in self._views and key not in self._sights
            if lacks and isinstance(looks[key].image, Picture):
                # It has left the cache, or its crops were those of somebody who has gone, since it was looked at.
                assert s.start
                return self.want(s, s.start, wanted)
        prefix = self._prefixes[whole] = _Prefix(whole, wanted, variant, keys, [s])
        for key, embedding in embeddings.items():
            if embedding is not None:
                self._count("warm", 1)
                prefix.embeddings[key] = embedding.to(self._model.device)
                continue
            self._count("miss", 1)
            if key not in self._sights:
                self._sights[key] = _Sight(key, self._views_of(key, looks[key]))
                self._views.pop(key, None)
            self._sights[key].prefixes.append(prefix)

    def _views_of(self, key: str, look: Look) -> "Future[Any]":
        if isinstance(look.image, Picture):
            return self._views[key]
        views = begin(self._threads, self._model.views, look.image, look.detail)
        views.add_done_callback(lambda _: self._wake())
        return views

    @property
    def ready(self) -> bool:
        """Whether there is work to do now."""
        return bool(self._active or self._next_prefix() or self._next_sights())

    def work(self) -> None:
        """One piece of it."""
        if self._active is None:
            if prefix := self._next_prefix():
                self._active, self._active_for = self._make_prefix(prefix), [prefix]
            elif sights := self._next_sights():
                self._active = self._look(sights)
                self._active_for = [p for sight in sights for p in sight.prefixes]
        if self._active and next(self._active, self) is self:
            self._active, self._active_for = None, []

    def _next_prefix(self) -> _Prefix | None:
        ready = [p for p in self._prefixes.values() if p.ready]
        return min(ready, key=lambda p: p.rank, default=None)

    def _next_sights(self) -> list[_Sight]:
        """Those whose crops go into the next pass."""
        ready = sorted((s for s in self._sights.values() if s.views.done()), key=lambda s: s.rank)
        return ready[: self._model.crops_at_once]

    def _look(self, sights: list[_Sight]) -> Iterator[None]:
        """See the next crops of these images."""
        chosen: list[tuple[_Sight, np.ndarray]] = []
        left = self._model.crops_at_once
        for sight in filter(self._current, sights):
            try:
                pixels = sight.views.result().pixels[len(sight.features) :][:left]
            except Exception as error:
                self._fail_sight(sight, error)
                continue
            chosen.append((sight, pixels))
            left -= len(pixels)
            if not left:
                break
        if not chosen:
            return
        try:
            passes = self._model.see(np.concatenate([pixels for _, pixels in chosen]))
            features, took = yield from _timed(passes, self._model.device)
        except Exception as error:
            # Which of them is at fault is not known; one alone is.
            if len(chosen) > 1:
                for sight, _ in chosen:
                    yield from self._look([sight])
            elif self._current(chosen[0][0]) and not self._again(chosen[0][0], error):
                self._fail_sight(chosen[0][0], error)
            return
        share = took / len(features)
        parts = features.split([len(pixels) for _, pixels in chosen])
        for (sight, _), part in zip(chosen, parts, strict=True):
            sight.features.extend(part.unsqueeze(1).unbind(0))
            sight.seconds += share * len(part)
            if self._current(sight) and len(sight.features) == len(sight.views.result().pixels):
                self._seen(sight)

    def _current(self, sight: _Sight) -> bool:
        """Whether it is still wanted: another of the same image may have come after it."""
        return self._sights.get(sight.key) is sight

    def _again(self, work: _Prefix | _Sight, error: Exception) -> bool:
        """Whether to try once more: only when memory ran out, and for the first time."""
        again = self._relieve(error) and not work.tried
        work.tried = True
        return again

    def _seen(self, sight: _Sight) -> None:
        """All crops of an image have been seen."""
        begin = time.perf_counter()
        try:
            embedding = self._model.embed_image(torch.cat(sight.features), sight.views.result())
            synchronize(self._model.device)
            if not is_finite(embedding):
                raise NotANumber("the image")
        except Exception as error:
            return self._fail_sight(sight, error)
        self._images.keep_embedding(sight.key, embedding)
        self._sights.pop(sight.key, None)
        for prefix in sight.prefixes:
            prefix.embeddings[sight.key] = embedding
            prefix.encode_s += sight.seconds + time.perf_counter() - begin

    def _make_prefix(self, prefix: _Prefix) -> Iterator[None]:
        embeddings = [prefix.embeddings[key] for key in prefix.images]
        try:
            passes = self._model.prefix(prefix.wanted, embeddings, prefix.variant)
            encoded, took = yield from _timed(passes, self._model.device)
            # What is no number in an earlier layer is none in the last: it stays in the residual stream.
            if not (is_finite(encoded.k[-1]) and is_finite(encoded.v[-1])):
                raise NotANumber("the image")
        except Exception as error:
            if not self._again(prefix, error):
                self._fail(prefix, error)
            return
        encoded = replace(encoded, encode_s=prefix.encode_s, prefill_s=took)
        self._images.keep_prefix(prefix.key, encoded)
        self._prefixes.pop(prefix.key, None)
        for i, s in enumerate(prefix.waiting):  # who asked first pays
            self._give(s, prefix.key, encoded, reused=i > 0, seconds=(0, 0) if i else (prefix.encode_s, took))

    def _give(self, s: Sequence, key: str, encoded: EncodedImage, reused: bool, seconds: tuple[float, float]) -> None:
        self._images.pin(key)
        self._used[key] = encoded, self._used.get(key, (encoded, 0))[1] + 1
        if s.release:
            s.release()
        s.release = lambda: self._let_go(key)
        s.shared = 0 if self._images.has_prefix(key) else encoded.nbytes  # the cache's budget has it, or not
        s.over(encoded, reused, seconds)
        self._tell(s, encoded)

    def _let_go(self, key: str) -> None:
        self._images.unpin(key)
        encoded, users = self._used.pop(key)
        if users > 1:
            self._used[key] = encoded, users - 1

    def _fail_sight(self, sight: _Sight, error: Exception) -> None:
        self._sights.pop(sight.key, None)
        for prefix in sight.live:
            self._fail(prefix, error)

    def _fail(self, prefix: _Prefix, error: Exception) -> None:
        self._prefixes.pop(prefix.key, None)
        # Whoever is told is dropped, and what was only wanted for them with it.
        told, prefix.waiting = prefix.waiting, []
        for s in told:
            self._tell(s, error)


def _timed(passes: Passes[T], device: torch.device) -> Passes[tuple[T, float]]:
    """The same, and the seconds that its pieces took."""
    took = 0.0
    while True:
        begin = time.perf_counter()
        try:
            next(passes)
        except StopIteration as stop:
            synchronize(device)
            return stop.value, took + time.perf_counter() - begin
        took += time.perf_counter() - begin
        yield
