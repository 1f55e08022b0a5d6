"""uvicorn's HTTP protocol with an end to its patience: headers too large, clients that send or read too slowly.

Nothing is timed per request. Every connection is looked at once in a while: what has not moved on since an earlier
look, for longer than it may, is cut. So a limit is exact to about a second and costs a request next to nothing.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

TASK = "promote.task"
"""Where the scope of a request names the task that is cancelled when its client goes away."""

_AT_ONCE = struct.pack("ii", 1, 0)
"""SO_LINGER of a socket whose unsent bytes are dropped when it is closed."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much and how slowly a client may send, and how slowly it may read."""

    header_bytes: int
    header_seconds: float
    body_seconds: float
    write_seconds: float

    @property
    def look_seconds(self) -> float:
        """How often connections are looked at."""
        return min(1.0, min(self.header_seconds, self.body_seconds, self.write_seconds) / 4)


class HeadersTooLargeError(Exception):
    """The request line and headers are over the limit. (The parser passes on no exception but its own.)"""


class LimitedProtocol(HttpToolsProtocol):
    """One connection. What is said per class here is said per server: uvicorn makes the connections."""

    limits: Limits
    counted: Callable[[int], None]
    """Called with the number of connections whenever it changes."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._stage: Any = None
        """What the last look saw the client at, and since when."""
        self._since = 0.0
        self._unread = self._piece = 0
        """Bytes of unfinished headers before the last piece, and of that."""
        self._too_large = False
        self._before: list[Any] = []
        """Requests that came on this connection before the last one and may not be answered yet."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]
        type(self).counted(len(self.connections))

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        type(self).counted(len(self.connections))
        for cycle in (*self._before, self.cycle):
            if cycle is not None and not cycle.response_complete:
                cycle.disconnected = True
                if task := cycle.scope.get(TASK):
                    task.cancel()

    def data_received(self, data: bytes) -> None:
        self._piece = len(data)
        super().data_received(data)
        if self.cycle is not None and self.cycle.scope is self.scope:
            self._unread = 0
            return
        self._unread += self._piece
        if self._unread > self.limits.header_bytes and not self.transport.is_closing():
            self.refuse(431, "the headers are too large")

    def on_headers_complete(self) -> None:
        if self._unread + self._piece > self.limits.header_bytes and self._size() > self.limits.header_bytes:
            self._too_large = True
            raise HeadersTooLargeError
        before = self.cycle
        super().on_headers_complete()
        if self.pipeline:
            self._before.append(before)
        elif self._before:
            self._before.clear()

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - uvicorn's own words
        """uvicorn calls this where the parser fails."""
        if self._too_large:
            self.refuse(431, "the headers are too large")
        else:
            self.refuse(400, "this is not HTTP")

    def refuse(self, status: int, message: str) -> None:
        """Answer with an error and close the connection, whatever is still to come."""
        body = json.dumps({"error_code": "BAD_REQUEST", "message": message}).encode()
        headers = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n" % len(body)
        self.transport.write(STATUS_LINE[status] + headers + body)
        self.transport.close()

    def look(self, now: float) -> None:
        """Cut the connection if its client has been at the same thing for too long."""
        stage, of, limit, cut = self._at()
        if self._stage is None or stage != self._stage[0] or of is not self._stage[1]:
            self._stage, self._since = (stage, of), now
        elif cut is not None and now - self._since > limit:
            cut()

    def _at(self) -> tuple[str, Any, float, Callable[[], None] | None]:
        """What the client is at, with what, for how long it may be, and what ends it."""
        limits, cycle = self.limits, self.cycle
        if self.transport.get_write_buffer_size():
            return "reads", None, limits.write_seconds, self._reset
        if cycle is not None and not cycle.response_complete:
            if cycle.more_body and not cycle.response_started:
                return "sends the body", cycle, limits.body_seconds, self._too_slow
            return "waits", cycle, 0.0, None
        if self.scope is not None and (cycle is None or cycle.scope is not self.scope):
            return "sends headers", self.scope, limits.header_seconds, self._too_slow
        return "rests", None, 0.0, None

    def _reset(self) -> None:
        """End the connection at once: the system keeps nothing of what the client did not read."""
        self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
        self.transport.abort()

    def _too_slow(self) -> None:
        self.refuse(408, "the request took too long to come")

    def _size(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)


def limited(limits: Limits, counted: Callable[[int], None]) -> type[LimitedProtocol]:
    """The protocol with these limits."""
    return type("Limited", (LimitedProtocol,), {"limits": limits, "counted": staticmethod(counted)})


def look(connections: Iterable[Any], now: float) -> None:
    """Look at every connection."""
    for connection in list(connections):
        connection.look(now)
