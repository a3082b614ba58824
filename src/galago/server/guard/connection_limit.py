"""The limit on open connections, each of which costs memory and a file descriptor even when idle."""

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from galago.engine.metrics import REGISTRY

MAX_REFUSALS = 64
"""Connections above the limit that may be getting their 503 at one time; others are closed without a reply."""


@dataclass
class ConnectionLimit:
    """Upper bound on open connections; connections above it get a 503 and are closed.

    `closing` counts those that are refused but not closed yet.
    """

    maximum: int
    closing: int = 0


class _ConnectionMetrics(Collector):
    """Prometheus metrics of this process's connections."""

    def __init__(self) -> None:
        self.open = self.refused = 0

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("galago_connections", "Connections that are open.", self.open)
        yield CounterMetricFamily(
            "galago_connections_refused_total", "Connections closed because there were too many.", self.refused
        )


connection_metrics = _ConnectionMetrics()
REGISTRY.register(connection_metrics)
