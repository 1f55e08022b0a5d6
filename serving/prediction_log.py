"""The prediction log: what a revision was asked and what it answered, as Parquet that others can read.

One row per scored row, below ``model=<model>/version=<version>/date=<day>/``. What writes files and what reads them
stand in one file so that a round trip holds the format together. Files appear whole or not at all.

A server logs by `PredictionLog`, which has all of this done by another process.
Runs in the model's own environment: Python 3.10, pyarrow and fsspec are all it may need.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from datetime import datetime
from urllib.parse import quote

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.prediction_log_entry import NOTHING_PRIVATE, Origin, Privacy, Served, Stored
from serving.prediction_log_front import PredictionLog
from serving.prediction_log_pack import Packed, day_of, rows_of
from serving.prediction_log_storage import Storage, patiently
from serving.prediction_log_table import SCHEMA, joined, tabulate

__all__ = ["SCHEMA", "LogFiles", "Origin", "PredictionLog", "Privacy", "Served", "read"]

_VERSION = pa.field("version", pa.int64())

_PATIENCE_SECONDS = 60.0
"""How long a storage may be away before rows are given up. What comes meanwhile waits, within the log's bounds."""

_DAY = 86400.0


class LogFiles:
    """Writes files of one log. Used by one thread."""

    def __init__(
        self,
        url: str,
        origin: Origin,
        privacy: Privacy = NOTHING_PRIVATE,
        patience: float = _PATIENCE_SECONDS,
    ) -> None:
        """`patience`: seconds for which it is tried again to write a file while the storage is away."""
        self._origin, self._privacy = origin, privacy
        self._storage, self._patience = Storage(url), patience

    def write(self, packs: Sequence[Packed], odd: Sequence[Served]) -> Stored:
        """A file for each day on which requests came; `odd` are those that could not be packed."""
        written, why, error = 0, "", ""
        for of_day, odd_of_day in _by_day(packs, odd):
            try:
                written += self._write(of_day, odd_of_day)
            except Exception as raised:  # noqa: BLE001 - storages raise their libraries' own
                why, error = (isinstance(raised, OSError) and raised.strerror) or str(raised), str(raised)
        return Stored(written, why, error)

    def _write(self, packs: Sequence[Packed], odd: Sequence[Served]) -> int:
        last = max([max(packed.at) for packed in packs] + [served.at for served in odd])
        self._store(tabulate(packs, odd, self._origin.revision, self._privacy), last)
        return sum(sum(packed.counts) for packed in packs) + sum(map(rows_of, odd))

    def _store(self, table: pa.Table, last: float) -> None:
        name = f"{int(last * 1e6):017d}-{uuid.uuid4().hex[:12]}.parquet"
        content, folder, before = _parquet(table), self._day(last), self._day(last - _DAY)
        patiently(lambda: self._storage.put(folder, name, content, before), self._patience)

    def _day(self, at: float) -> str:
        day = time.strftime("%Y-%m-%d", time.gmtime(at))
        return f"{_folder(self._storage.root, self._origin.model, self._origin.version)}/date={day}"


def _parquet(table: pa.Table) -> pa.Buffer:
    """The file. Parquet writes hundreds of pieces: to a file of Python's, each would wait for Python's lock."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content, use_dictionary=_with_few_values(table))
    return content.getvalue()


def _with_few_values(table: pa.Table) -> list[str]:
    """Columns for which Parquet keeps a dictionary. For numbers it takes more time than all the rest."""
    return [field.name for field in table.schema if pa.types.is_string(field.type) and field.name != "request_id"]


def _by_day(packs: Sequence[Packed], odd: Sequence[Served]) -> Iterator[tuple[list[Packed], list[Served]]]:
    for day in dict.fromkeys([day_of(packed.at[0]) for packed in packs] + [day_of(served.at) for served in odd]):
        of_day = [packed for packed in packs if day_of(packed.at[0]) == day]
        yield of_day, [served for served in odd if day_of(served.at) == day]


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
    comes back as strings. Times need a time zone. Empty where nothing was written. Raises `OSError` where the storage
    does not answer or lets nobody in, `ImportError` where its package is missing, `ArrowException` for other files.
    """
    storage = Storage(url)
    kept: list[pa.Table] = []
    rows = 0
    for path in _paths(storage, _folder(storage.root, model, version), since, until):
        if limit is not None and rows >= limit:
            break
        table = _matching(_load(storage, path), since, until, mode)
        kept.append(_chosen(table, columns))
        rows += table.num_rows
    table = joined([_chosen(_empty(), columns), *kept]).sort_by("timestamp")
    table = table if limit is None else table.slice(max(0, table.num_rows - limit))
    return table if columns is None or "timestamp" in columns else table.drop_columns("timestamp")


def _folder(root: str, model: str, version: int | None) -> str:
    return f"{root.rstrip('/')}/model={quote(model, safe='')}/version={'*' if version is None else version}"


def _paths(storage: Storage, folder: str, since: datetime | None, until: datetime | None) -> list[str]:
    """The files that can hold such rows, newest first; a name begins with the time of the file's last row."""
    first = 0 if since is None else int(since.timestamp() * 1e6)
    last_day = "9999" if until is None else time.strftime("%Y-%m-%d", time.gmtime(until.timestamp()))
    found = {path.rsplit("/", 1)[1]: path for path in storage.paths(f"{folder}/date=*/*.parquet")}
    return [
        path
        for name, path in sorted(found.items(), reverse=True)
        if not name.startswith(".") and int(name[:17]) >= first and path.rsplit("date=", 1)[1][:10] <= last_day
    ]


def _load(storage: Storage, path: str) -> pa.Table:
    table = pq.ParquetFile(pa.BufferReader(storage.get(path))).read()
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
