"""A drift check in this process: gather two data sets, compare them, keep what shows the finding."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from monitoring.drift import Finding, Samples, conclude, too_few
from monitoring.drift_report import DriftReport, DriftReporter, DriftReportError
from monitoring.served_rows import ServedRows, ServedRowsError
from pipelines.drift_checks import Checked, DriftCheckError
from pipelines.drift_documents import STATE_TAG, keep
from pipelines.drift_reference import DriftCheck, References
from registry_hooks.model_version import VersionDetails
from registry_hooks.reference import ReferenceData, ReferenceDataError
from registry_hooks.registry import ModelRegistry, RegistryError

MOST_READ = 500_000
"""Of a window by time, no more than so many of the newest rows are read."""


@dataclass(frozen=True, slots=True)
class DriftChecksHere:
    """Implements `DriftChecks`. One at a time, so that the process around it has something left."""

    registry: ModelRegistry
    logged: ReferenceData
    served: ServedRows
    reporter: DriftReporter
    at_once: int = 1

    def carry_out(self, check: DriftCheck, now: datetime) -> Checked:
        try:
            details = self.registry.describe(check.version)
            finding, report = self._compare(check, details, now)
        except (RegistryError, ReferenceDataError, ServedRowsError, DriftReportError) as error:
            raise DriftCheckError(str(error), retryable=error.retryable) from error
        documents = keep(self.registry, check, finding, report)
        return Checked(finding, details.tags.get(STATE_TAG, ""), documents)

    def stop(self) -> None:
        """There is nothing anywhere else."""

    def _compare(self, check: DriftCheck, details: VersionDetails, now: datetime) -> tuple[Finding, DriftReport | None]:
        policy = check.policy
        reference = References(self.logged, self.served).find(check, details, now)
        since = reference.until
        if policy.window_rows is None:
            since = max(since, now - timedelta(seconds=policy.window_seconds))
        current = self.served.newest(check.version, since, now, policy.window_rows or MOST_READ)
        samples = Samples(now, reference.description, len(reference.rows), len(current))
        few = too_few(policy, samples)
        if few:
            return few, None
        report = self.reporter.compare(reference.rows, current, policy)
        return conclude(policy, samples, report.comparisons, report.left_out), report
