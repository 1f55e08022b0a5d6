"""The two calls that our MLflow app makes to a controller, and MLflow's webhooks, answered by a real HTTP server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated

import uvicorn
from fastapi import Body, FastAPI

from registry_hooks.webhook import webhook_router


@dataclass(slots=True)
class SmallController:
    """Remembers whom it was woken for and asked about; refuses what `forbidden` maps to a reason."""

    url: str = ""
    secret: str = "a secret of the tests"
    woken: list[str] = field(default_factory=list)
    asked: list[dict[str, str]] = field(default_factory=list)
    forbidden: dict[str, str] = field(default_factory=dict)
    """Reason by model."""
    slowness: float = 0.0
    """Seconds before it answers whether a move is allowed."""

    def app(self) -> FastAPI:
        app = FastAPI()
        app.include_router(webhook_router(self.secret, self.woken.append, lambda: datetime.now(UTC)))

        @app.post("/hooks/wake")
        def wake(hint: Annotated[dict[str, str], Body()]) -> None:
            self.woken.append(hint["model"])

        @app.post("/hooks/allowed")
        def allowed(move: Annotated[dict[str, str], Body()]) -> dict[str, object]:
            self.asked.append(move)
            time.sleep(self.slowness)
            reason = self.forbidden.get(move["model"], "")
            return {"allowed": not reason, "reason": reason}

        return app


@contextmanager
def serve(controller: SmallController, port: int) -> Iterator[SmallController]:
    """Answer at `port` until the block ends."""
    controller.url = f"http://127.0.0.1:{port}"
    server = uvicorn.Server(uvicorn.Config(controller.app(), host="127.0.0.1", port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        until(lambda: server.started)
        yield controller
    finally:
        server.should_exit = True
        thread.join()


def until(true: Callable[[], object], seconds: float = 20.0) -> None:
    """Poll until `true`, failing after `seconds`."""
    began = time.monotonic()
    while not true():
        assert time.monotonic() - began < seconds, f"did not come true within {seconds} s"
        time.sleep(0.01)
