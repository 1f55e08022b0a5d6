"""The access logs of a gateway's replicas elsewhere, read in pieces through `serving.gateway_pod`.

Replicas come and go while logs are always the same ones in the same order, so each log follows one replica, and when
that is gone another one that nobody follows. What a replica had written and nobody had read is gone with it.
"""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

from serving.gateway_pod import FILE_HEADER, NOW_HEADER, OFFSET_HEADER

Ask: TypeAlias = Callable[[str, str], tuple[int, Mapping[str, str], bytes]]
"""Sends a method and a path to a replica: status, headers by their small names, body. Raises `OSError`."""
Replicas: TypeAlias = Callable[[], Mapping[str, Ask]]
"""The replicas there are, by their names, which are never given twice. Raises `OSError`."""
_NEVER = 2**62
"""No file has so many bytes."""


class RemoteLog:
    """`Log` of one replica at a time."""

    def __init__(self, logs: RemoteLogs) -> None:
        self.counts = Counter[str]()
        self.moved = False
        self.replica = ""
        """That is followed; empty for none."""
        self._logs = logs
        self._file, self._offset = 0, 0
        self._ahead: float | None = None
        """Seconds between the replica's clock and the monotonic one here."""

    def state(self) -> list[Any]:
        return [self.replica, self._file, self._offset, dict(self.counts)]

    def restore(self, state: Sequence[Any] | None) -> None:
        self.replica, self._file, self._offset, counts = state or ("", 0, 0, {})
        self.counts = Counter(counts)

    def read(self, most: int) -> bytes:
        asked = self._logs.followed(self)
        if asked is None:
            return b""
        path = f"/log?file={self._file}&offset={self._offset}&most={most}"
        headers, data = _answered(asked, "GET", path)
        file = int(headers[FILE_HEADER])
        self.moved |= self._file not in (0, file)
        self._file, self._offset = file, int(headers[OFFSET_HEADER])
        if (told := headers.get(NOW_HEADER)) is not None:
            self._ahead = float(told) - time.monotonic()
        return data

    def now(self) -> float | None:
        """See `Log`; of a replica that is gone, its clock goes on."""
        return None if self._ahead is None else self._ahead + time.monotonic()

    def tidy(self) -> None:
        if self.moved:
            self._tell(size=_NEVER)
        self.moved = False

    def rotate(self, size: int) -> None:
        """The replica itself knows how much it has written; it is told only where there is something to look at."""
        if self._offset >= size:
            self._tell(size)

    def begin(self, replica: str) -> None:
        """Follow it from its beginning."""
        self.counts["replaced"] += self.replica != ""
        self.replica, self._file, self._offset = replica, 0, 0

    def _tell(self, size: int) -> None:
        asked = self._logs.followed(self)
        if asked is not None and self._file:
            _answered(asked, "POST", f"/log?file={self._file}&size={size}")


class RemoteLogs:
    """So many logs, and which replica each of them follows."""

    def __init__(self, count: int, replicas: Replicas) -> None:
        self.logs = tuple(RemoteLog(self) for _ in range(count))
        self._replicas = replicas
        self._guard = threading.Lock()

    def followed(self, log: RemoteLog) -> Ask | None:
        """How its replica is asked; None where there is none for it."""
        with self._guard:
            there = self._replicas()
            if log.replica not in there:
                taken = {other.replica for other in self.logs}
                free = next((name for name in sorted(there) if name not in taken), None)
                if free is None:
                    return None
                log.begin(free)
            return there[log.replica]


def _answered(asked: Ask, method: str, path: str) -> tuple[Mapping[str, str], bytes]:
    status, headers, body = asked(method, path)
    if status >= 300:
        raise OSError(f"the gateway answers {status} to {method} {path}: {body[:200]!r}")
    return headers, body
