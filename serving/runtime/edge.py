"""What happens to every request whatever its path: an id, the headers of the answer, and the metrics.

Plain ASGI, so that it costs next to nothing and sees the answers of every layer.
"""

from __future__ import annotations

import time
import uuid
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from serving.runtime.service import Service, State

_PREDICTIONS = ("/invocations", "/infer")


class Metrics:
    """The figures of one server, for Prometheus."""

    def __init__(self, service: Service) -> None:
        self.registry = CollectorRegistry()
        labels = ("model", "version", "code")
        self._requests = Counter("promote_requests", "Prediction requests", labels, registry=self.registry)
        buckets = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
        self._seconds = Histogram(
            "promote_request_seconds", "Time to answer", labels[:2], registry=self.registry, buckets=buckets
        )
        origin, log = service.settings.origin, service.log
        self._of = (origin.model, str(origin.version))
        for name, text in (("written", "Rows written"), ("dropped", "Rows lost")):
            gauge = Gauge(f"promote_prediction_log_{name}", f"{text} by the prediction log", registry=self.registry)
            gauge.set_function(lambda name=name: getattr(log, name, 0))  # type: ignore[misc]

    def count(self, code: int, seconds: float) -> None:
        self._requests.labels(*self._of, str(code)).inc()
        self._seconds.labels(*self._of).observe(seconds)


class Edge:
    """ASGI middleware around the whole application."""

    def __init__(self, app: Any, service: Service, metrics: Metrics) -> None:
        self._app, self._service, self._metrics = app, service, metrics
        self._version = str(service.settings.origin.version).encode()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, codes = time.perf_counter(), [500]
        scope["request_id"] = _request_id(scope)

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                codes[0] = message["status"]
                message["headers"] = [*message.get("headers", ()), *self._headers(scope)]
            await send(message)

        try:
            await self._app(scope, receive, answer)
        finally:
            if scope["path"].endswith(_PREDICTIONS):
                self._metrics.count(codes[0], time.perf_counter() - began)

    def _headers(self, scope: Any) -> list[tuple[bytes, bytes]]:
        headers = [(b"x-model-version", self._version), (b"x-request-id", scope["request_id"].encode("latin-1"))]
        closing = self._service.state is State.STOPPING
        return [*headers, (b"connection", b"close")] if closing else headers


def header(scope: Any, name: bytes) -> str | None:
    """The first header of that (lower-case) name."""
    return next((value.decode("latin-1") for key, value in scope["headers"] if key == name), None)


def _request_id(scope: Any) -> str:
    given = header(scope, b"x-request-id") or ""
    return given if 0 < len(given) <= 200 and given.isprintable() else str(uuid.uuid4())
