"""Many requests on one model: what is computed next, and for whom.

One turn is one pass of the decoder over all sequences that wait for a step, or a piece of the work on an
image; they alternate, so that a running answer waits for one piece at the most.
"""

import copy
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from typing import Any

from galago.engine.encoded_image import EncodedImage
from galago.engine.encoder import Encoder
from galago.engine.image_cache import ImageCache
from galago.engine.inbox import Inbox
from galago.engine.kv_cache import CHUNK
from galago.engine.kv_share import kv_bytes_of
from galago.engine.limits import Limits
from galago.engine.metrics import Metrics, Snapshot
from galago.engine.sequence import Sequence
from galago.engine.step import End, Feed, Output, Prefix, Start, Step, StepModel
from galago.errors import GalagoError, GenerationFailed, InvalidRequest, NotANumber
from galago.system.device import available_memory, is_out_of_memory, return_memory

log = logging.getLogger(__name__)

IDLE_S = 1.0
"""After so long without work, memory kept for more of it goes back to the system."""
REST_S = 3600.0
"""The longest rest until a deadline: the system's clocks do not take any number of seconds, or infinity."""
EASE_S = 1.0
"""How often a working engine looks at what memory the machine has left."""
LOW_BYTES = 256 << 20
"""With less than this left the image cache is given up."""


class Scheduler:
    """Carries out the jobs of an inbox, all from one thread."""

    def __init__(self, model: StepModel, inbox: Inbox, limits: Limits, images: ImageCache, metrics: Metrics) -> None:
        self._model, self._inbox, self._limits, self._images, self._metrics = model, inbox, limits, images, metrics
        self.kv_bytes = kv_bytes_of(model, limits)
        self._running: list[Sequence] = []
        self._encoder = Encoder(model, images, inbox.wake, self._encoded, self._relieve, metrics.image)
        self._image_next = True
        self._turns, self._overhead_s, self._skills_s, self._longest_s = 0, 0.0, 0.0, 0.0
        self._elsewhere = 0.0
        """seconds of this turn that the model and the skills took"""
        self._trim = False
        self._eased = time.perf_counter()
        metrics.watch(self.snapshot)

    def snapshot(self) -> Snapshot:
        """Sizes now; may be asked from any thread."""
        self._count_ended()
        images, running = self._images.stats(), list(self._running)
        sizes = {
            "kv": sum(cache.bytes for s in running if (cache := s.cache)),
            "prefixes": images.hot.bytes + sum({s.image: s.shared for s in running if s.release}.values()),
            "embeddings": images.warm.bytes,
        }
        return Snapshot(len(self._inbox), len(running), len(self._encoder), sizes)

    def stats(self) -> dict[str, Any]:
        """Seconds of the scheduler itself and of skills, the longest that an image or a prompt took, and the caches."""
        own = {
            "turns": self._turns,
            "overhead_s": self._overhead_s,
            "skills_s": self._skills_s,
            "longest_piece_s": self._longest_s,
        }
        return {"scheduler": own, "cache": asdict(self._images.stats())}

    def trim(self) -> None:
        """Empty the image cache before the next turn."""
        self._trim = True
        self._inbox.wake()

    def run(self) -> None:
        """Work until the inbox is closed."""
        while not self._inbox.closed:
            self._inbox.rest(0)
            try:
                if not self.turn():
                    self._rest()
            except Exception as error:
                # A mistake of ours: nobody in particular is at fault, so all that ran are told, also the one
                # that was just being ended.
                log.exception("the scheduler failed")
                for s in list(self._running):
                    self._end(s, error)
                self._inbox.finish_all(_failed(error))

    def end(self, why: GalagoError) -> None:
        """Refuse what waits and what comes, end what runs, and let go of everything, whatever fails meanwhile."""
        self._inbox.close(why)
        for s in list(self._running):
            try:
                self._end(s, copy.copy(why))
            except BaseException:  # of a skill that is cleaned up, or a callback
                log.exception("a request could not be ended properly")
        self._inbox.end(why)
        self._count_ended()
        self._metrics.close()
        self._encoder.close()

    def turn(self) -> bool:
        """Do what is next; False if there is nothing to do."""
        begin, self._elsewhere = time.perf_counter(), 0.0
        if self._trim:
            self._trim = False
            self._images.trim(0)
            return_memory(self._model.device)
        self._ease()
        self._drop()
        self._encoder.sort()
        self._admit()  # last, because those before may end requests, and nobody wakes those that wait
        ready = [s for s in self._running if s.feed]
        prompts = [s for s in ready if s.left > 1]
        # Nobody watches the steps of a batch: they wait for the images of those that were let in, and go together then,
        # which takes little longer than one alone. Not for ever: nobody else is let in before one of them has ended.
        gathering = all(s.job.priority == "batch" for s in self._running)
        image = self._encoder.ready and (gathering or self._image_next or not prompts)
        worked = bool(ready) or image
        if image:
            before = self._elsewhere
            took = _seconds(self._encoder.work)
            self._elsewhere = before + took
            self._metrics.stepped(0, 0, took, "vision")
            self._longest_s = max(self._longest_s, took)
        # A piece of one prompt goes with the steps of the others, unless an image had its turn.
        steps = [] if image and gathering else [s for s in ready if s.left == 1]
        batch = steps + ([] if image else sorted(prompts, key=_rank)[:1])
        self._image_next = not image
        if batch:
            self._step(batch)
            self._turns += 1
            self._overhead_s += time.perf_counter() - begin - self._elsewhere
        return worked

    def _ease(self) -> None:
        """Give up the image cache when the machine runs short of memory."""
        if time.perf_counter() - self._eased < EASE_S:
            return
        if self._images.bytes and (left := available_memory(self._model.device)) < LOW_BYTES:
            log.warning("only %d MB of memory are left; the image cache is given up", left >> 20)
            self._images.trim(0)
            return_memory(self._model.device)
        self._eased = time.perf_counter()

    def _rest(self) -> None:
        """Wait for news; memory goes back to the system when none come for a while."""
        late = [job.deadline for job in (*self._inbox.jobs(), *(s.job for s in self._running)) if job.deadline]
        until = min(max(0.0, min(late) - time.perf_counter()), REST_S) if late else None
        if self._running or until is not None:
            self._inbox.rest(until)
        elif not self._inbox.rest(IDLE_S):
            return_memory(self._model.device)
            self._inbox.rest(None)

    # --- who is in --------------------------------------------------------------------------

    def _admit(self) -> None:
        """Take in jobs, in their order, as long as there is room for all that they may need."""
        short = False
        while len(self._running) < self._limits.running and (job := self._inbox.first()):
            s = Sequence(job)
            try:
                first = job.first = job.first or self._sent(s, None)
                own, shared = self._needs(first)
            except Exception as error:
                if self._inbox.take(job):
                    self._end(s, error)
                continue
            if short := bool(self._running) and own + shared + self.reserved > self.kv_bytes:
                break
            if self._inbox.take(job):
                self._metrics.admitted(time.perf_counter() - job.since)
                s.own, s.shared = own, shared
                self._running.append(s)
                self._go_on(s, first)
        self._inbox.short = short

    def _needs(self, first: Step | End) -> tuple[int, int]:
        """Bytes of a sequence's own keys and values at the most, and of the prefix that it may have to make."""
        if not isinstance(first, Start):
            raise TypeError("a skill begins with a Start")
        per_position = self._model.kv_bytes
        ahead = first.prefix.positions if isinstance(first.prefix, Prefix) else 0
        # They come by chunks, but no cache holds more than its model's context.
        own = min(first.positions + CHUNK, max(self._model.context - ahead, 0)) * per_position
        shared = ahead * per_position
        if own + shared > self.kv_bytes:
            raise InvalidRequest(
                f"the request may need {own + shared:,} bytes of keys and values, of {self.kv_bytes:,} "
                "that there may be; ask for fewer tokens",
                "max_tokens",
            )
        return own, shared

    @property
    def reserved(self) -> int:
        """Bytes set aside for keys and values of running requests; requests on one image share its prefix."""
        return sum(s.own for s in self._running) + sum({s.image or id(s): s.shared for s in self._running}.values())

    def _drop(self) -> None:
        """End what was cancelled or is late."""
        self._count_ended()
        for job in self._inbox.jobs():
            if (error := job.late()) and self._inbox.take(job):
                self._end(Sequence(job), error)
        for s in [s for s in self._running if s.job.cancelled or s.job.deadline]:
            if s.job.cancelled:
                self._end(s, None)
            elif error := s.job.late():
                self._end(s, error)

    def _count_ended(self) -> None:
        for job, how in self._inbox.ended():
            self._metrics.finished(job.skill, how, None, None)

    # --- one request ------------------------------------------------------------------------

    def _go_on(self, s: Sequence, step: Step | End) -> None:
        """Carry a sequence from this step to the next that has to wait."""
        while True:
            if isinstance(step, Start):
                s.start, s.cache = step, None
                if isinstance(step.prefix, Prefix):
                    return self._encoder.want(s, step, step.prefix)
                encoded = step.prefix if isinstance(step.prefix, EncodedImage) else None
                s.over(encoded, True, (0.0, 0.0))
                return self._encoded(s, encoded)
            if isinstance(step, Feed):
                if not len(step.input):
                    return self._end(s, ValueError("a skill feeds one position at least"))
                return s.ask(step)
            if isinstance(step, End):
                return self._end(s, step)
            first = s.first_s is None
            gap = s.tell(step)
            if first and s.first_s is not None:
                self._metrics.first(s.job.skill, s.first_s)
            self._metrics.event(s.job.skill, gap)
            try:
                step = self._sent(s, None)
            except Exception as error:
                return self._end(s, error)

    def _sent(self, s: Sequence, answer: EncodedImage | Output | None) -> Step | End:
        begin = time.perf_counter()
        try:
            return s.job.steps.send(answer)
        except StopIteration as stop:
            end: End = stop.value
            return end
        finally:
            took = time.perf_counter() - begin
            self._elsewhere += took
            self._skills_s += took

    def _begun(self, s: Sequence, encoded: EncodedImage | None) -> EncodedImage | None:
        assert s.start is not None
        s.cache, s.start = self._model.new_cache(encoded, s.start.variant), None
        return encoded

    def _encoded(self, s: Sequence, found: EncodedImage | Exception | None) -> None:
        """A sequence's prefix is there, or failed, or it has none."""
        if isinstance(found, Exception):
            return self._end(s, found)
        try:
            step = self._sent(s, self._begun(s, found))
        except Exception as error:
            return self._end(s, error)
        self._go_on(s, step)

    def _end(self, s: Sequence, how: "End | Exception | None") -> None:
        """The one way out: done, failed, or cancelled (None)."""
        if s in self._running:
            self._running.remove(s)
        s.start = s.feed = s.cache = None
        self._encoder.drop(s)
        if s.release:
            s.release()
        with suppress(Exception):
            s.job.steps.close()
        if isinstance(how, Exception):
            told = how if isinstance(how, GalagoError) else _failed(how)
            self._metrics.finished(s.job.skill, "failed", None, None, told.code)
            if isinstance(told, NotANumber):  # no fault of the request's: whoever runs the model wants to know
                log.error("%s in %s: %s", self._model.name, self._model.precision.name, told)
            how.__traceback__ = None  # its frames hold caches and images, for as long as somebody has the error
            self._inbox.finish(s.job, told)
        else:
            done = s.done(how)
            self._metrics.finished(s.job.skill, "done" if how else "cancelled", done.usage, done.timings)
            self._inbox.finish(s.job, done)
        if self._limits.tidy == "always":
            return_memory(self._model.device)

    # --- one pass ---------------------------------------------------------------------------

    def _step(self, batch: list[Sequence]) -> None:
        begin = time.perf_counter()
        fed = [self._part(s) for s in batch]
        outputs = self._outputs(batch, fed)
        took = time.perf_counter() - begin
        self._elsewhere += took
        rows = sum(len(feed.input) for feed in fed)
        self._metrics.stepped(rows, len(batch), took, "decode" if rows == len(batch) else "prefill")
        if rows > len(batch):
            self._longest_s = max(self._longest_s, took)
        for s, feed, out in zip(batch, fed, outputs, strict=True):
            if isinstance(out, Exception):
                self._end(s, out)
                continue
            if s.took(len(feed.input)):
                try:
                    step = self._sent(s, out)
                except Exception as error:
                    self._end(s, error)
                    continue
                self._go_on(s, step)

    def _part(self, s: Sequence) -> Feed:
        """What of a sequence's feed goes into the next pass."""
        assert s.feed
        part = s.feed.input[s.fed : s.fed + self._model.rows_at_once]
        return Feed(part, s.feed.reads if len(part) == s.left else ())

    def _outputs(self, batch: list[Sequence], fed: list[Feed]) -> list["Output | Exception"]:
        """What the pass gives to each. After an error each goes alone, so that only those at fault fail."""
        caches = [s.cache for s in batch]
        try:
            return list(self._model.forward(caches, fed))  # type: ignore[arg-type]
        except Exception as error:
            again = self._relieve(error)
            if len(batch) == 1 and not again:
                return [error]
        found: list[Output | Exception] = []
        for cache, feed in zip(caches, fed, strict=True):
            try:
                found += self._model.forward([cache], [feed])  # type: ignore[list-item]
            except Exception as error:
                found.append(error)
        return found

    def _relieve(self, error: Exception) -> bool:
        """Free what can be made again, if it was memory that ran out; whether that was so."""
        if not is_out_of_memory(error):
            return False
        log.warning("memory ran out; the image cache is given up for it")
        self._images.trim(0)
        return_memory(self._model.device)
        return True


def _failed(error: Exception) -> GenerationFailed:
    log.error("generation failed", exc_info=error)
    why = "memory ran out" if is_out_of_memory(error) else type(error).__name__
    failed = GenerationFailed(f"generation failed ({why}); the log tells more")
    failed.__cause__ = error
    return failed


def _rank(s: Sequence) -> tuple[bool, float]:
    return s.job.rank


def _seconds(call: Callable[[], None]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin
