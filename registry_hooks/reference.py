"""The ports to the data that a version was trained or evaluated on, where its run tells."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pandas as pd

from registry_hooks.model_version import ModelVersion


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

    def load(self, run_id: str | None) -> LoggedData | Unavailable:
        """What stands for the data that the run's model knows; `ReferenceDataError` where that cannot be told now."""
        ...


@dataclass(frozen=True, slots=True)
class Sample:
    """Some rows of such a data set, with values as JSON has them."""

    told: str
    """Which data set they are of, or why there are none; one line."""
    columns: tuple[str, ...] = ()
    rows: tuple[tuple[object, ...], ...] = ()
    retryable: bool = False
    """Whether there may be rows another time."""


class Samples(Protocol):
    """Where rows are to be had that a version is known to have met."""

    def take(self, version: ModelVersion, model: Path) -> Sample:
        """Some rows for the version whose files are in the folder `model`, after a bounded time. Never fails."""
        ...

    def close(self) -> None:
        """End what is being waited for."""
        ...
