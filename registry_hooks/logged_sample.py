"""Some rows of the data set that a version's run logged, for whoever tries the version before it is live."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import LoggedData, ReferenceData, ReferenceDataError
from registry_hooks.registry import ModelRegistry, RegistryError

ROWS = 1000
"""As many rows, from all over the data set."""

_INPUT = "input."
"""What the prediction log puts before the names of inputs."""


class LoggedSample:
    """Rows by the model's own names, as lines of JSON."""

    def __init__(self, registry: ModelRegistry, reference: ReferenceData) -> None:
        self._registry, self._reference = registry, reference

    def write(self, version: ModelVersion, file: Path) -> str:
        """Why there are no rows to be had; empty where they are in `file`."""
        try:
            found = self._reference.load(self._registry.describe(version))
        except (ReferenceDataError, RegistryError) as error:
            return str(error)
        if not isinstance(found, LoggedData):
            return found.reason
        rows = found.rows.rename(columns=lambda name: str(name).removeprefix(_INPUT))
        rows.iloc[_spread(len(rows))].to_json(
            file, orient="records", lines=True, double_precision=15, date_format="iso"
        )
        return ""


def _spread(count: int) -> pd.Index:
    """Positions all over so many rows."""
    step = max(1, count // ROWS)
    return pd.RangeIndex(0, count, step)[:ROWS]
