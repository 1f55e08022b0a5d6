"""The prediction log as a server sees it: it takes note of requests, and a process of its own makes tables and files.

A second thread would want Python's lock, and files made beside the server would push out of the processor's caches what
it works with. So all that the server does is to put a hundred requests together and hand them over (`pack`). It never
waits for that: what the other process does not take in yet stays here, and whatever is not known to be in a file is
bounded in rows and in bytes, both processes together. More than that is dropped and counted. So is what a writer had
that died; another one takes its place. The thread here does nothing but the little that nobody else comes by to do.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import threading
import time

from serving.prediction_log_entry import NOTHING_PRIVATE, Order, Origin, Privacy, Served, Stored
from serving.prediction_log_pack import pack, rows_of, size_of
from serving.prediction_log_process import GoneError, Parcel, WriterProcess

_logger = logging.getLogger(__name__)

_PACK = 128
"""Requests that are handed over together,"""
_PACK_ROWS, _PACK_BYTES = 4096, 1_000_000
"""and how many rows and bytes at most: what takes a fraction of a millisecond."""

_ALL = 2**64
"""Positions of requests are below it."""

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 30.0
"""Seconds before another writer takes the place of one that died; each time twice as long."""

_LAST_SECONDS = 5.0
"""How long a writer that was killed may take to be gone."""

_SETTLED_SECONDS = 60.0
"""A writer that lived so long did not die of what the one before it died of."""


class PredictionLog:
    """Takes note of what was served, and has it written."""

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
        `OSError` where there can be no such log.
        """
        self.dropped = 0
        """Rows that were not written: too many waited, the storage failed, or the process that had them died."""
        self.written = 0
        """Rows that can be read."""
        self.replaced = 0
        """How many writers died and were replaced."""
        self.trouble = ""
        """Why the last file could not be written; empty where it was."""
        self._order = Order(url, origin, privacy)
        self._rows, self._seconds, self._capacity, self._memory = rows, seconds, capacity, memory
        self._below = int(sample * _ALL)
        self._loose: list[Served] = []
        """What is not packed yet."""
        self._loose_rows, self._full = 0, 1
        """Its rows, and how many requests are packed next."""
        self._waiting, self._bytes = 0, 0
        """Rows and bytes of what is packed and not known to be in a file,"""
        self._due_rows, self._due_bytes = 0, 0
        """and of what the writer was not asked to write yet."""
        self._lock = threading.Lock()
        self._ends = threading.Event()
        self._closed = False
        """Whether nothing is taken note of any more."""
        self._writer, self._born = WriterProcess(self._order), time.monotonic()
        self._pause = 0.0
        """Before the next writer."""
        self._tick_at = time.monotonic() + seconds
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
        """Have written what waits, and end the writer: by force where that takes longer."""
        self._ends.set()
        self._writer.wake()
        self._thread.join(seconds)
        if self._thread.is_alive():
            self._writer.kill()
            self._thread.join(_LAST_SECONDS)

    def _gather(self) -> None:
        """Hand over what is loose, or drop it where too much waits. The lock is held."""
        loose, self._loose, self._loose_rows = self._loose, [], 0
        rows, size = sum(map(rows_of, loose)), size_of(loose[-1]) * len(loose)
        if self._waiting + rows > self._capacity or self._bytes + size > self._memory or self._closed:
            self.dropped += rows
            return
        try:
            packed = pack(loose) if size <= _PACK_BYTES else None
            parcel = Parcel.of(loose if packed is None else packed, rows)
        except (pickle.PicklingError, TypeError, AttributeError) as error:
            self._lose(rows, str(error), str(error))
            return
        self._full = max(1, min(_PACK, _PACK_BYTES * len(loose) // size, self._capacity - self._waiting - rows))
        self._hand_over(parcel)

    def _hand_over(self, parcel: Parcel) -> None:
        self._waiting += parcel.rows
        self._bytes += parcel.size
        self._due_rows += parcel.rows
        self._due_bytes += parcel.size
        self._writer.send(parcel)
        if self._due_rows >= self._rows or self._due_bytes >= self._memory // 2:
            self._ask()

    def _ask(self) -> None:
        """Have all that was handed over put into a file."""
        self._writer.send(Parcel.asking(self._due_rows, self._due_bytes))
        self._due_rows, self._due_bytes = 0, 0

    def _run(self) -> None:
        try:
            while True:
                self._attend()
        except GoneError as error:
            _logger.debug("the prediction log has ended: %s", error)

    def _attend(self) -> None:
        """`GoneError` once there is nothing more to do, and nobody to do it."""
        try:
            for asked, stored in self._writer.attend(self._patience()):
                self._count(asked, stored)
        except GoneError as error:
            self._count_lost(str(error))
            self._replace(error)
        if self._patience() == 0.0:
            self._tick()

    def _patience(self) -> float | None:
        """Seconds until the next tick."""
        if self._closed:
            return None
        return 0.0 if self._ends.is_set() else max(0.0, self._tick_at - time.monotonic())

    def _tick(self) -> None:
        """What nobody else comes by to do."""
        self._tick_at = time.monotonic() + self._seconds
        with self._lock:
            if self._loose:
                self._gather()
            if self._due_rows:
                self._ask()
            if self._ends.is_set():
                self._closed, self._full = True, 0
                self._writer.finish()

    def _count(self, asked: Parcel, stored: Stored) -> None:
        with self._lock:
            self._waiting -= asked.rows
            self._bytes -= asked.size
            self.written += stored.written
            self.trouble = ""
            if asked.rows > stored.written:
                self._lose(asked.rows - stored.written, stored.why, stored.error)

    def _lose(self, rows: int, why: str, error: str) -> None:
        self.dropped += rows
        self.trouble = f"rows of the prediction log were lost: {why}"
        _logger.warning("%d rows of the prediction log were lost: %s", rows, error)

    def _count_lost(self, why: str) -> None:
        """Of a writer that is gone, all but what it was not handed is lost."""
        with self._lock:
            rest = self._writer.rest()
            lost = self._waiting - sum(parcel.rows for parcel in rest)
            self._waiting -= lost
            self._bytes = sum(parcel.size for parcel in rest)
            if lost:
                self._lose(lost, why, why)

    def _replace(self, gone: GoneError) -> None:
        """Another writer; `GoneError` where there is nothing left to do for one, or no time."""
        if time.monotonic() - self._born > _SETTLED_SECONDS:
            self._pause = 0.0
        while not self._closed or self._waiting:
            self.trouble = self.trouble or f"the prediction log waits: {gone}"
            self._ends.wait(self._pause)
            self._pause = min(max(_FIRST_PAUSE, 2 * self._pause), _LONGEST_PAUSE)
            last = self._ends.is_set()
            try:
                self._go_on_with(WriterProcess(self._order))
            except OSError as error:
                _logger.warning("the prediction log waits: %s", error)
                if last:
                    break
            else:
                return
        self._give_up(gone)

    def _go_on_with(self, writer: WriterProcess) -> None:
        with self._lock:
            for parcel in self._writer.rest():
                writer.send(parcel)
            self._writer, self._born = writer, time.monotonic()
            self.replaced += 1
            self.trouble = ""
            self._due_rows, self._due_bytes = self._waiting, self._bytes
            if self._closed:
                self._ask()
                writer.finish()

    def _give_up(self, gone: GoneError) -> None:
        with self._lock:
            if self._loose:
                self._gather()
            self._closed, self._full = True, 0
            if self._waiting:
                self._lose(self._waiting, str(gone), str(gone))
                self._waiting = 0
        raise gone


def _position(request_id: str) -> int:
    """The same number below 2**64 for the same request, and any other for another one."""
    return int.from_bytes(hashlib.blake2b(request_id.encode(), digest_size=8).digest(), "big")
