"""How the queue stands, and what this process did of it: for /health and for Prometheus."""

import logging
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import anyio
import anyio.to_thread
from prometheus_client import generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from galago.engine.counters import Counters, Labels, MetricSpec
from galago.errors import JobsDatabaseError
from galago.jobs.records import Counts

if TYPE_CHECKING:
    from galago.jobs.store import JobStore

log = logging.getLogger(__name__)
AttemptOutcome = Literal["done", "failed", "retried", "released", "lost"]
"""`failed` for good, `retried` later, `released` by a worker that stops, `lost` to a cancellation or another worker."""
CallbackOutcome = Literal["delivered", "failed", "dead"]
"""`failed` is sent again, `dead` is not."""

JOBS = MetricSpec("galago_jobs", "Jobs in the queue's database.", ("state",))
JOBS_OLDEST = MetricSpec("galago_jobs_oldest_seconds", "Time for which the oldest job that waits could have run.")
CALLBACKS = MetricSpec("galago_callbacks", "Callbacks in the queue's database.", ("state",))
CALLBACKS_OLDEST = MetricSpec("galago_callbacks_oldest_seconds", "Time for which the oldest callback could have gone.")
ATTEMPTS = MetricSpec("galago_job_attempts_total", "Attempts at jobs that this process ended.", ("outcome",))
SENT = MetricSpec("galago_callback_attempts_total", "Attempts of this process to deliver callbacks.", ("outcome",))

ANSWER_S = 2.0
"""That a database may take before it counts as away: monitors wait for little longer"""
SHARE = 20
"""Counting takes a part of this of the time at most: what was counted is told again for so long"""

_lock = threading.Lock()
_counters = Counters()


def count_attempt(outcome: AttemptOutcome) -> None:
    with _lock:
        _counters.count(ATTEMPTS, (outcome,))


def count_callback(outcome: CallbackOutcome) -> None:
    with _lock:
        _counters.count(SENT, (outcome,))


@dataclass(frozen=True)
class Standing:
    """How many jobs and callbacks there are."""

    jobs: Counts
    callbacks: Counts


class QueueWatch:
    """Reads how a queue stands, also while its database is away, and seldom where counting takes long."""

    def __init__(self, store: "JobStore") -> None:
        self._store = store
        self._lock = threading.Lock()
        self._last: Standing | None = None
        self._good_until = 0.0
        self._is_away = False

    async def read(self) -> Standing | None:
        """How the queue stands; None if its database cannot tell, which is logged once."""
        why = f"the job database did not answer within {ANSWER_S:g} s"
        try:
            with anyio.move_on_after(ANSWER_S):
                limiter = anyio.CapacityLimiter(1)
                found = await anyio.to_thread.run_sync(self._count, limiter=limiter, abandon_on_cancel=True)
                self._is_away = False
                return found
        except JobsDatabaseError as error:
            why = str(error)
        if not self._is_away:
            log.error("how the job queue stands cannot be told: %s", why)
        self._is_away = True
        return None

    def _count(self) -> Standing:
        with self._lock:
            begun = time.monotonic()
            if self._last is None or begun >= self._good_until:
                self._last = None
                self._last = Standing(self._store.counts(), self._store.deliveries.counts())
                now = time.monotonic()
                self._good_until = now + SHARE * (now - begun)
            return self._last


def queue_json(standing: Standing | None) -> dict[str, Any]:
    """How a queue stands, for /health."""
    if standing is None:
        return {"error": "the job database cannot be read; the log says why"}
    told = {"jobs": standing.jobs, "callbacks": standing.callbacks}
    return {name: {**counts.by_state, "oldest_s": counts.oldest_s} for name, counts in told.items()}


def queue_exposition(standing: Standing | None) -> bytes:
    """In Prometheus' text format; without gauges where the database is away, since zeros would be wrong."""
    return generate_latest(_QueueCollector(standing))


class _QueueCollector(Collector):
    def __init__(self, standing: Standing | None) -> None:
        self._standing = standing

    def collect(self) -> Iterable[Metric]:
        if self._standing is not None:
            for counts, state, oldest in (
                (self._standing.jobs, JOBS, JOBS_OLDEST), (self._standing.callbacks, CALLBACKS, CALLBACKS_OLDEST),
            ):  # fmt: skip
                yield _metric(GaugeMetricFamily, state, {(name,): n for name, n in counts.by_state.items()})
                yield _metric(GaugeMetricFamily, oldest, {(): counts.oldest_s or 0})
        for spec in (ATTEMPTS, SENT):
            with _lock:
                counted = dict(_counters.counts.get(spec, {}))
            yield _metric(CounterMetricFamily, spec, counted)


def _metric(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily], spec: MetricSpec, values: dict[Labels, float]
) -> Metric:
    made = kind(spec.name, spec.help, labels=spec.labels)
    for labels, n in values.items():
        made.add_metric(labels, n)
    return made
