"""What a drift check leaves with the version: tags, and documents among the artifacts of its run."""

from __future__ import annotations

import json
import logging
from datetime import UTC

from monitoring.drift import DriftState, Finding
from monitoring.drift_page import with_finding
from monitoring.drift_report import DriftReport
from pipelines.drift_reference import DriftCheck
from registry_hooks.registry import ModelRegistry, RegistryError

_logger = logging.getLogger(__name__)

FOLDER = "promote/drift"
"""Artifacts of the version's run: ``<time>.json`` of every check, ``<time>.html`` where it found drift, and
``latest.html``."""
STATE_TAG, TIME_TAG = "promote.drift", "promote.drift_at"


def keep(registry: ModelRegistry, check: DriftCheck, finding: Finding, report: DriftReport | None) -> tuple[str, ...]:
    """Have the version show the finding; the artifacts that do. That it could not be kept is logged, and none then."""
    at = finding.samples.at
    tags = {STATE_TAG: finding.state.value, TIME_TAG: at.isoformat(timespec="seconds")}
    files = _documents(check, finding, report)
    try:
        registry.annotate(check.version, tags, files)
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
