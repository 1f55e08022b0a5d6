"""What the prediction log is told of a request, and what of that must not be written: plain values.

They stand apart from the log itself, so that a server without a log, and whoever only names a column that must stay
private, imports neither pyarrow nor fsspec.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

Columns = dict[str, list[Any]]


class Served(NamedTuple):
    """One request that was answered with predictions. A tuple: four times as fast to make."""

    request_id: str
    at: float
    """Seconds since the epoch."""
    mode: str
    """``live``, ``shadow`` or ``replay``."""
    entity: str | None
    """Whom or what the request is about, where it said so."""
    latency_ms: float
    inputs: Any
    """As parsed from the request: a mapping of column name to array, else a frame, an array, a mapping or a list."""
    outputs: Any
    """As the model returned it, in one of the same forms."""
    rows: int | None = None
    """Into how many rows the request falls, where that is known: then all arrays in `inputs` have so many. To count
    takes time."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Whose predictions a log holds."""

    model: str
    version: int
    revision: str


@dataclass(frozen=True, slots=True)
class Privacy:
    """What must not be written as it is. Names are a column's own or its full one (``email`` or ``input.email``)."""

    drop: frozenset[str] = frozenset()
    """Columns that are left out."""
    hashed: frozenset[str] = frozenset()
    """Columns of which only a keyed hash is written; ``entity`` can be one."""
    key: bytes = b""
    """Key of the hash: without one, values that can be guessed can be found again."""

    def drops(self, column: str) -> bool:
        return _among(self.drop, column)

    def hashes(self, column: str) -> bool:
        return _among(self.hashed, column)

    def hash(self, value: Any) -> str | None:
        return None if value is None else hmac.digest(self.key, as_text(value).encode(), "sha256").hex()

    def apply(self, columns: Mapping[str, list[Any]]) -> Columns:
        kept = {name: values for name, values in columns.items() if not self.drops(name)}
        return {n: [self.hash(v) for v in values] if self.hashes(n) else values for n, values in kept.items()}


@dataclass(frozen=True, slots=True)
class Order:
    """What a process that writes files is to do."""

    url: str
    origin: Origin
    privacy: Privacy


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of rows that were to be put into files."""

    written: int
    """So many of them can be read."""
    why: str = ""
    """Why others cannot; the same for every file, so that whoever is told tells it once."""
    error: str = ""
    """The same, as the storage said it."""


NOTHING_PRIVATE = Privacy()
"""Everything may be written."""


def as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _among(names: frozenset[str], column: str) -> bool:
    return column in names or column.partition(".")[2] in names
