"""Reading the access log as Prometheus counters: ``promote_log_lines_total``, and one for each thing put right.

Asked for when somebody scrapes, so that reading itself has nothing to tell.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from monitoring.access_log import COUNTERS

PREFIX = "promote_log_"


class LogCounters(Collector):
    """Tells what `counters` says at the time."""

    def __init__(self, counters: Callable[[], Mapping[str, int]], registry: CollectorRegistry) -> None:
        self._counters = counters
        registry.register(self)

    def describe(self) -> Iterator[CounterMetricFamily]:
        """Names only: what is registered is not asked yet."""
        return (CounterMetricFamily(PREFIX + name, words) for name, words in COUNTERS.items())

    def collect(self) -> Iterator[CounterMetricFamily]:
        for name, count in self._counters().items():
            yield CounterMetricFamily(PREFIX + name, COUNTERS[name], value=count)
