"""A request that is running, with its state and what it has used so far."""

import time
from collections.abc import Callable
from typing import Literal

from galago.engine.encoded_image import EncodedImage
from galago.engine.request_queue import Job
from galago.engine.step import End, Feed, SequenceCache, Start
from galago.media.clip import Clip
from galago.media.picture import Picture
from galago.request import Done, Event, Timings, Usage

Phase = Literal["prefill", "decode"]


class Sequence:
    """The state of a running job between two steps of its skill."""

    def __init__(self, job: Job) -> None:
        self.job = job
        self.start: Start | None = None
        """the step that it waits for while its image is encoded"""
        self.cache: SequenceCache | None = None
        self.feed: Feed | None = None
        """the step that it waits for while the feed's rows are computed"""
        self.rows_fed = 0
        """how many of them are done"""
        self.own_bytes, self.prefix_bytes = 0, 0
        """bytes set aside for its keys and values, and for a prefix that it may have to encode"""
        self.prefix_key: str | None = None
        """of that prefix, once its images have been hashed"""
        self.release_prefix: Callable[[], None] | None = None
        """unpins that prefix in the cache"""
        self.in_prompt = True
        self.last_event_at: float | None = None
        self._usage = dict.fromkeys(("prompt", "image", "cached", "fed"), 0)
        self._times = dict.fromkeys(("encode", "prefill", "decode"), 0.0)
        self.first_event_s: float | None = None
        self._phase: Phase | None = None
        self._phase_start = 0.0

    @property
    def rows_left(self) -> int:
        """Rows of its feed that have not been computed."""
        return len(self.feed.input) - self.rows_fed if self.feed else 0

    def count_prefix(self, encoded: EncodedImage | None, reused: bool, seconds: tuple[float, float]) -> None:
        """Count a prefix: whether another request had it encoded, and the seconds of vision and prefill of this one."""
        self.in_prompt = True
        if encoded is None:
            return
        self._usage["prompt"] += encoded.positions
        self._usage["image"] += encoded.image_tokens
        self._usage["cached"] += encoded.positions if reused else 0
        self._times["encode"] += seconds[0]
        self._times["prefill"] += seconds[1]

    def count_prompt(self, positions: int, images: int = 0, cached: int = 0) -> None:
        """Count a prompt that was computed as a whole, so many of whose positions stand for images, or were cached."""
        self._usage["image"] += images
        self._usage["cached"] += cached
        self.advance(positions)

    def begin_feed(self, feed: Feed) -> None:
        """Wait for this feed. Begins a phase, which lasts until the skill's next step: only by then has an accelerator
        answered."""
        self.charge("prefill" if self.in_prompt else "decode")
        self.feed, self.rows_fed = feed, 0

    def advance(self, rows: int) -> bool:
        """Count rows that were computed; whether those were the last of the feed."""
        self.rows_fed += rows
        self._usage["prompt" if self.in_prompt else "fed"] += rows
        if self.rows_left:
            return False
        self.in_prompt, self.feed = False, None
        return True

    def charge(self, phase: Phase | None = None) -> None:
        """Add the time since the last call to the phase that it began, and begin this one."""
        now = time.perf_counter()
        if self._phase:
            self._times[self._phase] += now - self._phase_start
        self._phase, self._phase_start = phase, now

    def emit(self, event: Event) -> float | None:
        """Emit an event to the client; the seconds since the one before."""
        now = time.perf_counter()
        if self.first_event_s is None:
            self.first_event_s = now - self.job.arrival
        gap = None if self.last_event_at is None else now - self.last_event_at
        self.last_event_at = now
        self.job.emit(event)
        return gap

    def done_event(self, end: End | None) -> Done:
        """The last event of a request that reached its end, or was cancelled (None)."""
        self.charge()
        total = time.perf_counter() - self.job.arrival
        u, t = self._usage, self._times
        tokens = end.completion_tokens if end else u["fed"]
        usage = Usage(u["prompt"], u["image"], u["cached"], tokens)
        first = total if self.first_event_s is None else self.first_event_s
        timings = Timings(t["encode"], t["prefill"], t["decode"], first, total)
        media = [one for one in self.job.media if isinstance(one, Picture | Clip)]
        warnings = dict.fromkeys(warning for one in media for warning in one.warnings)
        return Done(end.reason if end else "cancelled", usage, timings, tuple(warnings))
