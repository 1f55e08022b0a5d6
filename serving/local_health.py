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


@dataclass(slots=True)
class _Known:
    said: str | None = None
    """What is wrong with a server that is ready, empty where nothing is; None where it is not ready."""
    misses: int = 0
    at: float = 0.0
    asking: Future[str | None] | None = None

    def take(self, now: float) -> None:
        """Take the answer in, once it is there."""
        if self.asking is not None and self.asking.done():
            answered, self.asking, self.at = self.asking.result(), None, now
            self.misses = self.misses + 1 if answered is None else 0
            if answered is not None or self.misses >= MISSES:
                self.said = answered

    def due(self, now: float) -> bool:
        return self.asking is None and (self.said is None or self.misses > 0 or now - self.at > FRESH_SECONDS)


class Health:
    """What is known of the servers that were asked about. One look at a time."""

    def __init__(self, host: str, threads: int = 16) -> None:
        self._host = host
        self._pool = ThreadPoolExecutor(threads, "health")
        self._known: dict[str, _Known] = {}

    def look(self, ports: Mapping[str, int]) -> Mapping[str, str | None]:
        """For each revision id None where the server at its port does not say that it is ready.

        Otherwise what it says is wrong, which is empty where all is well.
        """
        self._known = {key: self._known.get(key, _Known()) for key in ports}
        now = time.monotonic()
        never_asked = any(known.at == 0.0 for known in self._known.values())
        for key, known in self._known.items():
            known.take(now)
            if known.due(now):
                known.asking = self._pool.submit(_said, self._host, ports[key], key)
        asking = [known.asking for known in self._known.values() if known.asking is not None]
        wait(asking, FIRST_SECONDS if never_asked else MOMENT_SECONDS)
        for known in self._known.values():
            known.take(time.monotonic())
        return {key: known.said for key, known in self._known.items()}


def _said(host: str, port: int, revision_id: str) -> str | None:
    connection = http.client.HTTPConnection(host, port, timeout=ASK_SECONDS)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        told = json.loads(answer.read())
        if answer.status != 200 or told["revision"] != revision_id:
            return None
        return str(told["warnings"][-1]) if told.get("status") == "degraded" else ""
    except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError, IndexError):
        return None
    finally:
        connection.close()
