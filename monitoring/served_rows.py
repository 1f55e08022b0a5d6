"""The port to what was served: rows of the prediction log as tables."""

from __future__ import annotations

from datetime import datetime
from typing import Protocol

import pandas as pd

from registry_hooks.model_version import ModelVersion


class ServedRowsError(Exception):
    """The rows could not be read; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class ServedRows(Protocol):
    """Rows served to live requests, oldest first, with ``timestamp``, ``input.`` and ``output.`` columns.

    Every method raises `ServedRowsError`; where nothing was served, the table is empty.
    """

    def first(self, version: ModelVersion, since: datetime, until: datetime, rows: int) -> pd.DataFrame:
        """The first `rows` rows served from `since` on, and before `until`."""
        ...

    def newest(self, version: ModelVersion, since: datetime, until: datetime, rows: int | None) -> pd.DataFrame:
        """The newest `rows` rows served from `since` on and before `until`; all of them where `rows` is None."""
        ...
