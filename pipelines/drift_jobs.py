"""Drift checks as Jobs of a cluster, each with memory and processors of its own.

A Job has what it is told of MLflow from a Secret of the installation, and how the prediction log is reached from one
that the team made; no token of the cluster. It keeps the documents with the version itself, because pages of megabytes
are nothing for a log, and prints the finding, which the controller reads. The cluster tries again what failed
(`backoffLimit`) rather than the schedule, whose next check may be a day off, and it does so without a controller.
"""

from __future__ import annotations

import base64
import re
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from pipelines.drift_checks import Checked, DriftCheckError, DriftCheckStoppedError
from pipelines.drift_pod import MLFLOW, ORDER
from pipelines.drift_reference import DriftCheck
from pipelines.drift_wire import Order, Result, is_result, read_printed, written
from serving.cluster import Cluster, ClusterError
from serving.cluster_jobs import ClusterJobs, JobError, JobStoppedError
from serving.image_context import HOME
from serving.job_objects import JobSettings, metadata

COMPONENT = "drift-check"
"""Label of everything that belongs to a check: ``app.kubernetes.io/component``."""

_COMMAND = (f"{HOME}/bin/python", "-m", "pipelines.drift_pod")
_QUIET = {"MLFLOW_DISABLE_TELEMETRY": "true", "MPLCONFIGDIR": "/tmp", "PYTHONUNBUFFERED": "1"}  # noqa: S108
_NAME_LENGTH = 40


@dataclass(frozen=True, slots=True)
class DriftJobs:
    """Implements `DriftChecks`."""

    cluster: Cluster
    jobs: ClusterJobs
    settings: Callable[[], JobSettings]
    """Asked for each check, because the controller's image is known once its pod can be read. Raises `ClusterError`."""
    secrets: Mapping[str, str]
    """Variables of a check that nobody should see who can only read Jobs: how MLflow is reached."""
    url: str
    """Of the prediction log, as pods reach it."""
    at_once: int

    def carry_out(self, check: DriftCheck, now: datetime) -> Checked:
        try:
            self.jobs.clear()
            settings = self._with_secret(self.settings())
            told = {ORDER: written(Order(check, now, self.url)), **_QUIET}
            result = read_printed(self.jobs.run(_name(check.version.model), _COMMAND, told, settings))
        except JobStoppedError as error:
            raise DriftCheckStoppedError(str(error)) from error
        except ClusterError as error:
            raise DriftCheckError(str(error), retryable=error.retryable) from error
        except JobError as error:
            result = read_printed(error.lines)
            if result is None or result.refused is None:
                raise DriftCheckError(f"its pod {_words(error)}", retryable=True) from error
        return _checked(result)

    def stop(self) -> None:
        self.jobs.stop()

    def _with_secret(self, settings: JobSettings) -> JobSettings:
        name = f"{settings.installation}-{COMPONENT}"
        data = {key: base64.b64encode(value.encode()).decode() for key, value in self.secrets.items()}
        made = {"apiVersion": "v1", "kind": "Secret", "type": "Opaque", "metadata": metadata(name, settings)}
        self.cluster.apply(made | {"data": data})
        return replace(settings, environment_secrets=(name, *settings.environment_secrets))


def secrets_of(mlflow: str, environment: Mapping[str, str]) -> dict[str, str]:
    """How a check reaches MLflow: as this process does, credentials included."""
    login = {name: value for name, value in environment.items() if name.startswith("MLFLOW_TRACKING_") and value}
    return login | {MLFLOW: mlflow}


def _checked(result: Result | None) -> Checked:
    if result is not None and result.checked is not None:
        return result.checked
    if result is not None and result.refused is not None:
        raise DriftCheckError(result.refused.reason, retryable=result.refused.retryable)
    raise DriftCheckError("its pod ended well, and its log does not have the whole result", retryable=True)


def _name(model: str) -> str:
    """Of the Job: as much of the model's name as one of a cluster holds, and what no other has."""
    plain = re.sub("[^a-z0-9]+", "-", model.lower()).strip("-")[:_NAME_LENGTH].strip("-")
    return "-".join(filter(None, ("drift", plain, uuid.uuid4().hex[:8])))


def _words(error: JobError) -> str:
    """Without what is for programs."""
    return "\n".join(line for line in str(error).splitlines() if not is_result(line))
