"""One drift check of one model: have it carried out, show the finding, say what to do.

A check never fails: what went wrong is its finding, and is told like any other. The rollback is only wished
for here; whoever ran the check makes the intent, so that traffic moves through the one rollout engine.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from monitoring.drift import Action, DriftState, Finding, Role, Samples, failed
from monitoring.drift_gauges import DriftGauges
from monitoring.notify import Alert, Notifier, Severity
from pipelines.drift_checks import Checked, DriftCheckError, DriftChecks
from pipelines.drift_documents import as_data, keep
from pipelines.drift_reference import DriftCheck
from pipelines.rollout import Event
from registry_hooks.registry import ModelRegistry

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DriftOutcome:
    """What came of a check."""

    check: DriftCheck
    finding: Finding
    rollback: bool
    """The policy asks for a rollback on drift, and the diagnosis says that it can help."""
    event: Event
    """For the history."""
    documents: tuple[str, ...]
    """Artifacts of the version's run that show it; empty where they could not be kept."""


@dataclass(frozen=True, slots=True)
class DriftJob:
    """Has drift checks carried out, and tells what came of them."""

    checks: DriftChecks
    registry: ModelRegistry
    notifier: Notifier
    gauges: DriftGauges

    def run(self, check: DriftCheck, now: datetime) -> DriftOutcome:
        """Raises `DriftCheckStoppedError`, after which nothing is told."""
        checked = self._checked(check, now)
        finding = checked.finding
        self.gauges.show(check.version, finding)
        event = _event(check, finding, checked.documents)
        alert = _alert(event, finding, checked.before)
        if alert:
            self.notifier.notify(alert)
        rollback = finding.rollback_helps and check.policy.action is Action.ROLLBACK
        return DriftOutcome(check, finding, rollback, event, checked.documents)

    def _checked(self, check: DriftCheck, now: datetime) -> Checked:
        try:
            return self.checks.carry_out(check, now)
        except DriftCheckError as error:
            _logger.warning("drift check of %s: %s", check.version, error)
            finding = failed(Samples(now, "none", 0, 0), str(error))
            return Checked(finding, "", keep(self.registry, check, finding, None))


def _event(check: DriftCheck, finding: Finding, documents: tuple[str, ...]) -> Event:
    version, data = check.version, as_data(finding) | {"documents": list(documents)}
    text = f"{finding.state.value}: {finding.diagnosis}"
    return Event(version.model, finding.samples.at, "drift", text, version.version, data=data)


def _alert(event: Event, finding: Finding, before: str) -> Alert | None:
    """Drift, a check that failed, and the end of drift are told; the rest can be read."""
    severity, title = Severity.WARNING, ""
    if finding.state is DriftState.DRIFTED:
        predictions = any(c.drifted and c.role is Role.PREDICTION for c in finding.comparisons)
        title = "predictions drifted" if predictions else "inputs drifted"
    elif finding.state is DriftState.ERROR:
        title = "drift check failed"
    elif finding.state is DriftState.STABLE and before == DriftState.DRIFTED:
        severity, title = Severity.INFO, "drift is over"
    if not title:
        return None
    data: Mapping[str, object] = {"version": event.version, **event.data}
    return Alert(severity, event.model, title, f"Version {event.version}: {finding.diagnosis}", event.at, data=data)
