"""Which hints are taken: signature, clock, replay, size and form, over a real HTTP server where it matters."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import socket
from base64 import b64encode
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from fastapi import FastAPI

from registry_hooks.webhook import (
    MOST_BYTES,
    MOST_REMEMBERED,
    Reason,
    Refused,
    Remembered,
    webhook_router,
)
from tests.contract.small_controller import SmallController, serve
from tests.fixtures.registry import free_port

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = "between MLflow and us"
ALIAS = {"entity": "model_version_alias", "action": "created", "timestamp": "t", "data": {"name": "churn"}}
TAG = {"entity": "model_version_tag", "action": "set", "data": {"name": "churn", "version": "1"}}


def as_mlflow_signs(secret: str, delivery_id: str, timestamp: str, body: str) -> str:
    """Written from MLflow's documentation, apart from the code under test."""
    digest = hmac.new(secret.encode(), f"{delivery_id}.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    return f"v1,{b64encode(digest).decode()}"


class Hooks:
    """The router with a clock to set, and what it woke."""

    def __init__(self, secret: str = SECRET, host: str = "127.0.0.1") -> None:
        self.now = NOW
        self.woken: list[str] = []
        app = FastAPI()
        app.include_router(webhook_router(secret, self.woken.append, lambda: self.now))
        self._transport = httpx.ASGITransport(app, client=(host, 50000))

    def post(self, path: str, body: str, headers: Mapping[str, str]) -> int:
        """The status of the answer."""

        async def send() -> int:
            async with httpx.AsyncClient(transport=self._transport, base_url="http://promote") as http:
                return (await http.post(path, content=body, headers=headers)).status_code

        return asyncio.run(send())

    def deliver(
        self, body: object = ALIAS, name: str = "d1", secret: str = SECRET, sent: str = "", **headers: str
    ) -> int:
        text = body if isinstance(body, str) else json.dumps(body)
        sent = sent or str(int(self.now.timestamp()))
        given = {
            "X-MLflow-Delivery-Id": name,
            "X-MLflow-Timestamp": sent,
            "X-MLflow-Signature": as_mlflow_signs(secret, name, sent, text),
        }
        kept = {k: v for k, v in {**given, **{k.replace("_", "-"): v for k, v in headers.items()}}.items() if v}
        return self.post("/hooks/mlflow", text, kept)


@pytest.fixture
def hooks() -> Hooks:
    return Hooks()


def test_a_signed_webhook_wakes_the_look_at_its_model(hooks: Hooks) -> None:
    assert hooks.deliver() == 204
    assert hooks.woken == ["churn"]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"X_MLflow_Signature": ""}, 401),
        ({"X_MLflow_Signature": "v1,"}, 401),
        ({"X_MLflow_Signature": "v1,bm90IGl0"}, 401),
        ({"secret": "another"}, 401),
        ({"X_MLflow_Delivery_Id": "changed"}, 401),
        ({"X_MLflow_Delivery_Id": ""}, 400),
        ({"X_MLflow_Timestamp": ""}, 400),
        ({"X_MLflow_Timestamp": "yesterday"}, 400),
        ({"X_MLflow_Timestamp": "9" * 400}, 400),
    ],
)
def test_what_is_not_signed_is_refused(hooks: Hooks, headers: dict[str, str], status: int) -> None:
    assert hooks.deliver(**headers) == status
    assert hooks.woken == []


@pytest.mark.parametrize(("apart", "status"), [(-301, 401), (-299, 204), (299, 204), (301, 401)])
def test_the_clock_window(hooks: Hooks, apart: int, status: int) -> None:
    assert hooks.deliver(sent=str(int(NOW.timestamp()) + apart)) == status


def test_a_delivery_counts_once(hooks: Hooks) -> None:
    assert [hooks.deliver(), hooks.deliver(), hooks.deliver(name="d2")] == [204, 409, 204]
    assert hooks.woken == ["churn", "churn"]


def test_a_refused_delivery_does_not_use_up_its_id(hooks: Hooks) -> None:
    assert [hooks.deliver(secret="another"), hooks.deliver()] == [401, 204]


@pytest.mark.parametrize(
    "body", ["", "{", "[]", "null", '"churn"', "[" * 50_000, "{}", json.dumps({**ALIAS, "data": {"name": 7}})]
)
def test_a_signed_body_that_is_no_webhook_is_refused(hooks: Hooks, body: str) -> None:
    assert hooks.deliver(body) == 400
    assert hooks.woken == []


def test_own_tags_wake_nobody_and_others_do(hooks: Hooks) -> None:
    for n, key in enumerate(["promote.state", "reviewed"]):
        assert hooks.deliver({**TAG, "data": {"name": "churn", "version": "1", "key": key}}, name=str(n)) == 204
    assert hooks.woken == ["churn"]


def test_without_a_secret_every_webhook_is_refused() -> None:
    hooks = Hooks(secret="")
    assert hooks.deliver(secret="") == 401


def test_a_long_body_is_refused(hooks: Hooks) -> None:
    assert hooks.deliver(json.dumps(ALIAS).ljust(MOST_BYTES)) == 204
    assert hooks.deliver(json.dumps(ALIAS).ljust(MOST_BYTES + 1), name="d2") == 413


@pytest.mark.parametrize("announced", ["content-length: 10000000000", "transfer-encoding: chunked"])
def test_a_long_body_is_refused_before_it_came(announced: str) -> None:
    with serve(SmallController(), free_port()) as controller:
        address = controller.url.removeprefix("http://")
        with socket.create_connection((address.split(":")[0], int(address.split(":")[1])), timeout=10) as stranger:
            stranger.sendall(f"POST /hooks/mlflow HTTP/1.1\r\nhost: {address}\r\n{announced}\r\n\r\n".encode())
            if "chunked" in announced:
                stranger.sendall(b"%x\r\n" % (MOST_BYTES + 1) + b"x" * (MOST_BYTES + 1) + b"\r\n")
            assert stranger.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_each_kind_of_refusal_is_logged_once_a_minute(hooks: Hooks, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "registry_hooks.webhook")
    for second in (0, 30, 59, 60):
        hooks.now = NOW + timedelta(seconds=second)
        hooks.deliver(secret="another", name=str(second))
        hooks.deliver("{", name=f"{second} malformed")
    wrong, malformed = Reason.BAD_SIGNATURE.value, Reason.MALFORMED.value
    told = [record.getMessage() for record in caplog.records if record.name == "registry_hooks.webhook"]
    assert [next(r for r in (wrong, malformed) if r in text) for text in told] == [wrong, malformed] * 2


def test_deliveries_are_remembered_for_the_window_and_never_too_many() -> None:
    remembered = Remembered()
    remembered.remember("first", NOW)
    with pytest.raises(Refused):
        remembered.remember("first", NOW + timedelta(minutes=10))
    remembered.remember("first", NOW + timedelta(minutes=10, seconds=1))
    for n in range(MOST_REMEMBERED):
        remembered.remember(str(n), NOW + timedelta(minutes=11))
    remembered.remember("first", NOW + timedelta(minutes=11))
