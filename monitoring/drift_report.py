"""The port to the comparison of two data sets, and what comes out of it.

Both data sets are tables whose columns say what they are to the model: ``input.<name>`` and
``output.<name>``, as in the prediction log. Other columns are not looked at.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

import pandas as pd

from monitoring.drift import Comparison, DriftPolicy

INPUT = "input."
"""Prefix of the columns that the model reads."""
OUTPUT = "output."
"""Prefix of the columns that the model answers."""


class DriftReportError(Exception):
    """The data sets could not be compared; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class DriftReport:
    """What a comparison measured, and the same as documents."""

    comparisons: tuple[Comparison, ...]
    left_out: Mapping[str, str] = field(hash=False)
    """Columns that were not compared, and why."""
    html: bytes
    """For people: one file that needs no network."""
    json: bytes
    """For programs, as the library that measured writes it."""


class DriftReporter(Protocol):
    """Compares two data sets column by column."""

    def compare(self, reference: pd.DataFrame, current: pd.DataFrame, policy: DriftPolicy) -> DriftReport:
        """How far apart they lie and how far would be drift; `DriftReportError` where that cannot be measured.

        Columns that only one of them has, or that cannot be compared, are left out and named. The same data
        gives the same report.
        """
        ...
