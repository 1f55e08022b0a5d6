"""The last drift check of every model as Prometheus gauges.

Only the version checked last is shown: series of former versions would keep their last value for ever.
"""

from __future__ import annotations

from prometheus_client import REGISTRY, CollectorRegistry, Gauge

from monitoring.drift import Aspect, DriftState, Finding
from registry_hooks.model_version import ModelVersion


class DriftGauges:
    """``promote_drift_score``, ``promote_drift_threshold``, ``promote_drift_state`` and the time of the check."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        column = ("model", "version", "column")
        self._score = Gauge("promote_drift_score", "Distance of current from reference rows", column, registry=registry)
        self._threshold = Gauge(
            "promote_drift_threshold", "Distance from which the column drifted", column, registry=registry
        )
        self._state = Gauge(
            "promote_drift_state", "1 for what the check concluded", ("model", "version", "state"), registry=registry
        )
        self._checked = Gauge(
            "promote_drift_checked_seconds", "When the check was made", ("model", "version"), registry=registry
        )

    def show(self, version: ModelVersion, finding: Finding) -> None:
        for gauge in (self._score, self._threshold, self._state, self._checked):
            gauge.remove_by_labels({"model": version.model})
        own = (version.model, str(version.version))
        for state in DriftState:
            self._state.labels(*own, state).set(state is finding.state)
        self._checked.labels(*own).set(finding.samples.at.timestamp())
        for compared in finding.comparisons:
            missing = f" ({compared.aspect})" if compared.aspect is Aspect.MISSING else ""
            self._score.labels(*own, compared.column + missing).set(compared.distance)
            self._threshold.labels(*own, compared.column + missing).set(compared.threshold)
