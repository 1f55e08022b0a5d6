"""Steady load on the gateway: requests leave at a fixed rate, whether or not earlier ones are answered.

A generator that waits for answers slows down with the server and hides what clients would have met. This one
keeps its rate and its count: what it could not send, because too many requests were open, counts as failed.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from urllib.parse import SplitResult, urlsplit

import h11

Payload = bytes | Callable[[int], bytes]
"""A request's body, or how to make that of the n-th request."""


@dataclass(frozen=True, slots=True)
class LoadResult:
    """What came of the requests."""

    sent: int
    ok: int
    failed: Mapping[str, int] = field(hash=False)
    """Requests that failed, by status or by the name of what happened instead of an answer."""
    latencies: tuple[float, ...] = field(repr=False)
    """Seconds from when a request was due to its last byte, of every answered request, in order of answer."""

    def latency(self, share: float) -> float:
        """The latency that `share` of the answered requests did not exceed; infinite where none was answered."""
        ordered = sorted(self.latencies) or [math.inf]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def load(
    url: str,
    payload: Payload,
    rate: float,
    seconds: float,
    *,
    headers: Mapping[str, str] | None = None,
    patience: float = 30.0,
    most_open: int = 500,
) -> LoadResult:
    """POST `payload` to `url` `rate` times a second, for `seconds`; ends when the last one is answered.

    A client waits `patience` seconds for an answer.
    """
    sender = _Sender(urlsplit(url), {"content-type": "application/json", **(headers or {})}, patience)
    loop = asyncio.get_running_loop()
    begun, open_requests, count = loop.time(), set[asyncio.Task[None]](), int(rate * seconds)
    for number in range(count):
        due = begun + number / rate
        await asyncio.sleep(max(0.0, due - loop.time()))
        if len(open_requests) >= most_open:
            sender.failed["too many open"] += 1
            continue
        body = payload(number) if callable(payload) else payload
        task = asyncio.create_task(sender.send(body, due))
        open_requests.add(task)
        task.add_done_callback(open_requests.discard)
    await asyncio.gather(*open_requests)
    await sender.close()
    return LoadResult(count, sender.ok, dict(sender.failed), tuple(sender.latencies))


@dataclass(slots=True)
class _Connection:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    state: h11.Connection


class _Sender:
    """Sends over as many connections as requests are open, and uses them again."""

    def __init__(self, url: SplitResult, headers: Mapping[str, str], patience: float) -> None:
        self._host, self._port = url.hostname or "127.0.0.1", url.port or 80
        self._target = (url.path or "/") + (f"?{url.query}" if url.query else "")
        self._headers = [*headers.items(), ("host", url.netloc)]
        self._patience = patience
        self._idle: list[_Connection] = []
        self.ok = 0
        self.failed: Counter[str] = Counter()
        self.latencies: list[float] = []

    async def send(self, body: bytes, due: float) -> None:
        try:
            status = await asyncio.wait_for(self._exchange(body), self._patience)
        except (OSError, TimeoutError, h11.ProtocolError, EOFError) as error:
            self.failed[type(error).__name__] += 1
            return
        self.latencies.append(asyncio.get_running_loop().time() - due)
        if status < 400:
            self.ok += 1
        else:
            self.failed[str(status)] += 1

    async def close(self) -> None:
        for connection in self._idle:
            await _hang_up(connection)

    async def _exchange(self, body: bytes) -> int:
        connection = self._idle.pop() if self._idle else await self._connect()
        try:
            await self._write(connection, body)
            return await _read(connection)
        finally:
            if connection.state.our_state is h11.DONE and connection.state.their_state is h11.DONE:
                connection.state.start_next_cycle()
                self._idle.append(connection)
            else:
                await _hang_up(connection)

    async def _connect(self) -> _Connection:
        return _Connection(*await asyncio.open_connection(self._host, self._port), h11.Connection(h11.CLIENT))

    async def _write(self, connection: _Connection, body: bytes) -> None:
        head = [*self._headers, ("content-length", str(len(body)))]
        parts = h11.Request(method="POST", target=self._target, headers=head), h11.Data(body), h11.EndOfMessage()
        connection.writer.write(b"".join(connection.state.send(part) or b"" for part in parts))
        await connection.writer.drain()


async def _read(connection: _Connection) -> int:
    status = 0
    while True:
        event = connection.state.next_event()
        if event is h11.NEED_DATA:
            connection.state.receive_data(await connection.reader.read(65536))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.EndOfMessage):
            return status
        elif isinstance(event, h11.ConnectionClosed):
            raise EOFError("closed before an answer")


async def _hang_up(connection: _Connection) -> None:
    connection.writer.close()
    with suppress(OSError):
        await connection.writer.wait_closed()


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("url")
    arguments.add_argument("payload", help="the body, as text")
    arguments.add_argument("--rate", type=float, default=200.0, help="requests per second")
    arguments.add_argument("--seconds", type=float, default=10.0)
    given = arguments.parse_args()
    result = asyncio.run(load(given.url, given.payload.encode(), given.rate, given.seconds))
    summary = asdict(result) | {"latencies": {"p50": result.latency(0.5), "p99": result.latency(0.99)}}
    print(json.dumps(summary, indent=1))


if __name__ == "__main__":
    main()
