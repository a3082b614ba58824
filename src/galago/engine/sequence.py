"""A request that is under way, and what it used so far."""

import time
from collections.abc import Callable
from typing import Literal

from galago.engine.encoded_image import EncodedImage
from galago.engine.inbox import Job
from galago.engine.kv_cache import KVCache
from galago.engine.step import End, Feed, Start
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import Done, Event, Timings, Usage

Phase = Literal["prefill", "decode"]


class Sequence:
    """One job's steps between two questions to the model."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start: Start | None = None
        """what it waits for, while its image is encoded"""
        self.cache: KVCache | None = None
        self.feed: Feed | None = None
        """what it waits for, while that is fed"""
        self.fed = 0
        """rows of it that are done"""
        self.own, self.shared = 0, 0
        """bytes set aside for its keys and values, and for a prefix that it may have to make"""
        self.image: str | None = None
        """the address of that prefix, once it is known"""
        self.release: Callable[[], None] | None = None
        """lets its image's prefix go"""
        self.prompt = True
        self.last_event: float | None = None
        self._usage = dict.fromkeys(("prompt", "image", "cached", "fed"), 0)
        self._times = dict.fromkeys(("encode", "prefill", "decode"), 0.0)
        self.first_s: float | None = None
        self._phase: Phase | None = None
        self._mark = 0.0

    @property
    def left(self) -> int:
        """Rows that wait to be fed."""
        return len(self.feed.input) - self.fed if self.feed else 0

    def over(self, encoded: EncodedImage | None, reused: bool, seconds: tuple[float, float]) -> None:
        """Count an image: whether another request had paid for it, and what this one paid for vision and prefix."""
        self.prompt = True
        if encoded is None:
            return
        self._usage["prompt"] += encoded.positions
        self._usage["image"] += encoded.image_tokens
        self._usage["cached"] += encoded.positions if reused else 0
        self._times["encode"] += seconds[0]
        self._times["prefill"] += seconds[1]

    def ask(self, feed: Feed) -> None:
        """Begin a phase, which lasts until the skill asks for more: only by then has an accelerator answered."""
        self.charge("prefill" if self.prompt else "decode")
        self.feed, self.fed = feed, 0

    def took(self, rows: int) -> bool:
        """Count rows that were fed; whether that was all of them."""
        self.fed += rows
        self._usage["prompt" if self.prompt else "fed"] += rows
        if self.left:
            return False
        self.prompt, self.feed = False, None
        return True

    def charge(self, phase: Phase | None = None) -> None:
        """Charge the time since the last call to the phase that it began."""
        now = time.perf_counter()
        if self._phase:
            self._times[self._phase] += now - self._mark
        self._phase, self._mark = phase, now

    def tell(self, event: Event) -> float | None:
        """Give an event out; the seconds since the one before."""
        now = time.perf_counter()
        if self.first_s is None:
            self.first_s = now - self.job.since
        gap = None if self.last_event is None else now - self.last_event
        self.last_event = now
        self.job.tell(event)
        return gap

    def done(self, end: End | None) -> Done:
        """The last event; without an end it was cancelled."""
        self.charge()
        total = time.perf_counter() - self.job.since
        u, t = self._usage, self._times
        tokens = end.completion_tokens if end else u["fed"]
        usage = Usage(u["prompt"], u["image"], u["cached"], tokens)
        first = total if self.first_s is None else self.first_s
        timings = Timings(t["encode"], t["prefill"], t["decode"], first, total)
        shown = [one for one in self.job.shown if isinstance(one, Picture | Clip)]
        warnings = dict.fromkeys(warning for one in shown for warning in one.warnings)
        return Done(end.reason if end else "cancelled", usage, timings, tuple(warnings))
