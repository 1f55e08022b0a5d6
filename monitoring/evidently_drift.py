"""Drift as Evidently measures and shows it, with thresholds calibrated to the sizes of the two data sets.

The one file that imports Evidently, and it does so at the first comparison: the import takes seconds and
brings a web server along. Evidently's own tests are not used for the decision, only its distances.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import pandas as pd

from monitoring.chance import by_chance
from monitoring.comparable import Kind, Pair, least, pair_up
from monitoring.drift import Comparison, DriftPolicy, calibrate
from monitoring.drift_report import DriftReport, DriftReportError

MEASURES = {Kind.NUMBER: "wasserstein", Kind.CATEGORY: "jensenshannon"}
IMPORT_WARNINGS = (
    "numpy.core is deprecated",
    "Call to deprecated function 'Dependency'",
    "Use of deprecated class 'DependencyKwarg'",
)
"""What Evidently 0.7.23 and the server that it imports say about themselves when they are loaded."""


class EvidentlyDrift:
    """A `DriftReporter` on Evidently."""

    def compare(self, reference: pd.DataFrame, current: pd.DataFrame, policy: DriftPolicy) -> DriftReport:
        pairs, left_out = pair_up(reference, current, policy)
        if not pairs:
            return DriftReport((), left_out, b"", b"{}")
        chance = calibrate(by_chance(pairs), policy.false_alarms)
        comparing = [_Comparing(pair, chance[pair.name], least(pair.column, policy)) for pair in pairs]
        try:
            snapshot = _measure(comparing, policy.share)
            comparisons = _comparisons(comparing, snapshot.dict())
            html, measured = snapshot.get_html_str(as_iframe=False), snapshot.json()
        except (ArithmeticError, LookupError, TypeError, ValueError) as error:
            raise DriftReportError(f"Evidently could not compare: {error}", retryable=False) from error
        return DriftReport(comparisons, left_out, html.encode(), measured.encode())


@dataclass(frozen=True, slots=True)
class _Comparing:
    pair: Pair
    chance: float
    least: float

    @property
    def shown(self) -> str:
        return _harmless(self.pair.name)

    def result(self, distance: float) -> Comparison:
        pair = self.pair
        return Comparison(pair.column, pair.role, pair.aspect, MEASURES[pair.kind], distance, self.chance, self.least)


def _measure(comparing: Sequence[_Comparing], share: float) -> Any:
    """Evidently's snapshot of all columns; its HTML draws the same lines that decide here."""
    evidently, columns_preset = _evidently()
    of_kind = {kind: [c.shown for c in comparing if c.pair.kind is kind] for kind in Kind}
    definition = evidently.DataDefinition(
        numerical_columns=of_kind[Kind.NUMBER], categorical_columns=of_kind[Kind.CATEGORY]
    )
    preset = columns_preset(
        columns=[c.shown for c in comparing],
        num_method=MEASURES[Kind.NUMBER],
        cat_method=MEASURES[Kind.CATEGORY],
        per_column_threshold={c.shown: max(c.chance, c.least) for c in comparing},
        drift_share=share,
    )
    tables = (
        evidently.Dataset.from_pandas(_table(comparing, values), data_definition=definition)
        for values in ("current", "reference")
    )
    return evidently.Report([preset]).run(*tables)


def _table(comparing: Sequence[_Comparing], which: str) -> pd.DataFrame:
    return pd.DataFrame({c.shown: _shown_values(c.pair, getattr(c.pair, which)) for c in comparing})


def _shown_values(pair: Pair, values: pd.Series) -> pd.Series:
    return values if pair.kind is Kind.NUMBER else values.map(_harmless, na_action="ignore")


def _harmless(text: str) -> str:
    """Evidently writes names and values into a script of the page as they are, and they come from clients."""
    return text.replace("<", "\u2039").replace(">", "\u203a")


def _comparisons(comparing: Sequence[_Comparing], measured: dict[str, Any]) -> tuple[Comparison, ...]:
    configured = [(metric["config"], metric["value"]) for metric in measured["metrics"]]
    distances = {config["column"]: float(value) for config, value in configured if "column" in config}
    return tuple(c.result(distances[c.shown]) for c in comparing)


@cache
def _evidently() -> tuple[ModuleType, Callable[..., Any]]:
    """Evidently, and its drift preset without the headline: whether the whole is drift is not for it to say."""
    os.environ.setdefault("DO_NOT_TRACK", "1")
    try:
        with warnings.catch_warnings():
            for message in IMPORT_WARNINGS:
                warnings.filterwarnings("ignore", message)
            evidently, presets = import_module("evidently"), import_module("evidently.presets")
    except ImportError as error:
        reason = f"Evidently cannot be imported (it needs pandas older than 3): {error}"
        raise DriftReportError(reason, retryable=False) from error

    class ColumnsPreset(presets.DataDriftPreset):  # type: ignore[misc,name-defined]
        def render(self, context: Any, child_widgets: Any = None) -> list[Any]:
            return list(super().render(context, child_widgets)[1:])

    return evidently, ColumnsPreset
