"""The prediction log: what a revision was asked and what it answered, as Parquet that others can read.

One row per scored row, below ``model=<model>/version=<version>/date=<day>/``. Writer and reader stand in one
file so that a round trip holds the format together. The writer never holds a request up: its queue is
bounded in rows, what does not fit is dropped and counted, and files appear whole or not at all.
Runs in the model's own environment: Python 3.10, pyarrow and fsspec are all it may need.
"""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
import logging
import queue
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

_logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("row", pa.int64()),
        ("timestamp", pa.timestamp("us", tz="UTC")),
        ("revision", pa.string()),
        ("mode", pa.string()),
        ("entity", pa.string()),
        ("latency_ms", pa.float64()),
    ]
)
"""The columns of every row; ``input.<column>`` and ``output.<column>`` follow."""

_VERSION = pa.field("version", pa.int64())

Columns = dict[str, list[Any]]


@dataclass(frozen=True, slots=True)
class Served:
    """One request that was answered with predictions."""

    request_id: str
    at: float
    """Seconds since the epoch."""
    mode: str
    """``live``, ``shadow`` or ``replay``."""
    entity: str | None
    """Whom or what the request is about, where it said so."""
    latency_ms: float
    inputs: Any
    """As parsed from the request: a frame, an array, a mapping or a list."""
    outputs: Any
    """As the model returned it."""


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

    def apply(self, columns: Mapping[str, list[Any]]) -> Columns:
        kept = {name: values for name, values in columns.items() if not self._names(self.drop, name)}
        return {
            n: [self._hash(v) for v in values] if self._names(self.hashed, n) else values for n, values in kept.items()
        }

    def _names(self, names: frozenset[str], column: str) -> bool:
        return column in names or column.partition(".")[2] in names

    def _hash(self, value: Any) -> str | None:
        return None if value is None else hmac.new(self.key, _text(value).encode(), hashlib.sha256).hexdigest()


class PredictionLog:
    """Writes what was served from a thread of its own."""

    def __init__(
        self,
        url: str,
        origin: Origin,
        *,
        privacy: Privacy = Privacy(),
        rows: int = 10_000,
        seconds: float = 5.0,
        capacity: int = 50_000,
    ) -> None:
        """A file is written after `rows` rows or `seconds`; at most `capacity` rows wait."""
        self.dropped = 0
        """Rows that were not written: the queue was full or the storage failed."""
        self.written = 0
        """Rows that can be read."""
        self._origin, self._privacy = origin, privacy
        self._rows, self._seconds, self._capacity = rows, seconds, capacity
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._waiting = 0
        self._lock = threading.Lock()
        self._queue: queue.SimpleQueue[Served | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def put(self, served: Served) -> None:
        """Take note of a request; never waits."""
        rows = count_rows(served.inputs)
        with self._lock:
            if self._waiting + rows > self._capacity or not self._thread.is_alive():
                self.dropped += rows
                return
            self._waiting += rows
        self._queue.put(served)

    def close(self, seconds: float = 30.0) -> None:
        """Write what waits and end the thread."""
        self._queue.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        for batch in self._batches():
            rows = sum(count_rows(served.inputs) for served in batch)
            try:
                self._write(batch)
                self.written += rows
            except (OSError, ValueError, TypeError, pa.ArrowException) as error:
                self.dropped += rows
                _logger.warning("%d rows of the prediction log were lost: %s", rows, error)
            with self._lock:
                self._waiting -= rows

    def _batches(self) -> Iterator[list[Served]]:
        last = False
        while not last:
            batch: list[Served] = []
            rows, deadline = 0, time.monotonic() + self._seconds
            while rows < self._rows and not last:
                try:
                    served = self._queue.get(timeout=max(0.0, deadline - time.monotonic()))
                except queue.Empty:
                    break
                last = served is None
                if served is not None:
                    batch.append(served)
                    rows += count_rows(served.inputs)
            if batch:
                yield batch

    def _write(self, batch: Sequence[Served]) -> None:
        for day, of_day in itertools.groupby(batch, lambda served: time.strftime("%Y-%m-%d", time.gmtime(served.at))):
            served = list(of_day)
            table = tabulate(served, self._origin.revision, self._privacy)
            folder = f"{_folder(self._root, self._origin.model, self._origin.version)}/date={day}"
            name = f"{int(max(s.at for s in served) * 1e6):017d}-{uuid.uuid4().hex[:12]}.parquet"
            self._files.makedirs(folder, exist_ok=True)
            with self._files.open(f"{folder}/.{name}", "wb") as file:
                pq.write_table(table, file)
            self._files.mv(f"{folder}/.{name}", f"{folder}/{name}")


def read(
    url: str,
    model: str,
    *,
    version: int | None = None,
    since: datetime | None = None,
    until: datetime | None = None,
    mode: str | None = None,
    columns: Collection[str] | None = None,
    limit: int | None = None,
) -> pa.Table:
    """The rows of `model` with `since` <= timestamp < `until`, oldest first; of more than `limit`, the newest.

    The columns are those of `SCHEMA`, ``version``, and ``input.<column>`` and ``output.<column>`` of every row
    read; only those in `columns` where given. A column that was written with types that do not go together
    comes back as strings. Times need a time zone. Empty where nothing was written.
    """
    files, root = fsspec.core.url_to_fs(url)
    kept: list[pa.Table] = []
    rows = 0
    for path in _paths(files, _folder(root, model, version), since, until):
        if limit is not None and rows >= limit:
            break
        table = _matching(_load(files, path), since, until, mode)
        kept.append(_chosen(table, columns))
        rows += table.num_rows
    table = _joined([_chosen(_empty(), columns), *kept]).sort_by("timestamp")
    table = table if limit is None else table.slice(max(0, table.num_rows - limit))
    return table if columns is None or "timestamp" in columns else table.drop_columns("timestamp")


def tabulate(batch: Sequence[Served], revision: str, privacy: Privacy = Privacy()) -> pa.Table:
    """One table of several requests; a column that a request does not have is null in its rows."""
    parts = [privacy.apply(_rows(served, revision)) for served in batch]
    names = dict.fromkeys(name for part in parts for name in part)
    gathered = {name: [v for part in parts for v in part.get(name, [None] * len(part["row"]))] for name in names}
    arrays = {name: _array(values, name) for name, values in gathered.items()}
    return pa.table(arrays)


def count_rows(value: Any) -> int:
    """Into how many rows of the log a request's inputs fall."""
    if isinstance(value, Mapping):
        return max((count_rows(v) for v in value.values()), default=1)
    if isinstance(value, str | bytes) or not hasattr(value, "__len__") or getattr(value, "ndim", 1) == 0:
        return 1
    return max(1, len(value))


def columns_of(value: Any, unnamed: str) -> Columns:
    """A model's input or output as named columns of plain values; `unnamed` names the only column of a plain list."""
    if hasattr(value, "columns") and hasattr(value, "iloc"):
        return {str(name): value.iloc[:, i].tolist() for i, name in enumerate(value.columns)}
    if isinstance(value, Mapping):
        return {str(name): _listed(part) for name, part in value.items()}
    if getattr(value, "ndim", 0) == 2:
        return {str(i): part for i, part in enumerate(value.T.tolist())}
    values = _listed(value)
    if values and all(isinstance(v, Mapping) for v in values):
        return {str(name): [v.get(name) for v in values] for name in dict.fromkeys(n for v in values for n in v)}
    return {str(getattr(value, "name", None) or unnamed): values}


def _listed(value: Any) -> list[Any]:
    if hasattr(value, "tolist"):
        value = value.tolist()
    return list(value) if isinstance(value, list | tuple) else [value]


def _rows(served: Served, revision: str) -> Columns:
    inputs = {f"input.{name}": values for name, values in columns_of(served.inputs, "0").items()}
    outputs = {f"output.{name}": values for name, values in columns_of(served.outputs, "prediction").items()}
    rows = count_rows(served.inputs)
    same = {
        "request_id": served.request_id,
        "timestamp": int(served.at * 1e6),
        "revision": revision,
        "mode": served.mode,
        "entity": served.entity,
        "latency_ms": served.latency_ms,
    }
    data = {name: _fitted(values, rows) for name, values in (inputs | outputs).items()}
    return {"row": list(range(rows))} | {name: [value] * rows for name, value in same.items()} | data


def _fitted(values: list[Any], rows: int) -> list[Any]:
    """Values of another number than the rows belong to no single row: all of them stand in the first one."""
    return values if len(values) == rows else [_text(values)] + [None] * (rows - 1)


def _array(values: list[Any], name: str) -> pa.Array:
    if name in SCHEMA.names:
        return pa.array(values, SCHEMA.field(name).type)
    try:
        return pa.array(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return pa.array([None if value is None else _text(value) for value in values], pa.string())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _folder(root: str, model: str, version: int | None) -> str:
    return f"{root.rstrip('/')}/model={quote(model, safe='')}/version={'*' if version is None else version}"


def _paths(files: Any, folder: str, since: datetime | None, until: datetime | None) -> list[str]:
    """The files that can hold such rows, newest first; a name begins with the time of the file's last row."""
    first = 0 if since is None else int(since.timestamp() * 1e6)
    last_day = "9999" if until is None else time.strftime("%Y-%m-%d", time.gmtime(until.timestamp()))
    found = {path.rsplit("/", 1)[1]: path for path in map(str, files.glob(f"{folder}/date=*/*.parquet"))}
    return [
        path
        for name, path in sorted(found.items(), reverse=True)
        if not name.startswith(".") and int(name[:17]) >= first and path.rsplit("date=", 1)[1][:10] <= last_day
    ]


def _load(files: Any, path: str) -> pa.Table:
    with files.open(path, "rb") as file:
        table = pq.ParquetFile(file).read()
    version = int(path.rsplit("version=", 1)[1].split("/", 1)[0])
    return table.append_column(_VERSION, pa.array([version] * table.num_rows, pa.int64()))


def _matching(table: pa.Table, since: datetime | None, until: datetime | None, mode: str | None) -> pa.Table:
    if since is not None:
        table = table.filter(pc.field("timestamp") >= pa.scalar(since, SCHEMA.field("timestamp").type))
    if until is not None:
        table = table.filter(pc.field("timestamp") < pa.scalar(until, SCHEMA.field("timestamp").type))
    return table if mode is None else table.filter(pc.field("mode") == mode)


def _chosen(table: pa.Table, columns: Collection[str] | None) -> pa.Table:
    names = table.column_names
    return table if columns is None else table.select([n for n in names if n in columns or n == "timestamp"])


def _empty() -> pa.Table:
    return SCHEMA.append(_VERSION).empty_table()


def _joined(tables: Sequence[pa.Table]) -> pa.Table:
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        mixed = {name for table in tables for name in table.column_names if not _go_together(tables, name)}
        return pa.concat_tables([_as_text(table, mixed) for table in tables], promote_options="permissive")


def _go_together(tables: Sequence[pa.Table], name: str) -> bool:
    schemas = [pa.schema([table.schema.field(name)]) for table in tables if name in table.column_names]
    try:
        pa.unify_schemas(schemas, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return False
    return True


def _as_text(table: pa.Table, names: Collection[str]) -> pa.Table:
    for index, field in enumerate(table.schema):
        if field.name in names and not pa.types.is_null(field.type):
            values = [None if v is None else _text(v) for v in table.column(index).to_pylist()]
            table = table.set_column(index, field.name, pa.array(values, pa.string()))
    return table
