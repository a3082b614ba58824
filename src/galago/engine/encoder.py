"""Encodes images and the prefixes around them: each once however many requests want it, one piece of work at a time."""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from typing import TypeVar

import numpy as np

from galago.engine.arrays import concatenate, is_finite, on_device
from galago.engine.decoding import DECODING
from galago.engine.encoded_image import EncodedImage
from galago.engine.image_cache import ImageCache, image_key, pixel_digest, pixel_key, prefix_key
from galago.engine.image_threads import ImageThreads
from galago.engine.metrics import CacheResult
from galago.engine.pending import PendingImage, PendingPrefix, Work
from galago.engine.sequence import Sequence
from galago.engine.step import Crops, ImageInput, Prefix, Start, StepModel
from galago.errors import NotANumber
from galago.media.picture import Picture
from galago.nn.passes import Passes
from galago.request import Detail, Priority
from galago.system.device import CPU, Device, return_memory, synchronize
from galago.system.machine import usable_cores

LARGE = 64 << 20
"""Bytes of a picture whose memory goes back to the system before the next may have as much."""
T = TypeVar("T")
OnEncoded = Callable[[Sequence, "EncodedImage | Exception"], None]


class Encoder:
    """Encodes the images that sequences begin with, and hands each sequence its EncodedImage through `on_encoded`.

    Decoding, hashing and cutting crops happens in threads of its own, all else in the engine's, in `work`. A Picture is
    decoded there, when DECODING has room for it, and kept no longer than it takes to cut its crops.
    """

    def __init__(
        self,
        model: StepModel,
        cache: ImageCache,
        wake: Callable[[], None],
        on_encoded: OnEncoded,
        free_memory_after: Callable[[Exception], bool],
        count_images: Callable[[CacheResult, int], None],
    ) -> None:
        """`wake` is called from other threads; `free_memory_after` says whether an error is worth another try."""
        self._model, self._cache, self._wake, self._on_encoded = model, cache, wake, on_encoded
        self._free_memory_after, self._count_images = free_memory_after, count_images
        self._threads = ImageThreads(ThreadPoolExecutor(usable_cores(), "galago-images"))
        self._with_keys: SimpleQueue[tuple[Sequence, Start, list[str], BaseException | None]] = SimpleQueue()
        """sequences whose images have been hashed, with the images' keys or what went wrong"""
        self._pending_images: dict[str, PendingImage] = {}
        self._crops: dict[str, Future[Crops]] = {}
        """of pictures, by image key: cut while they were decoded"""
        self._claiming = threading.Lock()
        self._pending_prefixes: dict[str, PendingPrefix] = {}
        self._in_use: dict[str, tuple[EncodedImage, int]] = {}
        """prefixes that running requests use, since the cache may have had no room for them; and how many do"""
        self._active: list[Work] = []
        """work that is under way; there is more than one where something urgent came between its pieces"""

    def __len__(self) -> int:
        """Prefixes that are being encoded or wait for it."""
        return len(self._pending_prefixes)

    def request_prefix(self, s: Sequence, start: Start, prefix: Prefix) -> None:
        """Have a prefix encoded for a sequence, which gets it through `on_encoded`."""

        def make_keys() -> tuple[list[str], BaseException | None]:
            keys: list[str] = []
            try:
                for image_input in prefix.images:
                    if s.start is start:
                        keys.append(self._key_of(image_input, prefix, start, s))
            except BaseException as error:  # most often an image whose file cannot be read to its end
                return keys, error
            return keys, None

        def put(made: "Future[tuple[list[str], BaseException | None]]") -> None:
            if not made.cancelled():
                self._with_keys.put((s, start, *made.result()))
            self._wake()

        self._threads.submit(s.job.priority, make_keys).add_done_callback(put)

    def _key_of(self, image_input: ImageInput, prefix: Prefix, start: Start, s: Sequence) -> str:
        """The key of an image, empty once the sequence has gone. A Picture that is not known is decoded and cut."""
        image, context = image_input.image, (self._model.identity, image_input.detail)
        if not isinstance(image, Picture):
            return image_key(image, *context)
        with image.reading:  # of several requests with this picture the others find it known
            key = pixel_key(image.known[0], *context) if image.known else None
            if key and self._is_known(key, prefix, start):
                return key
            with DECODING.hold(image.needs, lambda: s.start is start) as held:
                if not held:
                    return ""
                key = self._decode_and_crop(image, image_input.detail, prefix, start)
                if image.needs >= LARGE:
                    # The C library keeps what a thread has freed for that thread; the next picture is another's.
                    return_memory(CPU)
                return key

    def _decode_and_crop(self, picture: Picture, detail: Detail, prefix: Prefix, start: Start) -> str:
        image = picture.decode()
        if not picture.known:
            picture.known.append(pixel_digest(image))
        key = pixel_key(picture.known[0], self._model.identity, detail)
        with self._claiming:
            if self._is_known(key, prefix, start):
                return key
            crops = self._crops[key] = Future()
            crops.set_running_or_notify_cancel()  # others may be after them by the time that this request has gone
        try:
            crops.set_result(self._model.make_crops(image, detail))
        except BaseException as error:
            crops.set_exception(error)
        self._wake()
        return key

    def _is_known(self, key: str, prefix: Prefix, start: Start) -> bool:
        """Whether an image's crops are there or being encoded, or will hardly be needed; asked from any thread."""
        whole = prefix_key((key,), prefix.layout, start.variant) if len(prefix.images) == 1 else ""
        # In the order in which an image goes on, so that none is missed while it does.
        there = key in self._crops or key in self._pending_images or self._cache.has_embedding(key)
        return there or whole in self._pending_prefixes or self._cache.has_prefix(whole) or whole in self._in_use

    def cancel(self, s: Sequence) -> None:
        """Drop a sequence's request for a prefix, and the work that was for it alone."""
        for pending in self._pending_prefixes.values():
            if s in pending.waiting:
                pending.waiting.remove(s)
        for key in [key for key, p in self._pending_prefixes.items() if not p.waiting]:
            del self._pending_prefixes[key]
        for key in [key for key, image in self._pending_images.items() if not image.wanted_by]:
            self._pending_images.pop(key).crops.cancel()
        DECODING.wake()
        self._active = [work for work in self._active if work.is_wanted]

    def close(self) -> None:
        DECODING.wake()
        self._threads.shut_down()
        del self._on_encoded, self._free_memory_after  # they hold this, and so the model until garbage is collected

    def collect_finished(self) -> None:
        """Take in the sequences whose images have been hashed: these are cached, pending already, or new."""
        while not self._with_keys.empty():
            s, start, keys, failed = self._with_keys.get()
            if s.start is start:  # not gone meanwhile
                if isinstance(failed, Exception):
                    self._on_encoded(s, failed)
                elif failed:
                    raise failed
                else:
                    assert isinstance(start.prefix, Prefix)
                    self._look_up(s, start.prefix, start.variant, tuple(keys))
            for key in keys:
                if (crops := self._crops.get(key)) and crops.done():
                    del self._crops[key]  # not needed after all

    def _look_up(self, s: Sequence, prefix: Prefix, variant: str | None, keys: tuple[str, ...]) -> None:
        """Give a sequence its prefix if it is there; else add it to the pending one, or make a new one pending."""
        whole = prefix_key(keys, prefix.layout, variant)
        s.prefix_key, s.prefix_bytes = whole, prefix.positions * self._model.kv_bytes
        if encoded := self._cache.prefix(whole) or self._in_use.get(whole, (None, 0))[0]:
            self._count_images("hot", len(keys))
            return self._deliver(s, whole, encoded, reused=True, seconds=(0.0, 0.0))
        if whole in self._pending_prefixes:
            self._count_images("shared", len(keys))
            self._pending_prefixes[whole].waiting.append(s)
            return
        inputs = dict(zip(keys, prefix.images, strict=True))
        embeddings = {key: self._cache.embedding(key) for key in inputs}
        for key, embedding in embeddings.items():
            lacks = embedding is None and key not in self._crops and key not in self._pending_images
            if lacks and isinstance(inputs[key].image, Picture):
                # It has left the cache, or its crops were those of somebody who has gone, since it was hashed.
                assert s.start
                return self.request_prefix(s, s.start, prefix)
        pending = self._pending_prefixes[whole] = PendingPrefix(whole, prefix, variant, keys, [s])
        for key, embedding in embeddings.items():
            if embedding is not None:
                self._count_images("warm", 1)
                pending.embeddings[key] = on_device(embedding, self._model.device)
                continue
            self._count_images("miss", 1)
            if key not in self._pending_images:
                self._pending_images[key] = PendingImage(key, self._crops_of(key, inputs[key], s.job.priority))
                self._crops.pop(key, None)
            self._pending_images[key].prefixes.append(pending)

    def _crops_of(self, key: str, image_input: ImageInput, priority: Priority) -> "Future[Crops]":
        if isinstance(image_input.image, Picture):
            return self._crops[key]
        crops = self._threads.submit(priority, self._model.make_crops, image_input.image, image_input.detail)
        crops.add_done_callback(lambda _: self._wake())
        return crops

    def has_work(self, priority: Priority) -> bool:
        """Whether `work` has something to do now."""
        return self._next_work(priority) is not None

    def work(self, priority: Priority) -> None:
        """Do one piece of the work on a prefix or on images that requests of this priority wait for."""
        if (work := self._next_work(priority)) is None:
            return
        if work not in self._active:
            self._active.append(work)
        ended = next(work.pieces, self) is self
        self._active = [one for one in self._active if one.is_wanted and not (ended and one is work)]

    def _next_work(self, priority: Priority) -> Work | None:
        """What has been begun, else a prefix, else the images whose crops go into the next pass."""
        is_batch = priority == "batch"
        if begun := next((work for work in self._active if work.rank[0] == is_batch), None):
            return begun
        taken = [one for work in self._active for one in work.on]
        prefixes = [p for p in self._pending_prefixes.values() if p.is_ready and p not in taken]
        if found := min((p for p in prefixes if p.rank[0] == is_batch), key=lambda p: p.rank, default=None):
            return Work(self._encode_prefix(found), [found])
        images = [i for i in self._pending_images.values() if i.crops.done() and i not in taken]
        first = sorted((i for i in images if i.rank[0] == is_batch), key=lambda i: i.rank)[: self._model.crops_per_pass]
        return Work(self._encode_crops(first), first) if first else None

    def _encode_crops(self, images: list[PendingImage]) -> Iterator[None]:
        """Encode the next crops of these images in one pass."""
        chosen: list[tuple[PendingImage, np.ndarray]] = []
        left = self._model.crops_per_pass
        for image in filter(self._is_wanted, images):
            try:
                pixels = image.crops.result().pixels[len(image.features) :][:left]
            except Exception as error:
                self._fail_image(image, error)
                continue
            chosen.append((image, pixels))
            left -= len(pixels)
            if not left:
                break
        if not chosen:
            return
        try:
            passes = self._model.encode_crops(np.concatenate([pixels for _, pixels in chosen]))
            features, took = yield from _timed(passes, self._model.device)
        except Exception as error:
            # Which of them is at fault is not known; one alone is.
            if len(chosen) > 1:
                for image, _ in chosen:
                    yield from self._encode_crops([image])
            elif self._is_wanted(chosen[0][0]) and not self._may_retry(chosen[0][0], error):
                self._fail_image(chosen[0][0], error)
            return
        share = took / len(features)
        first = 0
        for image, pixels in chosen:
            image.features.extend(features[i : i + 1] for i in range(first, first + len(pixels)))
            first += len(pixels)
            image.seconds += share * len(pixels)
            if self._is_wanted(image) and len(image.features) == len(image.crops.result().pixels):
                self._embed_image(image)

    def _is_wanted(self, image: PendingImage) -> bool:
        """Whether it is still pending: another of the same key may have come after it."""
        return self._pending_images.get(image.key) is image

    def _may_retry(self, work: PendingPrefix | PendingImage, error: Exception) -> bool:
        """Whether to try once more: only when memory ran out, and for the first time."""
        again = self._free_memory_after(error) and not work.ran_out
        work.ran_out = True
        return again

    def _embed_image(self, image: PendingImage) -> None:
        """Make the embedding of an image whose crops have all been encoded."""
        begin = time.perf_counter()
        try:
            embedding = self._model.embed_image(concatenate(image.features), image.crops.result())
            synchronize(self._model.device)
            if not is_finite(embedding):
                raise NotANumber("the image")
        except Exception as error:
            return self._fail_image(image, error)
        self._cache.keep_embedding(image.key, embedding, is_passing=image.is_batch)
        self._pending_images.pop(image.key, None)
        for pending in image.prefixes:
            pending.embeddings[image.key] = embedding
            pending.encode_s += image.seconds + time.perf_counter() - begin

    def _encode_prefix(self, pending: PendingPrefix) -> Iterator[None]:
        embeddings = [pending.embeddings[key] for key in pending.image_keys]
        try:
            passes = self._model.encode_prefix(pending.prefix, embeddings, pending.variant)
            encoded, took = yield from _timed(passes, self._model.device)
            # What is no number in an earlier layer is none in the last: it stays in the residual stream.
            if not (is_finite(encoded.k[-1]) and is_finite(encoded.v[-1])):
                raise NotANumber("the image")
        except Exception as error:
            if not self._may_retry(pending, error):
                self._fail_prefix(pending, error)
            return
        encoded = replace(encoded, encode_s=pending.encode_s, prefill_s=took)
        self._cache.keep_prefix(pending.key, encoded, is_passing=pending.is_batch)
        self._pending_prefixes.pop(pending.key, None)
        for i, s in enumerate(pending.waiting):  # who asked first pays
            self._deliver(s, pending.key, encoded, reused=i > 0, seconds=(0, 0) if i else (pending.encode_s, took))

    def _deliver(
        self, s: Sequence, key: str, encoded: EncodedImage, reused: bool, seconds: tuple[float, float]
    ) -> None:
        self._cache.pin(key)
        self._in_use[key] = encoded, self._in_use.get(key, (encoded, 0))[1] + 1
        if s.release_prefix:
            s.release_prefix()
        s.release_prefix = lambda: self._release(key)
        s.prefix_bytes = 0 if self._cache.has_prefix(key) else encoded.nbytes  # the cache's budget has it, or not
        s.count_prefix(encoded, reused, seconds)
        self._on_encoded(s, encoded)

    def _release(self, key: str) -> None:
        self._cache.unpin(key)
        encoded, users = self._in_use.pop(key)
        if users > 1:
            self._in_use[key] = encoded, users - 1

    def _fail_image(self, image: PendingImage, error: Exception) -> None:
        self._pending_images.pop(image.key, None)
        for pending in image.wanted_by:
            self._fail_prefix(pending, error)

    def _fail_prefix(self, pending: PendingPrefix, error: Exception) -> None:
        self._pending_prefixes.pop(pending.key, None)
        failed, pending.waiting = pending.waiting, []  # each is dropped, and what was only wanted for it
        for s in failed:
            self._on_encoded(s, error)


def _timed(passes: Passes[T], device: Device) -> Passes[tuple[T, float]]:
    """Run the passes; their result, and the seconds that they took."""
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
