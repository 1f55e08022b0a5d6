"""Requests as they stand in the prediction log, and bodies that ask the same again.

The log keeps columns, not what was sent: whether a table, a list or named arrays were sent is not known, so there is a
body for each and whoever sends them finds out which one the version that answered then takes back. Columns that a
policy drops are missing from all of them, and of those that it hashes the hash is sent.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any

import pyarrow as pa

from monitoring.served_rows import ServedRowsError
from registry_hooks.model_version import ModelVersion
from serving import prediction_log

MOST_ROWS = 20
"""Of a request, on average: no more than so many times the number of requests is read."""
LONGEST = timedelta(days=30)
"""Nothing older is looked for."""
_INPUT = "input."


@dataclass(frozen=True, slots=True)
class LoggedRequest:
    """One request that a version answered."""

    id: str
    at: datetime
    columns: Mapping[str, list[Any]] = field(hash=False)
    """Values of each input by its name, row by row, in JSON's own types."""

    @property
    def bodies(self) -> tuple[bytes, ...]:
        """What may have been sent, the likeliest first."""
        return tuple(json.dumps(form(self.columns)).encode() for form in _FORMS)


def last_requests(url: str, version: ModelVersion, now: datetime, most: int) -> list[LoggedRequest]:
    """The last requests of clients that `version` answered, oldest first. Raises `ServedRowsError`."""
    limit = most * MOST_ROWS
    try:
        table = prediction_log.read(
            url, version.model, version=version.version, since=now - LONGEST, until=now, mode="live", limit=limit
        )
    except (OSError, ValueError, ImportError, pa.ArrowException) as error:
        raise ServedRowsError(f"the prediction log cannot be read: {error}", retryable=True) from error
    found = _requests(table)
    return found[-most:] if table.num_rows < limit else found[1:][-most:]


def _requests(table: pa.Table) -> list[LoggedRequest]:
    """Every request, in the order of its first row; the first one of a table that was cut may lack rows."""
    names = [name for name in table.column_names if name.startswith(_INPUT)]
    told = table.select(["request_id", "row", "timestamp", *names]).to_pylist()
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in told:
        rows.setdefault(row["request_id"], []).append(row)
    return [_request(key, sorted(of_one, key=lambda row: int(row["row"]))) for key, of_one in rows.items()]


def _request(key: str, rows: Sequence[Mapping[str, Any]]) -> LoggedRequest:
    names = [name for name in rows[0] if name.startswith(_INPUT)]
    columns = {name.removeprefix(_INPUT): [_plain(row[name]) for row in rows] for name in names}
    return LoggedRequest(key, rows[0]["timestamp"], columns)


def _plain(value: Any) -> Any:
    """In JSON's own types; what is not a number is nothing."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


def _table(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(columns), "data": list(zip(*columns.values(), strict=True))}}


def _filled(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Without the columns that have no value in any row: a request that lacks a column is logged like this."""
    return _table({name: values for name, values in columns.items() if any(value is not None for value in values)})


def _arrays(columns: Mapping[str, list[Any]]) -> dict[str, Any]:
    """Arrays without a name are logged as columns 0, 1, 2 and so on."""
    names = list(columns)
    if names == ["0"]:
        return {"inputs": columns["0"]}
    if names == [str(index) for index in range(len(names))]:
        return {"inputs": list(zip(*columns.values(), strict=True))}
    return {"inputs": dict(columns)}


_FORMS: tuple[Callable[[Mapping[str, list[Any]]], dict[str, Any]], ...] = (_table, _filled, _arrays)
