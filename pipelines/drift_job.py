"""One drift check of one model: gather two data sets, compare them, show the finding, say what to do.

A check never fails: what went wrong is its finding, and is told like any other. The rollback is only wished
for here; whoever ran the check makes the intent, so that traffic moves through the one rollout engine.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from monitoring.drift import Action, DriftState, Finding, Role, Samples, conclude, failed, too_few
from monitoring.drift_gauges import DriftGauges
from monitoring.drift_page import with_finding
from monitoring.drift_report import DriftReport, DriftReporter, DriftReportError
from monitoring.notify import Alert, Notifier, Severity
from monitoring.served_rows import ServedRows, ServedRowsError
from pipelines.drift_reference import DriftCheck, References
from pipelines.rollout import Event
from registry_hooks.model_version import VersionDetails
from registry_hooks.reference import ReferenceData, ReferenceDataError
from registry_hooks.registry import ModelRegistry, RegistryError

_logger = logging.getLogger(__name__)

FOLDER = "promote/drift"
"""Artifacts of the version's run: ``<time>.json`` of every check, ``<time>.html`` where it found drift, and
``latest.html``."""
STATE_TAG, TIME_TAG = "promote.drift", "promote.drift_at"
MOST_READ = 500_000
"""Of a window by time, no more than so many of the newest rows are read."""


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


class DriftJob:
    """Carries out drift checks."""

    def __init__(
        self,
        registry: ModelRegistry,
        logged: ReferenceData,
        served: ServedRows,
        reporter: DriftReporter,
        notifier: Notifier,
        gauges: DriftGauges,
    ) -> None:
        self._registry = registry
        self._references = References(logged, served)
        self._served = served
        self._reporter = reporter
        self._notifier = notifier
        self._gauges = gauges

    def run(self, check: DriftCheck, now: datetime) -> DriftOutcome:
        before, finding, report = self._find(check, now)
        documents = self._keep(check, finding, report)
        self._gauges.show(check.version, finding)
        event = _event(check, finding, documents)
        alert = _alert(event, finding, before)
        if alert:
            self._notifier.notify(alert)
        rollback = finding.rollback_helps and check.policy.action is Action.ROLLBACK
        return DriftOutcome(check, finding, rollback, event, documents)

    def _find(self, check: DriftCheck, now: datetime) -> tuple[str, Finding, DriftReport | None]:
        """The state that the last check left on the version, the finding, and the report where one was made."""
        before = ""
        try:
            details = self._registry.describe(check.version)
            before = details.tags.get(STATE_TAG, "")
            return (before, *self._compare(check, details, now))
        except (RegistryError, ReferenceDataError, ServedRowsError, DriftReportError) as error:
            _logger.warning("drift check of %s: %s", check.version, error)
            return before, failed(Samples(now, "none", 0, 0), str(error)), None

    def _compare(self, check: DriftCheck, details: VersionDetails, now: datetime) -> tuple[Finding, DriftReport | None]:
        policy = check.policy
        reference = self._references.find(check, details, now)
        since = reference.until
        if policy.window_rows is None:
            since = max(since, now - timedelta(seconds=policy.window_seconds))
        current = self._served.newest(check.version, since, now, policy.window_rows or MOST_READ)
        samples = Samples(now, reference.description, len(reference.rows), len(current))
        few = too_few(policy, samples)
        if few:
            return few, None
        report = self._reporter.compare(reference.rows, current, policy)
        return conclude(policy, samples, report.comparisons, report.left_out), report

    def _keep(self, check: DriftCheck, finding: Finding, report: DriftReport | None) -> tuple[str, ...]:
        at = finding.samples.at
        tags = {STATE_TAG: finding.state.value, TIME_TAG: at.isoformat(timespec="seconds")}
        files = _documents(check, finding, report)
        try:
            self._registry.annotate(check.version, tags, files)
        except RegistryError as error:
            _logger.warning("the drift finding of %s could not be kept in full: %s", check.version, error)
            return ()
        return tuple(files)


def _documents(check: DriftCheck, finding: Finding, report: DriftReport | None) -> dict[str, bytes]:
    stem = f"{FOLDER}/{finding.samples.at.astimezone(UTC):%Y-%m-%dT%H-%M-%SZ}"
    measured = json.loads(report.json) if report else None
    told = {"model": check.version.model, "version": check.version.version, **as_data(finding), "measured": measured}
    files = {f"{stem}.json": json.dumps(told, indent=1).encode()}
    if report and report.html:
        page = with_finding(report.html, check.version, finding)
        files[f"{FOLDER}/latest.html"] = page
        if finding.state is DriftState.DRIFTED:
            files[f"{stem}.html"] = page
    return files


def as_data(finding: Finding) -> dict[str, object]:
    """The finding in JSON's own types."""
    samples = finding.samples
    return {
        "state": finding.state.value,
        "at": samples.at.isoformat(),
        "diagnosis": finding.diagnosis,
        "rollback_helps": finding.rollback_helps,
        "reference": samples.reference,
        "reference_rows": samples.reference_rows,
        "current_rows": samples.current_rows,
        "drifted": list(finding.drifted),
        "columns": [
            {
                "column": c.column,
                "role": c.role.value,
                "aspect": c.aspect.value,
                "measure": c.measure,
                "distance": c.distance,
                "threshold": c.threshold,
                "drifted": c.drifted,
            }
            for c in finding.comparisons
        ],
        "left_out": dict(finding.left_out),
    }


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
