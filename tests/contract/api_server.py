"""The API over an installation in memory, on a real server in a thread of the test."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import uvicorn
from fastapi import APIRouter
from prometheus_client import CollectorRegistry, Counter

from pipelines.api import create_api
from tests.fakes.installation import Installation


@dataclass(frozen=True, slots=True)
class Served:
    """An installation and where its API listens."""

    office: Installation
    url: str


@contextmanager
def serving(office: Installation, token: str | None = None) -> Iterator[Served]:
    app = create_api(
        office.commands,
        office.overview,
        drift=office.checked_for_drift,
        wake=office.woken.append,
        metrics=_metrics(),
        token=token,
        routers=[_signed_hook()],
    )
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    _until(lambda: server.started)
    try:
        yield Served(office, f"http://127.0.0.1:{listener.getsockname()[1]}")
    finally:
        server.should_exit = True
        thread.join(timeout=30)
        listener.close()


def _metrics() -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("promote_ticks", "Ticks", registry=registry).inc()
    return registry


def _signed_hook() -> APIRouter:
    """Stands for the webhook receiver, which verifies its callers by signature."""
    router = APIRouter(prefix="/hooks")
    for path in ("/mlflow", "/wake"):
        router.add_api_route(path, lambda: {"status": "ok"}, methods=["POST"])
    return router


def _until(holds: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.01)
