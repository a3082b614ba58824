"""Backends with a queue, whose model carries out one request after another, or a few at a time.

Its queue, its thread, its counts and how requests end are those of our own engine.
"""

import copy
import logging
import time
from collections.abc import Callable
from typing import Any, Protocol

import torch

from galago.backends.backend import Backend, Facts
from galago.engine.engine import EngineRun, Queued, Turns
from galago.engine.limits import Limits
from galago.engine.metrics import Metrics, Snapshot
from galago.engine.request_queue import Job, RequestQueue
from galago.engine.scheduler import IDLE_S, generation_failed
from galago.engine.sequence import Sequence
from galago.engine.step import End, Steps
from galago.errors import GalagoError, NotANumber
from galago.request import Event, Request
from galago.system.device import return_memory

log = logging.getLogger(__name__)


class Stopped(Exception):
    """Raised into a model at work on a request that was cancelled."""


class Turn:
    """A request while it is carried out: what the model says of it goes through here."""

    def __init__(self, s: Sequence, queue: RequestQueue, metrics: Metrics) -> None:
        self._s, self._queue, self._metrics = s, queue, metrics
        s.charge("prefill")

    def check(self) -> None:
        """Raise Stopped, DeadlineExceeded or EngineClosed if the request is to end now: called at each token."""
        end_late(self._queue, self._metrics)
        if self._s.job.cancelled:
            raise Stopped
        if error := self._s.job.deadline_error() or self._queue.closed:
            raise copy.copy(error)

    def begin_answer(self, prompt_tokens: int, image_tokens: int = 0, cached: int = 0) -> None:
        """Count the prompt, which has been computed but for what was `cached`."""
        self._s.count_prompt(prompt_tokens, image_tokens, cached)
        self._s.charge("decode")

    def count_token(self) -> None:
        self._s.advance(1)

    def emit(self, event: Event) -> None:
        """Give an event to the client."""
        first = self._s.first_event_s is None
        gap = self._s.emit(event)
        if first and self._s.first_event_s is not None:
            self._metrics.observe_first_event(self._s.job.skill, self._s.first_event_s)
        self._metrics.observe_event(self._s.job.skill, gap)


class Prepared(Protocol):
    """A request that was found to be in order."""

    def carry_out(self, turn: Turn) -> End:
        """Do it, giving events to the turn. Called in inference mode, from the backend's thread."""
        ...


class QueuedModel(Protocol):
    """A model whose requests wait in a queue."""

    def prepare(self, request: Request) -> Prepared:
        """Check a request, from any thread. Raises what is wrong with it."""
        ...


class SerialModel(QueuedModel, Protocol):
    """A model that carries out one request at a time."""

    @property
    def device(self) -> torch.device: ...


class Task(Job):
    """A request in the queue."""

    def __init__(self, prepared: Prepared, request: Request) -> None:
        skill = type(request.skill).__name__.lower()
        super().__init__(_no_steps(), skill, request.priority, request.timeout, media=request.shown)
        self.prepared = prepared


def _no_steps() -> Steps:
    return End("stop", 0)
    yield


def carry_out(task: Task, s: Sequence, queue: RequestQueue, metrics: Metrics) -> End | Exception | None:
    """How a request ended: done, failed, or cancelled (None)."""
    try:
        return task.prepared.carry_out(Turn(s, queue, metrics))
    except Stopped:
        return None
    except Exception as error:
        return error


class OneByOne:
    """Carries out the requests of a queue one after another."""

    def __init__(self, model: SerialModel, queue: RequestQueue, metrics: Metrics) -> None:
        self._model, self._queue, self._metrics = model, queue, metrics
        self._running: Sequence | None = None
        metrics.watch(self.snapshot)

    def snapshot(self) -> Snapshot:
        return Snapshot(len(self._queue), int(self._running is not None))

    def run(self) -> None:
        while not self._queue.closed:
            self._queue.wait(0)
            end_late(self._queue, self._metrics)
            job = self._queue.peek()
            if isinstance(job, Task):
                if self._queue.pop(job):
                    self._carry_out(job)
            elif not self._queue.wait(IDLE_S):
                return_memory(self._model.device)
                self._queue.wait(None)

    def shut_down(self, why: GalagoError) -> None:
        if self._running:
            finish(self._running, copy.copy(why), self._queue, self._metrics)
        self._queue.shut_down(why)
        end_late(self._queue, self._metrics)
        self._metrics.close()
        del self._model

    def _carry_out(self, task: Task) -> None:
        self._metrics.observe_wait(time.perf_counter() - task.arrival)
        s = self._running = Sequence(task)
        how = carry_out(task, s, self._queue, self._metrics)
        self._running = None
        finish(s, how, self._queue, self._metrics)


class QueuedBackend(Queued, Backend):
    """A backend with a queue, over a model that prepares requests."""

    def __init__(
        self,
        model: QueuedModel,
        facts: Facts,
        limits: Limits | None,
        turns: Callable[[Any, RequestQueue, Metrics], Turns] = OneByOne,
        running: int = 1,
    ) -> None:
        """`turns` carries out `running` requests at a time, by default one after another."""
        limits = limits or Limits()
        self.facts, self._model = facts, model
        self._limits = {"waiting": limits.waiting, "running": running}
        metrics, queue = Metrics(facts.name, facts.precision), RequestQueue(limits.waiting, running)
        super().__init__(turns(model, queue, metrics), queue, metrics, facts.threads)

    def submit(self, request: Request) -> EngineRun:
        return self.put(Task(self._model.prepare(request), request))

    def stats(self) -> dict[str, Any]:
        return self._metrics.stats() | {"limits": self._limits}

    def limit_kv(self, most: int) -> None:
        """Nothing is to be done: those of one request are in what the model needs."""

    def trim(self) -> None:
        """Nothing is to be done: no image is kept."""


def end_late(queue: RequestQueue, metrics: Metrics) -> None:
    """End waiting requests whose deadline has passed, and count those that ended while they waited."""
    for job, how in queue.drain_ended():
        metrics.count_finished(job.skill, how, None, None)
    for job in queue.jobs():
        if (error := job.deadline_error()) and queue.pop(job):
            finish(Sequence(job), error, queue, metrics)


def finish(s: Sequence, how: End | Exception | None, queue: RequestQueue, metrics: Metrics) -> None:
    """End a request: done, failed, or cancelled (None)."""
    skill = s.job.skill
    if isinstance(how, Exception):
        error = how if isinstance(how, GalagoError) else generation_failed(how)
        metrics.count_finished(skill, "failed", None, None, error.code)
        if isinstance(error, NotANumber):
            log.error("%s in %s: %s", metrics.model, metrics.precision, error)
        how.__traceback__ = None  # its frames hold the request's tensors, for as long as somebody has the error
        return queue.finish(s.job, error)
    done = s.done_event(how)
    metrics.count_finished(skill, "done" if how else "cancelled", done.usage, done.timings)
    queue.finish(s.job, done)
