"""The prediction log: what a revision was asked and what it answered, as Parquet that others can read.

One row per scored row, below ``model=<model>/version=<version>/date=<day>/``. Writer and reader stand in one
file so that a round trip holds the format together. The writer never holds a request up: its queue is
bounded in rows and in bytes, what does not fit is dropped and counted, and files appear whole or not at all.

The thread that writes shares Python's lock with the server. So it is not woken for every request, but once a file is
due, and finds most of the work done: the server itself packs a hundred requests at a time. What that costs is more than
its instructions, since they share the processor's caches with everything else of a request.
Runs in the model's own environment: Python 3.10, pyarrow and fsspec are all it may need.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
import time
import uuid
from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from urllib.parse import quote

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from serving.prediction_log_entry import NOTHING_PRIVATE, Origin, Privacy, Served
from serving.prediction_log_table import SCHEMA, Packed, day_of, joined, pack, rows_of, size_of, tabulate

__all__ = ["SCHEMA", "Origin", "PredictionLog", "Privacy", "Served", "read"]

_logger = logging.getLogger(__name__)

_VERSION = pa.field("version", pa.int64())

_PACK = 128
"""Requests that are packed together,"""
_PACK_ROWS, _PACK_BYTES = 4096, 1_000_000
"""and how many rows and bytes at most: what takes a fraction of a millisecond."""

_LEFT_AFTER = 3600.0
"""Seconds after which a file that is not whole never will be: its writer was killed. So often it is looked for."""

_DAY = 86400.0

_ALL = 2**64
"""Positions of requests are below it."""


@dataclass(slots=True)
class _Batch:
    """What waits for its file."""

    packs: list[Packed] = field(default_factory=list)
    odd: list[Served] = field(default_factory=list)
    """What cannot be packed."""
    rows: int = 0
    size: int = 0
    """In bytes, about."""


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
        self._below = int(sample * _ALL)
        self._files, self._root = fsspec.core.url_to_fs(url)
        self._loose: list[Served] = []
        """What is not packed yet."""
        self._loose_rows, self._full = 0, 1
        """Its rows, and how many requests are packed next."""
        self._batch = _Batch()
        self._waiting, self._bytes = 0, 0
        """Rows of what is gathered and of what is being written, and bytes of the latter."""
        self._lock = threading.Lock()
        self._due, self._ends = threading.Event(), threading.Event()
        self._closed = False
        """Whether nothing is written any more."""
        self._swept = -math.inf
        """When it was looked last for what others left."""
        self._thread = threading.Thread(target=self._run, name="prediction-log", daemon=True)
        self._thread.start()

    def put(self, served: Served) -> None:
        """Take note of a request; never waits."""
        if self._below < _ALL and _position(served.request_id) >= self._below:
            return
        with self._lock:
            self._loose.append(served)
            self._loose_rows += served.rows or _PACK_ROWS
            if len(self._loose) >= self._full or self._loose_rows >= _PACK_ROWS:
                self._gather()

    def close(self, seconds: float = 30.0) -> None:
        """Write what waits and end the thread."""
        self._ends.set()
        self._due.set()
        self._thread.join(seconds)

    def _gather(self) -> None:
        """Pack what is loose, or drop it where too much waits. The lock is held."""
        loose, self._loose, self._loose_rows = self._loose, [], 0
        rows, size = sum(map(rows_of, loose)), size_of(loose[-1]) * len(loose)
        batch = self._batch
        if self._waiting + rows > self._capacity or self._bytes + batch.size > self._memory or self._closed:
            self.dropped += rows
            return
        packed = pack(loose) if size <= _PACK_BYTES else None
        if packed is None:
            batch.odd += loose
        else:
            batch.packs.append(packed)
        batch.rows += rows
        batch.size += size
        self._waiting += rows
        self._full = max(1, min(_PACK, _PACK_BYTES * len(loose) // size, self._capacity - self._waiting))
        if batch.rows >= self._rows or batch.size >= self._memory // 2:
            self._due.set()

    def _run(self) -> None:
        while not self._closed:
            self._due.wait(self._seconds)
            self._due.clear()
            with self._lock:
                if self._loose:
                    self._gather()
                batch, self._batch = self._batch, _Batch()
                self._bytes = batch.size
                if self._ends.is_set():
                    self._closed, self._full = True, 0
            for packs, odd in _by_day(batch):
                self._write(packs, odd)
            with self._lock:
                self._waiting -= batch.rows
                self._bytes = 0

    def _write(self, packs: Sequence[Packed], odd: Sequence[Served]) -> None:
        rows = sum(int(packed.counts.sum()) for packed in packs) + sum(map(rows_of, odd))
        last = max([packed.last for packed in packs] + [served.at for served in odd])
        try:
            table = tabulate(packs, odd, self._origin.revision, self._privacy)
            self._store(table, last)
        except Exception as error:  # noqa: BLE001 - storages raise their libraries' own
            self.trouble = f"rows of the prediction log were lost: {_why(error)}"
            _logger.warning("%d rows of the prediction log were lost: %s", rows, error)
            with self._lock:
                self.dropped += rows
        else:
            self.trouble = ""
            self.written += rows

    def _store(self, table: pa.Table, last: float) -> None:
        """A file appears whole: it has another name until it is."""
        folder, now = self._day(last), time.time()
        name = f"{int(last * 1e6):017d}-{uuid.uuid4().hex[:12]}.parquet"
        self._files.makedirs(folder, exist_ok=True)
        if now >= self._swept + _LEFT_AFTER:
            self._swept = now
            self._sweep(self._day(last - _DAY), now - _LEFT_AFTER)
            self._sweep(folder, now - _LEFT_AFTER)
        unfinished = f"{folder}/.{int(now * 1e6):017d}-{name}"
        try:
            with self._files.open(unfinished, "wb") as file:
                file.write(_parquet(table))
            self._files.mv(unfinished, f"{folder}/{name}")
        except BaseException:
            with suppress(OSError):
                self._files.rm(unfinished)
            raise

    def _day(self, at: float) -> str:
        day = time.strftime("%Y-%m-%d", time.gmtime(at))
        return f"{_folder(self._root, self._origin.model, self._origin.version)}/date={day}"

    def _sweep(self, folder: str, before: float) -> None:
        """Remove what writers left that were killed while they wrote. Never a reason not to write."""
        try:
            for path in map(str, self._files.ls(folder, detail=False)):
                if _begun(path.rsplit("/", 1)[1]) < before:
                    self._files.rm(path)
        except FileNotFoundError:
            pass  # nothing was written on that day, or another writer was quicker
        except Exception as error:  # noqa: BLE001 - storages raise their libraries' own
            _logger.debug("%s was not looked through: %s", folder, error)


def _parquet(table: pa.Table) -> pa.Buffer:
    """The file. Parquet writes hundreds of pieces: to a file of Python's, each would wait for Python's lock."""
    content = pa.BufferOutputStream()
    pq.write_table(table, content, use_dictionary=_with_few_values(table))
    return content.getvalue()


def _with_few_values(table: pa.Table) -> list[str]:
    """Columns for which Parquet keeps a dictionary. For numbers it takes more time than all the rest."""
    return [field.name for field in table.schema if pa.types.is_string(field.type) and field.name != "request_id"]


def _why(error: Exception) -> str:
    """The same for every file, so that whoever is told tells it once."""
    return (isinstance(error, OSError) and error.strerror) or str(error)


def _begun(name: str) -> float:
    """When a file that is not whole was begun, in seconds since the epoch; never, for one that is."""
    return int(name[1:18]) / 1e6 if name.startswith(".") and name[1:18].isdigit() else math.inf


def _by_day(batch: _Batch) -> Iterator[tuple[list[Packed], list[Served]]]:
    days = dict.fromkeys([day_of(pack.first) for pack in batch.packs] + [day_of(one.at) for one in batch.odd])
    for day in days:
        packs = [packed for packed in batch.packs if day_of(packed.first) == day]
        yield packs, [served for served in batch.odd if day_of(served.at) == day]


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
