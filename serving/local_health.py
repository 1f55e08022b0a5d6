"""Which of many model servers on this machine are ready, without waiting for those that hang.

A few threads ask; whoever wants to know waits for them only a moment and takes what was known before of the
rest. A server that is ready is asked less often, and must miss several times before it counts as not ready.
"""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass

from serving.door import Door
from serving.revision import Address

ASK_SECONDS = 1.0
"""How long a server may take to say how it is."""

MOMENT_SECONDS = 0.25
"""How long a look waits for the answers."""

FIRST_SECONDS = 3.0
"""The same where a server was never asked before, so that nothing is known of it."""

FRESH_SECONDS = 2.0
"""A ready server is asked again after this long; one that is not ready at every look."""

MISSES = 3
"""A ready server that does not say so as often as this in a row is not ready."""


class _DoorClosedError(Exception):
    """Nothing can be seen of any server, so what was known of them stays."""


@dataclass(frozen=True, slots=True)
class Starting:
    """How far a server is that is not ready."""

    detail: str = ""
    """What it is at; empty where it said nothing."""
    fetched: int = 0
    """Percent of a model that is not in its image."""


@dataclass(slots=True)
class _Known:
    said: str | None = None
    """What is wrong with a server that is ready, empty where nothing is; None where it is not ready."""
    misses: int = 0
    at: float = 0.0
    starting: Starting = Starting()
    """What a server that is not ready is at."""
    asking: Future[tuple[str | None, Starting]] | None = None

    def take(self, now: float) -> None:
        """Take the answer in, once it is there."""
        if self.asking is not None and self.asking.done():
            asking, self.asking, self.at = self.asking, None, now
            if isinstance(asking.exception(), _DoorClosedError):
                return
            answered, self.starting = asking.result()
            self.misses = self.misses + 1 if answered is None else 0
            if answered is not None or self.misses >= MISSES:
                self.said = answered

    def due(self, now: float) -> bool:
        return self.asking is None and (self.said is None or self.misses > 0 or now - self.at > FRESH_SECONDS)


class Health:
    """What is known of the servers that were asked about. One look at a time."""

    def __init__(self, door: Door | None = None, threads: int = 16) -> None:
        """`door`: the way to the servers, where they are not reached directly."""
        self._door = door
        self._pool = ThreadPoolExecutor(threads, "health")
        self._known: dict[str, _Known] = {}

    def look(self, servers: Mapping[str, tuple[str, Address]]) -> Mapping[str, str | None]:
        """Of each server, known by any key, the revision that it has to be of and where it listens.

        None where the server does not say that it is ready.

        Otherwise what it says is wrong, which is empty where all is well.
        """
        self._known = {key: self._known.get(key, _Known()) for key in servers}
        now = time.monotonic()
        never_asked = any(known.at == 0.0 for known in self._known.values())
        for key, known in self._known.items():
            known.take(now)
            if known.due(now):
                known.asking = self._pool.submit(_said, *servers[key], self._door)
        asking = [known.asking for known in self._known.values() if known.asking is not None]
        wait(asking, FIRST_SECONDS if never_asked else MOMENT_SECONDS)
        for known in self._known.values():
            known.take(time.monotonic())
        return {key: known.said for key, known in self._known.items()}

    def starting(self, key: str) -> Starting:
        """What a server that was not ready at the last look said of itself."""
        return self._known[key].starting if key in self._known else Starting()


def _said(revision_id: str, address: Address, door: Door | None) -> tuple[str | None, Starting]:
    """What is wrong, None where it is not ready; and what it is at where it starts."""
    reached = door or address
    connection = http.client.HTTPConnection(reached.host, reached.port, timeout=ASK_SECONDS)
    try:
        _connect(connection, door)
        connection.request(
            "GET", f"http://{address}/health" if door else "/health", headers=door.headers if door else {}
        )
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if told["revision"] != revision_id:
            return None, Starting()
        if answer.status != 200:
            return None, Starting(str(told.get("detail", "")), int(told.get("fetched", 0)))
        return str(told["warnings"][-1]) if told.get("status") == "degraded" else "", Starting()
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, IndexError):
        return None, Starting()
    finally:
        connection.close()


def _connect(connection: http.client.HTTPConnection, door: Door | None) -> None:
    try:
        connection.connect()
    except OSError as error:
        if door is not None:
            raise _DoorClosedError from error
        raise
