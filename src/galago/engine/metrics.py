"""Counts and timings of what engines do: for Prometheus by model, and for the Python API by engine."""

import inspect
import os
import threading
import weakref
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Literal, get_args

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from galago.engine.counters import Counters, Histogram, Labels, MetricSpec
from galago.request import Timings, Usage

RequestOutcome = Literal["done", "cancelled", "failed"]
StepKind = Literal["decode", "prefill", "vision"]
CacheResult = Literal["hot", "warm", "disk", "shared", "miss"]
"""Where an encoded image was found: prefix, embedding in memory, embedding on disk, another request's work, nowhere."""

ModelLabels = tuple[str, str]
"""A model's name and its precision, the labels of every series."""

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

# Seconds. A token of a small model takes milliseconds; a first one behind a queue on a slow CPU, minutes.
GAPS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)

SUBMITTED = MetricSpec("galago_requests_submitted_total", "Requests taken into the queue.", ("skill", "priority"))
REFUSED = MetricSpec("galago_requests_refused_total", "Requests not taken into the queue.", ("reason",))
FINISHED = MetricSpec("galago_requests_finished_total", "Requests that came to their end.", ("skill", "outcome"))
FAILED = MetricSpec("galago_requests_failed_total", "Requests that failed, by their error's code.", ("skill", "reason"))
# Families of their own, not one by kind: image and cached tokens are parts of the prompt, so a sum would count twice.
TOKENS = {
    "prompt": MetricSpec("galago_prompt_tokens_total", "Tokens of prompts, images included.", ("skill",)),
    "image": MetricSpec("galago_image_tokens_total", "Tokens of prompts that stand for images.", ("skill",)),
    "cached": MetricSpec("galago_cached_tokens_total", "Tokens of prompts that were not computed anew.", ("skill",)),
    "completion": MetricSpec("galago_completion_tokens_total", "Tokens generated.", ("skill",)),
}
IMAGES = MetricSpec("galago_images_total", "Images asked for, by the cache tier that had them.", ("tier",))
QUEUED = MetricSpec("galago_queue_wait_seconds", "Time in the queue before the first step.", (), WAITS)
FIRST = MetricSpec("galago_time_to_first_token_seconds", "Time to a request's first event.", ("skill",), WAITS)
GAP = MetricSpec("galago_inter_token_seconds", "Time between two events of a request.", ("skill",), GAPS)
TOTAL = MetricSpec("galago_request_duration_seconds", "Time to the last event, of requests done.", ("skill",), WAITS)
STEP = MetricSpec("galago_step_duration_seconds", "Time of a forward pass.", ("kind",), GAPS)
STEP_SEQUENCES = MetricSpec("galago_step_sequences", "Sequences that share a forward pass.", ("kind",), SIZES)
STEP_ROWS = MetricSpec("galago_step_rows_total", "Rows (positions) that forward passes computed.", ("kind",))
REMADE = MetricSpec("galago_packed_copies_remade_total", "Packed copies that were damaged when opened, and made anew.")

WAITING = MetricSpec("galago_requests_waiting", "Requests in the queue.")
RUNNING = MetricSpec("galago_requests_running", "Requests under way.")
ENCODING = MetricSpec("galago_images_encoding", "Images being encoded.")
MEMORY = MetricSpec("galago_memory_bytes", "Bytes held, by what they hold.", ("kind",))

GAUGES = (WAITING, RUNNING, ENCODING, MEMORY)
COUNTERS = (SUBMITTED, REFUSED, FINISHED, FAILED, *TOKENS.values(), IMAGES, STEP_ROWS, REMADE)
HISTOGRAMS = (QUEUED, FIRST, GAP, TOTAL, STEP, STEP_SEQUENCES)


@dataclass(frozen=True)
class Snapshot:
    """The gauges of an engine: requests that wait and run, images being encoded, bytes held by kind."""

    waiting: int = 0
    running: int = 0
    encoding: int = 0
    bytes: Mapping[str, int] = field(default_factory=dict)


# Reentrant, because the garbage collector may run what somebody else wrote wherever a thread happens to be. Nothing of
# ours is called while it is held, and no other lock taken.
_lock = threading.RLock()
_by_model: "dict[ModelLabels, Counters]" = {}
"""By model and precision: engines come and go, and a counter must not start anew while the process lives."""
_watched: "dict[Metrics, Callable[[], Callable[[], Snapshot] | None]]" = {}


def _forget() -> None:
    """Start from nothing in a forked child, which has none of its parent's engines."""
    _watched.clear()
    _by_model.clear()
    _lock.release()


if hasattr(os, "register_at_fork"):  # not on Windows
    # Held by the thread that forks, it is in order in the child, whose other threads would never give it back.
    os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_forget)


class Metrics:
    """Counters and histograms of one engine. Every method may be called from any thread.

    Engines whose model has the same name and precision share its series in the exposition; stats() are this
    engine's own.
    """

    def __init__(self, model: str, precision: str) -> None:
        self.model, self.precision = model, precision
        self._own = Counters()
        with _lock:
            self._counters = (self._own, _by_model.setdefault((model, precision), Counters()))
            for tier in get_args(CacheResult):  # a rate of hits wants a zero where there were none
                self._count(IMAGES, (tier,), 0)

    def count_submitted(self, skill: str, priority: str) -> None:
        with _lock:
            self._count(SUBMITTED, (skill, priority))

    def count_refused(self, reason: str) -> None:
        """Count a request that was not queued; `reason` is the code of its error."""
        with _lock:
            self._count(REFUSED, (reason,))

    def observe_wait(self, waited_s: float) -> None:
        """Record how long a request waited in the queue before its first step."""
        with _lock:
            self._observe(QUEUED, (), waited_s)

    def count_images(self, tier: CacheResult, n: int = 1) -> None:
        """Count images of a request by where they were found; at a `miss` they are encoded for this request."""
        with _lock:
            self._count(IMAGES, (tier,), n)

    def observe_first_event(self, skill: str, ttft_s: float) -> None:
        """Record a request's first event, this long after it was submitted."""
        with _lock:
            self._observe(FIRST, (skill,), ttft_s)

    def observe_event(self, skill: str, gap_s: float | None) -> None:
        """Record an event of a request, this long after the one before; None for its first, which has no gap."""
        if gap_s is not None:
            with _lock:
                self._observe(GAP, (skill,), gap_s)

    def observe_step(self, rows: int, sequences: int, seconds: float, kind: StepKind) -> None:
        """Record a forward pass over `rows` positions of so many sequences (for vision: crops of so many images)."""
        with _lock:
            self._observe(STEP, (kind,), seconds)
            self._observe(STEP_SEQUENCES, (kind,), sequences)
            self._count(STEP_ROWS, (kind,), rows)

    def count_finished(
        self,
        skill: str,
        outcome: RequestOutcome,
        usage: Usage | None,
        timings: Timings | None,
        reason: str | None = None,
    ) -> None:
        """Count a request that ended; its usage counts however it ended, its duration only if it was done.

        `reason` is the code of its error, if it failed.
        """
        with _lock:
            self._count(FINISHED, (skill, outcome))
            if reason is not None:
                self._count(FAILED, (skill, reason))
            if usage is not None:
                for kind, spec in TOKENS.items():
                    self._count(spec, (skill,), getattr(usage, f"{kind}_tokens"))
            if timings is not None and outcome == "done":
                self._observe(TOTAL, (skill,), timings.total_s)

    def watch(self, read: Callable[[], Snapshot]) -> None:
        """Call `read` for the gauges at each scrape, until close(). It must not raise.

        It is called from other threads, with no lock of this module held. A bound method is held weakly, so
        an engine can be let go while it is watched.
        """
        with _lock:
            _watched[self] = weakref.WeakMethod(read) if inspect.ismethod(read) else lambda: read

    def close(self) -> None:
        """Withdraw the gauges, which would go stale; counters stay."""
        with _lock:
            _watched.pop(self, None)

    def stats(self) -> dict[str, Any]:
        """Counts, timings and gauges of this engine so far, as plain JSON; seconds and bytes.

        Percentiles are read from histograms, so they are exact to a bucket only (about a factor of two).
        """
        now = _read_snapshot(self) or Snapshot()
        with _lock:
            own = self._own
            skills = {labels[0] for spec in (SUBMITTED, FINISHED) for labels in own.counts.get(spec, {})}
            return {
                "model": self.model,
                "skills": {skill: _skill(own, skill) for skill in sorted(skills)},
                "refused": {reason: n for (reason,), n in own.counts.get(REFUSED, {}).items()},
                "failed": _by_reason(own),
                "wait_s": _spread(own, QUEUED),
                "steps": {kind: _step(own, kind) for (kind,) in own.histograms.get(STEP, {})},
                "images": {tier: n for (tier,), n in own.counts[IMAGES].items()},
                "queue": {"waiting": now.waiting, "running": now.running, "encoding": now.encoding},
                "bytes": dict(now.bytes),
            }

    def _count(self, spec: MetricSpec, labels: Labels, n: int = 1) -> None:
        for counters in self._counters:
            counters.count(spec, labels, n)

    def _observe(self, spec: MetricSpec, labels: Labels, value: float) -> None:
        for counters in self._counters:
            counters.observe(spec, labels, value)


def count_remade(model: str, precision: str) -> None:
    """Count a packed copy of a model that was damaged and is made anew."""
    with _lock:
        _by_model.setdefault((model, precision), Counters()).count(REMADE, (), 1)


def exposition() -> bytes:
    """The metrics of all engines of this process in Prometheus' text format, which is of CONTENT_TYPE."""
    return generate_latest(REGISTRY)


# --- stats -----------------------------------------------------------------------------------


def _read_snapshot(metrics: Metrics) -> Snapshot | None:
    held = _watched.get(metrics)
    read = held() if held else None
    return read() if read else None


def _skill(counters: Counters, skill: str) -> dict[str, Any]:
    submitted = counters.counts.get(SUBMITTED, {}).items()
    finished = counters.counts.get(FINISHED, {})
    return {
        "submitted": sum(n for (of, _), n in submitted if of == skill),
        **{outcome: finished.get((skill, outcome), 0) for outcome in get_args(RequestOutcome)},
        "tokens": {kind: counters.counts.get(spec, {}).get((skill,), 0) for kind, spec in TOKENS.items()},
        "ttft_s": _spread(counters, FIRST, skill),
        "inter_token_s": _spread(counters, GAP, skill),
        "total_s": _spread(counters, TOTAL, skill),
    }


def _by_reason(counters: Counters) -> dict[str, float]:
    found: dict[str, float] = {}
    for (_, reason), n in counters.counts.get(FAILED, {}).items():
        found[reason] = found.get(reason, 0) + n
    return found


def _step(counters: Counters, kind: str) -> dict[str, Any]:
    took, together = (counters.histograms[spec][(kind,)] for spec in (STEP, STEP_SEQUENCES))
    rows = counters.counts[STEP_ROWS][(kind,)]
    return {"count": took.count, "rows": rows, "sequences": int(together.sum), "seconds": took.sum}


def _spread(counters: Counters, spec: MetricSpec, *labels: str) -> dict[str, Any]:
    found = counters.histograms.get(spec, {}).get(labels) or Histogram(spec.bounds)
    quantiles = {f"p{round(q * 100)}": found.quantile(q) for q in (0.5, 0.9, 0.99)}
    mean, most = (found.sum / found.count, found.most) if found.count else (None, None)
    return {"count": found.count, "mean": mean, **quantiles, "max": most}


# --- exposition ------------------------------------------------------------------------------


class _EngineCollector(Collector):
    """Builds prometheus_client's metrics at each scrape."""

    def collect(self) -> Iterable[Metric]:
        standing = _gauges()
        with _lock:
            return [
                *(_metric(GaugeMetricFamily, spec, standing) for spec in GAUGES),
                *(_metric(CounterMetricFamily, spec, _by_model) for spec in COUNTERS),
                *(_histogram(spec, _by_model) for spec in HISTOGRAMS),
            ]


def _gauges() -> dict[ModelLabels, Counters]:
    """The gauges by model and precision, of all engines that are watched."""
    with _lock:
        watched = list(_watched)
    found: dict[ModelLabels, Counters] = {}
    for metrics in watched:
        if (now := _read_snapshot(metrics)) is not None:
            counters = found.setdefault((metrics.model, metrics.precision), Counters())
            counters.count(WAITING, (), now.waiting)
            counters.count(RUNNING, (), now.running)
            counters.count(ENCODING, (), now.encoding)
            for kind, n in now.bytes.items():
                counters.count(MEMORY, (kind,), n)
    return found


def _metric(
    kind: type[CounterMetricFamily] | type[GaugeMetricFamily],
    spec: MetricSpec,
    by_model: Mapping[ModelLabels, Counters],
) -> Metric:
    made = kind(spec.name, spec.help, labels=("model", "precision", *spec.labels))
    for model, counters in list(by_model.items()):
        for labels, n in list(counters.counts.get(spec, {}).items()):
            made.add_metric((*model, *labels), n)
    return made


def _histogram(spec: MetricSpec, by_model: Mapping[ModelLabels, Counters]) -> Metric:
    made = HistogramMetricFamily(spec.name, spec.help, labels=("model", "precision", *spec.labels))
    for model, counters in list(by_model.items()):
        for labels, spread in list(counters.histograms.get(spec, {}).items()):
            bounds = map(floatToGoString, (*spread.bounds, float("inf")))
            buckets = list(zip(bounds, accumulate(spread.buckets), strict=True))
            made.add_metric((*model, *labels), buckets, spread.sum)
    return made


REGISTRY = CollectorRegistry()
REGISTRY.register(_EngineCollector())
