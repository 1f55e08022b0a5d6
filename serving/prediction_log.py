"""The prediction log: what a revision was asked and what it answered, as Parquet that others can read.

One row per scored row, below ``model=<model>/version=<version>/date=<day>/``. Writer and reader stand in one
file so that a round trip holds the format together. The writer never holds a request up: its queue is
bounded in rows and in bytes, what does not fit is dropped and counted, and files appear whole or not at all.

The thread that writes shares Python's lock with the server. So it is not woken for every request: it looks a few times
a second, makes a small table of what has come, and puts the tables together when a file is due.
Runs in the model's own environment: Python 3.10, pyarrow and fsspec are all it may need.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
import uuid
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.prediction_log_entry import NOTHING_PRIVATE, Origin, Privacy, Served
from serving.prediction_log_table import SCHEMA, joined, rows_of, tabulate

__all__ = ["SCHEMA", "Origin", "PredictionLog", "Privacy", "Served", "read"]

_logger = logging.getLogger(__name__)

_VERSION = pa.field("version", pa.int64())

_DAY = 86_400

_LOOK_SECONDS = 0.05
"""How long what has come waits at most to be made into a table."""

_AT_ONCE = 500
"""Requests of one table: what takes about a millisecond, during which the server may have to wait."""


@dataclass(frozen=True, slots=True)
class _Part:
    """A table that waits for its file."""

    day: int
    """Since the epoch."""
    last: float
    """When the last of its requests was served."""
    rows: int
    table: pa.Table


class PredictionLog:
    """Writes what was served from a thread of its own."""

    def __init__(
        self,
        url: str,
        origin: Origin,
        *,
        privacy: Privacy = NOTHING_PRIVATE,
        sample: float = 1.0,
        rows: int = 10_000,
        seconds: float = 5.0,
        capacity: int = 50_000,
        memory: int = 256 * 1024 * 1024,
    ) -> None:
        """A share of `sample` of the requests is logged, decided by their ids.

        A file is written after `rows` rows or `seconds`; at most `capacity` rows wait, and about `memory` bytes.
        """
        self.dropped = 0
        """Rows that were not written: the queue was full or the storage failed."""
        self.written = 0
        """Rows that can be read."""
        self.trouble = ""
        """Why the last file could not be written; empty where it was."""
        self._origin, self._privacy = origin, privacy
        self._rows, self._seconds, self._capacity, self._memory = rows, seconds, capacity, memory
        self._below = int(sample * 2**64)
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._queue: deque[Served] = deque()
        self._waiting = 0
        """Rows in the queue and in tables."""
        self._lock = threading.Lock()
        self._limit = capacity
        """The most rows that may wait: fewer than `capacity` where they are large."""
        self._wake, self._ends = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def put(self, served: Served) -> None:
        """Take note of a request; never waits."""
        if self._below < 2**64 and _position(served.request_id) >= self._below:
            return
        rows = rows_of(served)
        with self._lock:
            if self._waiting + rows > self._limit or self._ends.is_set():
                self.dropped += rows
                return
            self._waiting += rows
        self._queue.append(served)
        if not self._wake.is_set():
            self._wake.set()

    def close(self, seconds: float = 30.0) -> None:
        """Write what waits and end the thread."""
        self._ends.set()
        self._wake.set()
        self._thread.join(seconds)

    def _run(self) -> None:
        while self._awaited():
            for _, parts in groupby(self._gathered(), lambda part: part.day):
                self._write(list(parts))

    def _awaited(self) -> bool:
        """Wait until there is something; whether there is, since nothing comes any more after the end."""
        while not self._queue:
            self._wake.clear()
            if self._ends.is_set():
                return False
            if not self._queue:
                self._wake.wait()
        return True

    def _gathered(self) -> list[_Part]:
        """What comes until there are rows enough for a file, or it is time."""
        due = time.monotonic() + self._seconds
        parts: list[_Part] = []
        rows = 0
        while rows < min(self._rows, self._limit // 2 + 1) and (left := due - time.monotonic()) > 0:
            batch = self._taken()
            for part in self._parts(batch):
                parts.append(part)
                rows += part.rows
            if self._ends.is_set() and not self._queue:
                break
            if len(batch) < _AT_ONCE:
                self._ends.wait(min(left, _LOOK_SECONDS))
        return parts

    def _taken(self) -> list[Served]:
        return [self._queue.popleft() for _ in range(min(_AT_ONCE, len(self._queue)))]

    def _parts(self, batch: Sequence[Served]) -> list[_Part]:
        parts: list[_Part] = []
        for day, of_day in groupby(batch, lambda served: int(served.at // _DAY)):
            served = list(of_day)
            rows = sum(map(rows_of, served))
            with self._losing(rows):
                table = tabulate(served, self._origin.revision, self._privacy)
                self._limit = min(self._capacity, self._memory * rows // max(1, table.nbytes))
                parts.append(_Part(day, max(one.at for one in served), rows, table))
        return parts

    def _write(self, parts: Sequence[_Part]) -> None:
        rows = sum(part.rows for part in parts)
        with self._losing(rows):
            table, last = joined([part.table for part in parts]), max(part.last for part in parts)
            day = time.strftime("%Y-%m-%d", time.gmtime(parts[0].day * _DAY))
            self._store(table, f"{_folder(self._root, self._origin.model, self._origin.version)}/date={day}", last)
            self.trouble = ""
            with self._lock:
                self.written += rows
                self._waiting -= rows

    @contextmanager
    def _losing(self, rows: int) -> Iterator[None]:
        """So many rows are lost where something is raised inside."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - storages raise their libraries' own
            self.trouble = f"rows of the prediction log were lost: {error}"
            _logger.warning("%d %s", rows, self.trouble)
            with self._lock:
                self.dropped += rows
                self._waiting -= rows

    def _store(self, table: pa.Table, folder: str, last: float) -> None:
        """A file appears whole: it has another name until it is."""
        name = f"{int(last * 1e6):017d}-{uuid.uuid4().hex[:12]}.parquet"
        self._files.makedirs(folder, exist_ok=True)
        try:
            with self._files.open(f"{folder}/.{name}", "wb") as file:
                pq.write_table(table, file)
            self._files.mv(f"{folder}/.{name}", f"{folder}/{name}")
        except BaseException:
            with suppress(OSError):
                self._files.rm(f"{folder}/.{name}")
            raise


def _position(request_id: str) -> int:
    """The same number below 2**64 for the same request, and any other for another one."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "big")


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
    table = joined([_chosen(_empty(), columns), *kept]).sort_by("timestamp")
    table = table if limit is None else table.slice(max(0, table.num_rows - limit))
    return table if columns is None or "timestamp" in columns else table.drop_columns("timestamp")


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
