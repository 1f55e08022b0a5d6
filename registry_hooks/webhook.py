"""Hints from MLflow by its own webhooks, which are signed. They decide nothing.

A hint only names a model to look at, so that a forged or lost one does no harm beyond a request to MLflow.
It is still checked in full, because whoever can make us ask for things can keep us busy: size, form, signature
as MLflow makes it (HMAC-SHA256 over ``id.timestamp.body``), clock, and whether it came before.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import logging
import re
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from fastapi import APIRouter, Request, Response

logger = logging.getLogger(__name__)

MOST_BYTES = 64 * 1024
"""A longer body is refused before it is read."""
WINDOW = timedelta(minutes=5)
"""How far MLflow's clock and ours may be apart, and for how long a delivery is remembered."""
MOST_REMEMBERED = 10_000
"""Deliveries remembered at most; only signed ones get that far."""
LOG_EVERY = timedelta(minutes=1)
"""Each kind of refusal is logged once in this time."""
OWN_TAGS = "promote."
"""Tags that this software sets itself; hearing of them is no news."""

SECONDS = re.compile(r"[0-9]{1,12}")
SIGNATURE, TIMESTAMP, DELIVERY_ID = "x-mlflow-signature", "x-mlflow-timestamp", "x-mlflow-delivery-id"


class Reason(StrEnum):
    """Why a hint was refused."""

    OVERSIZED = "body over 64 KiB"
    """Nothing that MLflow sends is near that."""
    MALFORMED = "not a webhook of MLflow"
    """A header is missing, or the body is not the JSON that MLflow sends."""
    BAD_SIGNATURE = "wrong signature"
    """Signed with another secret, changed on the way, or not signed."""
    STALE = "time stamp outside the clock window"
    """Kept back and sent later, or a clock is wrong."""
    REPLAYED = "seen before"
    """The same delivery again: by an attacker, or by MLflow, which repeats what was not answered."""


STATUS = {
    Reason.OVERSIZED: 413,
    Reason.MALFORMED: 400,
    Reason.BAD_SIGNATURE: 401,
    Reason.STALE: 401,
    Reason.REPLAYED: 409,
}


class Refused(Exception):
    """The hint is not taken."""

    def __init__(self, reason: Reason) -> None:
        super().__init__(reason.value)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class Delivery:
    """One webhook as it came."""

    id: str
    timestamp: int
    signature: str
    body: bytes

    @classmethod
    def parse(cls, headers: Mapping[str, str], body: bytes) -> Delivery:
        delivery_id, timestamp = headers.get(DELIVERY_ID, ""), headers.get(TIMESTAMP, "")
        if not delivery_id or not SECONDS.fullmatch(timestamp):
            raise Refused(Reason.MALFORMED)
        return cls(delivery_id, int(timestamp), headers.get(SIGNATURE, ""), body)


class Remembered:
    """The deliveries of the last minutes, bounded."""

    def __init__(self) -> None:
        self._seen: OrderedDict[str, datetime] = OrderedDict()

    def remember(self, delivery_id: str, now: datetime) -> None:
        """Raises `Refused` where it came before."""
        while self._seen and (len(self._seen) >= MOST_REMEMBERED or self._oldest() < now - 2 * WINDOW):
            self._seen.popitem(last=False)
        if delivery_id in self._seen:
            raise Refused(Reason.REPLAYED)
        self._seen[delivery_id] = now

    def _oldest(self) -> datetime:
        return next(iter(self._seen.values()))


class RefusalLog:
    """Logs each kind of refusal once in a while, so that a flood of them cannot fill the disk."""

    def __init__(self) -> None:
        self._last: dict[Reason, datetime] = {}

    def note(self, reason: Reason, path: str, now: datetime) -> None:
        if reason not in self._last or now - self._last[reason] >= LOG_EVERY:
            self._last[reason] = now
            logger.warning("refused a hint at %s: %s (logged once a minute)", path, reason.value)


def signature(secret: str, delivery: Delivery) -> str:
    """As MLflow signs: ``v1,`` and the base64 of HMAC-SHA256 over ``id.timestamp.body``."""
    signed = f"{delivery.id}.{delivery.timestamp}.".encode() + delivery.body
    return "v1," + base64.b64encode(hmac.new(secret.encode(), signed, hashlib.sha256).digest()).decode()


def verify(secret: str, delivery: Delivery, now: datetime) -> None:
    """Raises `Refused` unless it was signed with `secret`, which must not be empty, and just now."""
    if not secret or not hmac.compare_digest(signature(secret, delivery).encode(), delivery.signature.encode()):
        raise Refused(Reason.BAD_SIGNATURE)
    if abs(now.timestamp() - delivery.timestamp) > WINDOW.total_seconds():
        raise Refused(Reason.STALE)


def model_of(body: bytes) -> str | None:
    """The model that a webhook of MLflow is about; None where it only tells of our own tags."""
    match _parsed(body):
        case {"entity": "model_version_tag", "data": {"key": str(key)}} if key.startswith(OWN_TAGS):
            return None
        case {"entity": str(), "action": str(), "data": {"name": str(name)}} if name:
            return name
    raise Refused(Reason.MALFORMED)


def webhook_router(secret: str, wake: Callable[[str], None], clock: Callable[[], datetime]) -> APIRouter:
    """Takes webhooks at ``/hooks/mlflow`` and calls `wake`, which must not wait, with the model.

    Without a `secret` every one is refused.
    """
    router = APIRouter(prefix="/hooks", tags=["hooks"])
    remembered, refusals = Remembered(), RefusalLog()

    def checked(request: Request, body: bytes) -> str | None:
        now = clock()
        delivery = Delivery.parse(request.headers, body)
        verify(secret, delivery, now)
        remembered.remember(delivery.id, now)
        return model_of(body)

    @router.post("/mlflow", status_code=204)
    async def mlflow(request: Request) -> Response:
        """A webhook of MLflow."""
        try:
            hinted = checked(request, await _body(request))
        except Refused as refused:
            refusals.note(refused.reason, request.url.path, clock())
            return Response(refused.reason.value, STATUS[refused.reason])
        if hinted is not None:
            wake(hinted)
        return Response(status_code=204)

    return router


async def _body(request: Request) -> bytes:
    """The body, or `Refused` as soon as it is clear that it is too long."""
    body = b""
    announced = request.headers.get("content-length", "0")
    if not announced.isdecimal() or int(announced[:12]) > MOST_BYTES:
        raise Refused(Reason.OVERSIZED)
    async for chunk in request.stream():
        body += chunk
        if len(body) > MOST_BYTES:
            raise Refused(Reason.OVERSIZED)
    return body


def _parsed(body: bytes) -> object:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise Refused(Reason.MALFORMED) from None
