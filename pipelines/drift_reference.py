"""What the current rows of a drift check are compared with.

Inputs are compared with the data set logged with the version's run where there is one. Predictions are
compared with the first ones that the version served with all the traffic: a logged data set may hold labels
under the same name, and labels are not predictions. Only a data set whose columns are named as in the
prediction log says by itself what its predictions are.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

import numpy as np
import pandas as pd

from monitoring.drift import DriftPolicy
from monitoring.drift_report import INPUT, OUTPUT
from monitoring.served_rows import ServedRows
from registry_hooks.model_version import ModelVersion, VersionDetails
from registry_hooks.reference import LoggedData, ReferenceData


@dataclass(frozen=True, slots=True)
class DriftCheck:
    """What is to be checked."""

    version: ModelVersion
    policy: DriftPolicy
    live_since: datetime
    """Since when the version holds all the traffic."""


@dataclass(frozen=True, slots=True)
class Reference:
    """What current rows are compared with."""

    description: str
    rows: pd.DataFrame
    until: datetime
    """Current rows begin here, so that no row is compared with itself."""


@dataclass(frozen=True, slots=True)
class References:
    """Finds the reference of a check, from the run first and from what was served next."""

    logged: ReferenceData
    served: ServedRows

    def find(self, check: DriftCheck, details: VersionDetails, now: datetime) -> Reference:
        """Raises `ReferenceDataError` and `ServedRowsError`."""
        logged = self.logged.load(details.run_id)
        if not isinstance(logged, LoggedData):
            return self._served(check, now, logged.reason)
        rows = _named_as_logged(logged.rows)
        if any(column.startswith(OUTPUT) for column in rows.columns):
            return Reference(logged.description, rows, check.live_since)
        return self._with_predictions(check, now, LoggedData(logged.description, rows))

    def _first(self, check: DriftCheck, now: datetime) -> tuple[pd.DataFrame, str]:
        wanted = check.policy.reference_rows
        first = self.served.first(check.version, check.live_since, now, wanted)
        return first, f"the first {wanted} rows served with all the traffic"

    def _served(self, check: DriftCheck, now: datetime, why: str) -> Reference:
        """Until all of these rows are there, there is nothing to compare them with."""
        first, description = self._first(check, now)
        complete = len(first) >= check.policy.reference_rows
        return Reference(f"{description} ({why})", first, _after(first) if complete else now)

    def _with_predictions(self, check: DriftCheck, now: datetime, logged: LoggedData) -> Reference:
        first, description = self._first(check, now)
        if len(first) and not set(logged.rows.columns) & set(_inputs(first)):
            return self._served(check, now, f"{logged.description}, has none of the model's inputs")
        if len(first) < check.policy.reference_rows:
            return Reference(f"{logged.description}; no predictions yet", logged.rows, check.live_since)
        rows = _side_by_side(logged.rows, first[[c for c in first.columns if c.startswith(OUTPUT)]])
        return Reference(f"{logged.description}; predictions of {description}", rows, _after(first))


def _named_as_logged(rows: pd.DataFrame) -> pd.DataFrame:
    names = [str(name) for name in rows.columns]
    known = [name if name.startswith((INPUT, OUTPUT)) else f"{INPUT}{name}" for name in names]
    return rows.set_axis(known, axis=1)


def _inputs(rows: pd.DataFrame) -> list[str]:
    return [column for column in rows.columns if column.startswith(INPUT)]


def _after(first: pd.DataFrame) -> datetime:
    last: datetime = first["timestamp"].max().to_pydatetime()
    return last + timedelta(microseconds=1)


def _side_by_side(inputs: pd.DataFrame, predictions: pd.DataFrame) -> pd.DataFrame:
    """Both thinned to the shorter one; rows do not belong together, columns are compared one by one."""
    rows = min(len(inputs), len(predictions))
    tables = (inputs, predictions)
    thin = [t.iloc[np.linspace(0, len(t) - 1, rows).astype(int)].reset_index(drop=True) for t in tables]
    return pd.concat(thin, axis=1)
