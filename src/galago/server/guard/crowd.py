"""A bound on connections, each of which costs memory and a file descriptor even when it says nothing."""

from collections.abc import Iterable
from dataclasses import dataclass

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from galago.engine.metrics import REGISTRY

TOLD = 64
"""Connections beyond the bound that are told so at one time; others are closed without a word."""


@dataclass
class Crowd:
    """How many connections a server may have, and those beyond that which are on their way out."""

    most: int
    leaving: int = 0


class _Counted(Collector):
    """The connections of this process."""

    def __init__(self) -> None:
        self.open = self.refused = 0

    def collect(self) -> Iterable[Metric]:
        yield GaugeMetricFamily("galago_connections", "Connections that are open.", self.open)
        yield CounterMetricFamily(
            "galago_connections_refused_total", "Connections closed because there were too many.", self.refused
        )


COUNTED = _Counted()
REGISTRY.register(COUNTED)
