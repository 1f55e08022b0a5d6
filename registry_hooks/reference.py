"""The port to the data that a version was trained or evaluated on, where its run tells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import pandas as pd

from registry_hooks.model_version import VersionDetails


class ReferenceDataError(Exception):
    """The data could not be read; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


@dataclass(frozen=True, slots=True)
class LoggedData:
    """A data set logged with a version's run."""

    description: str
    """Which data set it is, for people."""
    rows: pd.DataFrame
    """Columns by the names of the model's inputs, or by those of the prediction log (``input.``, ``output.``)."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The version has no data set of its own that can be read."""

    reason: str


class ReferenceData(Protocol):
    """Reads the data sets logged with runs."""

    def load(self, details: VersionDetails) -> LoggedData | Unavailable:
        """The data set that stands for what the version knows; `ReferenceDataError` where that cannot be told now."""
        ...
