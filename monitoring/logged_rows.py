"""What was served, read from the prediction log."""

from __future__ import annotations

from datetime import datetime, timedelta

import pandas as pd
import pyarrow as pa

from monitoring.served_rows import ServedRowsError
from registry_hooks.model_version import ModelVersion
from serving import prediction_log

FIRST_SPAN = timedelta(hours=1)
"""The first rows are looked for in this much time, then in four times as much, and so on."""


class LoggedRows:
    """Implements `ServedRows` on the prediction log at `url`."""

    def __init__(self, url: str) -> None:
        self._url = url

    def first(self, version: ModelVersion, since: datetime, until: datetime, rows: int) -> pd.DataFrame:
        """The log is read from its end, so that its beginning is looked for in growing spans of time."""
        span, end = FIRST_SPAN, since
        found = pd.DataFrame()
        while len(found) < rows and end < until:
            end = min(since + span, until)
            found = self.newest(version, since, end, None)
            span *= 4
        return found.head(rows)

    def newest(self, version: ModelVersion, since: datetime, until: datetime, rows: int | None) -> pd.DataFrame:
        try:
            table = prediction_log.read(
                self._url, version.model, version=version.version, since=since, until=until, mode="live", limit=rows
            )
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            raise ServedRowsError(f"the prediction log cannot be read: {error}", retryable=True) from error
        kept = [c for c in table.column_names if c == "timestamp" or c.startswith(("input.", "output."))]
        return table.select(kept).to_pandas()
