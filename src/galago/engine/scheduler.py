"""The scheduler: decides what one model computes next, and for which of many requests.

One turn is one pass of the decoder over all sequences that wait for a step, or a piece of the work on an
image; they alternate, so that a running answer waits for one piece at the most. Requests of a batch have turns of
their own, when `priorities` says.
"""

import copy
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Any

from galago.engine.encoded_image import EncodedImage
from galago.engine.encoder import Encoder
from galago.engine.image_cache import ImageCache
from galago.engine.kv_share import kv_bytes_of
from galago.engine.limits import Limits
from galago.engine.metrics import Metrics, Snapshot
from galago.engine.priorities import BatchPause, bytes_needed, has_memory, has_place, of_priority, reserved_bytes
from galago.engine.request_queue import RequestQueue
from galago.engine.sequence import Sequence
from galago.engine.step import End, Feed, Prefix, Start, Step, StepModel, StepOutput, StepResult
from galago.errors import GalagoError, GenerationFailed, NotANumber
from galago.request import Priority
from galago.system.device import available_memory, is_out_of_memory, return_memory

log = logging.getLogger(__name__)

IDLE_S = 1.0
"""After so long without work, memory kept for more of it goes back to the system."""
MAX_WAIT_S = 3600.0
"""The longest wait for a deadline: the system's clocks do not take any number of seconds, or infinity."""
MEMORY_CHECK_S = 1.0
"""How often a working engine checks what memory the machine has left."""
LOW_BYTES = 256 << 20
"""With less than this left the image cache is given up."""


class Scheduler:
    """Runs the jobs of a queue, all from one thread."""

    def __init__(
        self, model: StepModel, queue: RequestQueue, limits: Limits, images: ImageCache, metrics: Metrics
    ) -> None:
        self._model, self._queue, self._limits, self._images, self._metrics = model, queue, limits, images, metrics
        self.kv_bytes = kv_bytes_of(model, limits)
        self._running: list[Sequence] = []
        on_encoded, free_memory = self._on_encoded, self._free_memory_after
        self._encoder = Encoder(model, images, queue.wake, on_encoded, free_memory, metrics.count_images)
        self._image_next = True
        self.batch_pause = BatchPause()
        self._paused_until: float | None = None
        self._turns, self._overhead_s, self._skills_s, self._longest_s = 0, 0.0, 0.0, 0.0
        self._model_and_skills_s = 0.0
        """seconds of this turn that the model and the skills took"""
        self._trim_requested = False
        self._memory_checked_at = time.perf_counter()
        metrics.watch(self.snapshot)

    def snapshot(self) -> Snapshot:
        """Counts and bytes now; may be called from any thread."""
        self._count_ended()
        images, running = self._images.stats(), list(self._running)
        in_use = {s.prefix_key: s.prefix_bytes for s in running if s.release_prefix}
        sizes = {
            "kv": sum(cache.bytes for s in running if (cache := s.cache)),
            "prefixes": images.hot.bytes + sum(in_use.values()),
            "embeddings": images.warm.bytes,
        }
        return Snapshot(len(self._queue), len(running), len(self._encoder), sizes)

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
        self._trim_requested = True
        self._queue.wake()

    def run(self) -> None:
        """Take turns until the queue is closed."""
        while not self._queue.closed:
            self._queue.wait(0)
            try:
                if not self.turn():
                    self._wait()
            except Exception as error:
                # A mistake of ours: nobody in particular is at fault, so all that ran are told, also the one
                # that was just being ended.
                log.exception("the scheduler failed")
                for s in list(self._running):
                    self._finish(s, error)
                self._queue.fail_running(generation_failed(error))

    def shut_down(self, why: GalagoError) -> None:
        """Refuse waiting and new requests, end running ones and let go of everything, whatever fails meanwhile."""
        self._queue.close(why)
        for s in list(self._running):
            try:
                self._finish(s, copy.copy(why))
            except BaseException:  # of a skill that is cleaned up, or a callback
                log.exception("a request could not be ended properly")
        self._queue.shut_down(why)
        self._count_ended()
        self._metrics.close()
        self._encoder.close()

    def turn(self) -> bool:
        """Run one piece of work on an image, one pass of the decoder, or both; False if there is nothing to do now."""
        begin, self._model_and_skills_s = time.perf_counter(), 0.0
        if self._trim_requested:
            self._trim_requested = False
            self._images.trim(0)
            return_memory(self._model.device)
        self._relieve_memory_pressure()
        self._end_cancelled_and_late()
        self._encoder.collect_finished()
        self._admit()  # last, because those before may end requests, and nobody wakes those that wait
        passes, interactive = self._turns, of_priority(self._running, "interactive")
        worked = self._work("interactive", interactive)
        now = time.perf_counter()
        pause_end = self.batch_pause.until(now, bool(interactive))
        is_paused = now < pause_end and self._queue.waits_for_memory != "interactive"
        self._paused_until = pause_end if is_paused else None
        if not is_paused and self._work("batch", of_priority(self._running, "batch")):
            self.batch_pause.count(now, time.perf_counter())
            worked = True
        if self._turns > passes:
            self._overhead_s += time.perf_counter() - begin - self._model_and_skills_s
        return worked

    def _work(self, priority: Priority, running: list[Sequence]) -> bool:
        """Run a piece of work on an image, a pass of the decoder, or both, for those of a priority; whether any was."""
        ready = [s for s in running if s.feed]
        prompts = [s for s in ready if s.rows_left > 1]
        # Nobody watches the steps of a batch: they wait for the images of those that were let in, and go together then,
        # which takes little longer than one alone. Not for ever: nobody else is let in before one of them has ended.
        gathering = priority == "batch"
        image = self._encoder.has_work(priority) and (gathering or self._image_next or not prompts)
        if image:
            before = self._model_and_skills_s
            took = _seconds(partial(self._encoder.work, priority))
            self._model_and_skills_s = before + took
            self._metrics.observe_step(0, 0, took, "vision")
            self._longest_s = max(self._longest_s, took)
        # A piece of one prompt goes with the steps of the others, unless an image had its turn.
        steps = [] if image and gathering else [s for s in ready if s.rows_left == 1]
        batch = steps + ([] if image else sorted(prompts, key=_rank)[:1])
        if not gathering:
            self._image_next = not image
        if batch:
            self._run_batch(batch)
        return bool(image or batch)

    def _relieve_memory_pressure(self) -> None:
        """Empty the image cache when the machine runs short of memory."""
        if time.perf_counter() - self._memory_checked_at < MEMORY_CHECK_S:
            return
        if self._images.bytes and (left := available_memory(self._model.device)) < LOW_BYTES:
            log.warning("only %d MB of memory are left; the image cache is given up", left >> 20)
            self._images.trim(0)
            return_memory(self._model.device)
        self._memory_checked_at = time.perf_counter()

    def _wait(self) -> None:
        """Wait until something is to do; after a while of that memory goes back to the system."""
        now, jobs = time.perf_counter(), [*self._queue.jobs(), *(s.job for s in self._running)]
        moments = [job.deadline for job in jobs if job.deadline]
        # Also if that is over by now: the last turn found it was not.
        if self._paused_until is not None and any(job.priority == "batch" for job in jobs):
            moments.append(self._paused_until)
        until = min(max(0.0, min(moments) - now), MAX_WAIT_S) if moments else None
        if self._running or until is not None:
            self._queue.wait(until)
        elif not self._queue.wait(IDLE_S):
            return_memory(self._model.device)
            self._queue.wait(None)

    # --- admission --------------------------------------------------------------------------

    def _admit(self) -> None:
        """Start waiting jobs in their order as long as there is memory for all that they may need."""
        no_memory: Priority | None = None
        while (job := self._queue.peek()) and has_place(job.priority, self._running, self._limits):
            s = Sequence(job)
            try:
                first = job.first_step = job.first_step or self._resume(s, None)
                own, prefix = bytes_needed(first, self._model, self.kv_bytes)
            except Exception as error:
                if self._queue.pop(job):
                    self._finish(s, error)
                continue
            if not has_memory(job.priority, own + prefix, self._running, self.kv_bytes):
                no_memory = job.priority
                break
            if self._queue.pop(job):
                self._metrics.observe_wait(time.perf_counter() - job.arrival)
                s.own_bytes, s.prefix_bytes = own, prefix
                self._running.append(s)
                self._continue(s, first)
        self._queue.waits_for_memory = no_memory

    @property
    def reserved_bytes(self) -> int:
        """Bytes set aside for keys and values of running requests."""
        return reserved_bytes(self._running)

    def _end_cancelled_and_late(self) -> None:
        """End requests that were cancelled or whose deadline has passed."""
        self._count_ended()
        for job in self._queue.jobs():
            if (error := job.deadline_error()) and self._queue.pop(job):
                self._finish(Sequence(job), error)
        for s in [s for s in self._running if s.job.cancelled or s.job.deadline]:
            if s.job.cancelled:
                self._finish(s, None)
            elif error := s.job.deadline_error():
                self._finish(s, error)

    def _count_ended(self) -> None:
        for job, how in self._queue.drain_ended():
            self._metrics.count_finished(job.skill, how, None, None)

    # --- one request ------------------------------------------------------------------------

    def _continue(self, s: Sequence, step: Step | End) -> None:
        """Carry out a sequence's steps from this one on, up to the next that has to wait."""
        while True:
            if isinstance(step, Start):
                s.start, s.cache = step, None
                if isinstance(step.prefix, Prefix):
                    return self._encoder.request_prefix(s, step, step.prefix)
                encoded = step.prefix if isinstance(step.prefix, EncodedImage) else None
                s.count_prefix(encoded, True, (0.0, 0.0))
                return self._on_encoded(s, encoded)
            if isinstance(step, Feed):
                if not len(step.input):
                    return self._finish(s, ValueError("a skill feeds one position at least"))
                return s.begin_feed(step)
            if isinstance(step, End):
                return self._finish(s, step)
            first = s.first_event_s is None
            gap = s.emit(step)
            if first and s.first_event_s is not None:
                self._metrics.observe_first_event(s.job.skill, s.first_event_s)
            self._metrics.observe_event(s.job.skill, gap)
            try:
                step = self._resume(s, None)
            except Exception as error:
                return self._finish(s, error)

    def _resume(self, s: Sequence, answer: StepResult) -> Step | End:
        """Send the answer to the skill's generator; its next step, or its end."""
        begin = time.perf_counter()
        try:
            return s.job.steps.send(answer)
        except StopIteration as stop:
            end: End = stop.value
            return end
        finally:
            took = time.perf_counter() - begin
            self._model_and_skills_s += took
            self._skills_s += took

    def _open_cache(self, s: Sequence, encoded: EncodedImage | None) -> EncodedImage | None:
        assert s.start is not None
        s.cache, s.start = self._model.new_cache(encoded, s.start.variant), None
        return encoded

    def _on_encoded(self, s: Sequence, found: EncodedImage | Exception | None) -> None:
        """Go on with a sequence whose prefix has been encoded, or has failed, or that has none."""
        if isinstance(found, Exception):
            return self._finish(s, found)
        try:
            step = self._resume(s, self._open_cache(s, found))
        except Exception as error:
            return self._finish(s, error)
        self._continue(s, step)

    def _finish(self, s: Sequence, how: "End | Exception | None") -> None:
        """End a request: done, failed, or cancelled (None). The only place where a running one ends."""
        if s in self._running:
            self._running.remove(s)
        s.start = s.feed = s.cache = None
        self._encoder.cancel(s)
        if s.release_prefix:
            s.release_prefix()
        with suppress(Exception):
            s.job.steps.close()
        if isinstance(how, Exception):
            error = how if isinstance(how, GalagoError) else generation_failed(how)
            self._metrics.count_finished(s.job.skill, "failed", None, None, error.code)
            if isinstance(error, NotANumber):  # no fault of the request's: whoever runs the model wants to know
                log.error("%s in %s: %s", self._model.name, self._model.precision.name, error)
            how.__traceback__ = None  # its frames hold caches and images, for as long as somebody has the error
            self._queue.finish(s.job, error)
        else:
            done = s.done_event(how)
            self._metrics.count_finished(s.job.skill, "done" if how else "cancelled", done.usage, done.timings)
            self._queue.finish(s.job, done)
        if self._limits.tidy == "always":
            return_memory(self._model.device)

    # --- one pass ---------------------------------------------------------------------------

    def _run_batch(self, batch: list[Sequence]) -> None:
        """Feed the next rows of each sequence in one pass of the decoder, and go on with those that are through."""
        self._turns += 1
        begin = time.perf_counter()
        fed = [self._next_rows(s) for s in batch]
        outputs = self._forward(batch, fed)
        took = time.perf_counter() - begin
        self._model_and_skills_s += took
        rows = sum(len(feed.input) for feed in fed)
        self._metrics.observe_step(rows, len(batch), took, "decode" if rows == len(batch) else "prefill")
        if rows > len(batch):
            self._longest_s = max(self._longest_s, took)
        for s, feed, out in zip(batch, fed, outputs, strict=True):
            if isinstance(out, Exception):
                self._finish(s, out)
                continue
            if s.advance(len(feed.input)):
                try:
                    step = self._resume(s, out)
                except Exception as error:
                    self._finish(s, error)
                    continue
                self._continue(s, step)

    def _next_rows(self, s: Sequence) -> Feed:
        """The part of a sequence's feed that goes into the next pass."""
        assert s.feed
        part = s.feed.input[s.rows_fed : s.rows_fed + self._model.rows_per_pass]
        return Feed(part, s.feed.heads if len(part) == s.rows_left else ())

    def _forward(self, batch: list[Sequence], fed: list[Feed]) -> list["StepOutput | Exception"]:
        """The output of each sequence. After an error each is tried alone, so that only those at fault fail."""
        caches = [s.cache for s in batch]
        try:
            return list(self._model.forward(caches, fed))
        except Exception as error:
            again = self._free_memory_after(error)
            if len(batch) == 1 and not again:
                return [error]
        found: list[StepOutput | Exception] = []
        for cache, feed in zip(caches, fed, strict=True):
            try:
                found += self._model.forward([cache], [feed])
            except Exception as error:
                found.append(error)
        return found

    def _free_memory_after(self, error: Exception) -> bool:
        """Empty the image cache if it was memory that ran out; whether that was so."""
        if not is_out_of_memory(error):
            return False
        log.warning("memory ran out; the image cache is given up for it")
        self._images.trim(0)
        return_memory(self._model.device)
        return True


def generation_failed(error: Exception) -> GenerationFailed:
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
