"""Customers' requests to the gateway, steadily and without waiting for answers, until told to stop.

An open loop: a request goes out when its time has come, whatever became of those before, as from many
callers who do not know of each other. What is counted here is what the callers saw, so that the story's
figures do not rest on the word of the software that it is about.
"""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx
import pandas as pd

CONNECTIONS = 64
PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class Seen:
    """What the callers saw since some moment, by the version that answered, or else by what happened."""

    answered: Mapping[str, int] = field(hash=False)
    failed: Mapping[str, int] = field(hash=False)

    def since(self, earlier: Seen) -> Seen:
        return Seen(_less(self.answered, earlier.answered), _less(self.failed, earlier.failed))

    @property
    def total(self) -> int:
        return sum(self.answered.values()) + self.failures

    def __str__(self) -> str:
        named = ", ".join(f"{count:,} of {what}" for what, count in sorted(self.failed.items()))
        return f"{self.total:,} requests, {f'{self.failures:,} failed ({named})' if named else 'none failed'}"

    @property
    def failures(self) -> int:
        return sum(self.failed.values())

    def served_by(self, version: int) -> int:
        return self.answered.get(str(version), 0) + self.failed.get(str(version), 0)


def _less(now: Mapping[str, int], earlier: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(now) - Counter(earlier))


class Traffic:
    """Sends `rate` requests a second to `url`, each about one customer, in a thread of its own."""

    def __init__(self, url: str, rate: float, customers: pd.DataFrame) -> None:
        self.url = url
        self._rate = rate
        self._next = requests_about(customers)
        self._answered: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self.first: dict[str, datetime] = {}
        """When each version answered for the first time, rightly or not."""
        self._ending = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="traffic", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Send nothing more, and wait for the answers that are under way."""
        self._ending.set()
        if self._thread.is_alive():
            self._thread.join(2 * PATIENCE_SECONDS)

    def change(self, customers: pd.DataFrame) -> None:
        """From now on, requests are about these customers."""
        self._next = requests_about(customers)

    @property
    def seen(self) -> Seen:
        return Seen(dict(self._answered), dict(self._failed))

    async def _run(self) -> None:
        limits = httpx.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
        async with httpx.AsyncClient(limits=limits, timeout=PATIENCE_SECONDS) as client, asyncio.TaskGroup() as group:
            await self._opening(client)
            begun = time.monotonic()
            for number in itertools.count():
                await asyncio.sleep(max(0.0, begun + number / self._rate - time.monotonic()))
                if self._ending.is_set():
                    return
                group.create_task(self._ask(client, *next(self._next)))

    async def _opening(self, client: httpx.AsyncClient) -> None:
        """Callers come once the model answers at all; what they were told before is not counted as failed."""
        while not self._answered and not self._ending.is_set():
            await self._ask(client, *next(self._next))
            self._failed.clear()
            await asyncio.sleep(0.1)

    async def _ask(self, client: httpx.AsyncClient, body: bytes, headers: dict[str, str]) -> None:
        try:
            answer = await client.post(self.url, content=body, headers=headers)
        except httpx.HTTPError as error:
            self._failed[f"no answer, {type(error).__name__}"] += 1
            return
        version = answer.headers.get("x-model-version", f"no version, {answer.status_code}")
        self.first.setdefault(version, datetime.now(UTC))
        (self._answered if answer.is_success else self._failed)[version] += 1


def requests_about(customers: pd.DataFrame) -> Iterator[tuple[bytes, dict[str, str]]]:
    """Bodies and headers for ever; every third caller says which customer it asks about."""
    rows = customers.to_json(orient="records", lines=True).splitlines()
    for number, row in enumerate(itertools.cycle(rows)):
        named = {"x-entity-id": f"customer-{number % len(rows)}"} if number % 3 == 0 else {}
        yield b'{"dataframe_records": [%s]}' % row.encode(), {"content-type": "application/json", **named}
