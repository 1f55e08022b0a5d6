"""What is live and what is under way as Prometheus gauges, read from the store when somebody scrapes.

While the store does not answer there is nothing but who leads.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from datetime import datetime

from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from pipelines.live import by_model
from pipelines.store import RolloutStore, StoreError

_logger = logging.getLogger(__name__)

_ROLLOUT = ("model", "version", "phase")


class RolloutGauges(Collector):
    """``promote_leads``, ``promote_live_version``, and of every rollout its phase, its weight and since when."""

    def __init__(
        self,
        rollouts: RolloutStore,
        leads: Callable[[], bool],
        clock: Callable[[], datetime],
        registry: CollectorRegistry,
    ) -> None:
        self._rollouts, self._leads, self._clock = rollouts, leads, clock
        registry.register(self)

    def describe(self) -> Iterator[GaugeMetricFamily]:
        """Names only: what is registered is not asked yet."""
        yield from _families()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        leads, live, since, under_way, weight, seconds = families = _families()
        leads.add_metric((), float(self._leads()))
        yield leads
        try:
            active, lives = self._rollouts.active(), by_model(self._rollouts.lives())
        except StoreError as error:
            _logger.warning("what is live cannot be told to Prometheus: %s", error)
            return
        for model, record in lives.items():
            if record.stable is not None:
                live.add_metric((model,), record.stable.version.version)
                since.add_metric((model,), record.since.timestamp())
        for rollout in active:
            told = (rollout.intent.model, str(rollout.intent.version), rollout.phase.value)
            under_way.add_metric(told, 1)
            weight.add_metric(told, rollout.weight)
            seconds.add_metric(told, (self._clock() - rollout.entered).total_seconds())
        yield from families[1:]


def _families() -> tuple[GaugeMetricFamily, ...]:
    return (
        GaugeMetricFamily("promote_leads", "Whether this controller is the one that works", labels=()),
        GaugeMetricFamily("promote_live_version", "The version that holds the traffic", labels=("model",)),
        GaugeMetricFamily("promote_live_since_seconds", "When it was made live", labels=("model",)),
        GaugeMetricFamily("promote_rollout", "1 for every rollout that is not settled", labels=_ROLLOUT),
        GaugeMetricFamily("promote_rollout_weight", "Share in percent that it asks for", labels=_ROLLOUT),
        GaugeMetricFamily("promote_rollout_phase_seconds", "Time in the phase, or its step", labels=_ROLLOUT),
    )
