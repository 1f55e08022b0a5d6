"""The ports of a drift check in memory: what was served, what was logged with runs, and a plain comparison."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

import numpy as np
import pandas as pd

from monitoring.chance import by_chance, distances
from monitoring.comparable import Pair, least, pair_up
from monitoring.drift import Comparison, DriftPolicy, calibrate
from monitoring.drift_report import DriftReport
from monitoring.notify import Alert
from monitoring.served_rows import ServedRowsError
from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import LoggedData, ReferenceDataError, Unavailable


@dataclass(slots=True)
class FakeServedRows:
    """Implements `ServedRows`; every table has a ``timestamp`` column."""

    tables: dict[ModelVersion, pd.DataFrame] = field(default_factory=dict)
    broken: bool = False

    def first(self, version: ModelVersion, since: datetime, until: datetime, rows: int) -> pd.DataFrame:
        return self.newest(version, since, until, None).head(rows)

    def newest(self, version: ModelVersion, since: datetime, until: datetime, rows: int | None) -> pd.DataFrame:
        if self.broken:
            raise ServedRowsError("the prediction log cannot be read: it is broken", retryable=True)
        table = self.tables.get(version, pd.DataFrame({"timestamp": pd.to_datetime([], utc=True)}))
        found = table[(table["timestamp"] >= since) & (table["timestamp"] < until)]
        return found if rows is None else found.tail(rows)


@dataclass(slots=True)
class FakeReferenceData:
    """Implements `ReferenceData`: what was logged, by run id."""

    logged: dict[str, LoggedData] = field(default_factory=dict)
    broken: bool = False

    def load(self, run_id: str | None) -> LoggedData | Unavailable:
        if self.broken:
            raise ReferenceDataError("the run cannot be read: it is broken", retryable=True)
        return self.logged.get(run_id or "", Unavailable("no data set was logged with the run"))


class FakeDriftReporter:
    """Implements `DriftReporter` without Evidently: the same distances and thresholds, on a page of one line."""

    def compare(self, reference: pd.DataFrame, current: pd.DataFrame, policy: DriftPolicy) -> DriftReport:
        pairs, left_out = pair_up(reference, current, policy)
        if not pairs:
            return DriftReport((), left_out, b"", b"{}")
        chance = calibrate(by_chance(pairs), policy.false_alarms)
        compared = tuple(_compared(pair, chance, policy) for pair in pairs)
        measured = {c.column: c.distance for c in compared}
        return DriftReport(compared, left_out, b"<p>compared</p>", json.dumps(measured).encode())


def _compared(pair: Pair, chance: Mapping[str, float], policy: DriftPolicy) -> Comparison:
    own = np.repeat([[True, False]], [len(pair.reference), len(pair.current)], axis=1)
    distance = float(distances(pair, own)[0])
    of = (pair.column, pair.role, pair.aspect, "wasserstein" if pair.kind == "number" else "jensenshannon")
    return Comparison(*of, distance, chance[pair.name], least(pair.column, policy))


@dataclass(slots=True)
class FakeNotifier:
    """Implements `Notifier` and keeps what it was told."""

    told: list[Alert] = field(default_factory=list)

    def notify(self, alert: Alert) -> None:
        self.told.append(alert)
