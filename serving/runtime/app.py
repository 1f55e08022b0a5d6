"""The routes of the model server: MLflow's scoring protocol, the Open Inference Protocol, health, metrics."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import mlflow.version
from fastapi import APIRouter, FastAPI, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from serving.runtime import open_inference
from serving.runtime.edge import Edge, Metrics, header
from serving.runtime.scoring import Answer, Scorer, failure
from serving.runtime.service import Caller, Service, State

MODES = ("live", "shadow", "replay")
"""What ``x-promote-mode`` may say of a request."""


def create_app(service: Service) -> Any:
    """The ASGI application of one server."""
    app = FastAPI(title=service.settings.origin.model, docs_url=None, redoc_url=None)
    metrics = Metrics(service)
    app.include_router(_health(service, metrics))
    app.include_router(_scoring(service))
    app.include_router(_open_inference(service))
    return Edge(app, service, metrics)


def _health(service: Service, metrics: Metrics) -> APIRouter:
    routes = APIRouter()
    origin = service.settings.origin

    @routes.get("/health")
    async def health() -> Response:
        state = service.state
        told = {
            "status": state.value,
            "model": origin.model,
            "version": origin.version,
            "revision": origin.revision,
            "signature": service.scorer is not None and service.scorer.schema is not None,
        }
        return _json(200 if state is State.READY else 503, told)

    @routes.get("/ping")
    async def ping() -> Response:
        return Response("\n", 200 if service.scorer else 503, media_type="application/json")

    @routes.get("/version")
    async def version() -> Response:
        return Response(mlflow.version.VERSION, media_type="application/json")

    @routes.get("/metrics")
    async def figures() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return routes


def _scoring(service: Service) -> APIRouter:
    routes = APIRouter()

    @routes.post("/invocations")
    async def invocations(request: Request) -> Response:
        kind = request.headers.get("content-type", "")
        return _response(await _predict(service, request, lambda scorer, body: scorer.score(body, kind), failure))

    return routes


def _open_inference(service: Service) -> APIRouter:
    routes = APIRouter(prefix="/v2")
    name, version = service.settings.origin.model, str(service.settings.origin.version)

    @routes.get("/health/live")
    async def live() -> Response:
        return _json(200, {"live": True})

    @routes.get("/health/ready")
    async def ready() -> Response:
        return _json(200 if service.state is State.READY else 503, {"ready": service.state is State.READY})

    @routes.get("/models/{model}")
    async def describe(model: str) -> Response:
        if model != name:
            return _response(open_inference.failure(404, "NOT_FOUND", f"this server has {name}, not {model}"))
        if service.scorer is None:
            return _response(open_inference.failure(503, "TEMPORARILY_UNAVAILABLE", "the model is being loaded"))
        return _json(200, open_inference.describe(name, version, service.scorer))

    @routes.post("/models/{model}/infer")
    async def infer(model: str, request: Request) -> Response:
        if model != name:
            return _response(open_inference.failure(404, "NOT_FOUND", f"this server has {name}, not {model}"))

        def score(scorer: Scorer, body: bytes) -> Answer:
            return open_inference.infer(name, version, scorer, body)

        return _response(await _predict(service, request, score, open_inference.failure))

    return routes


async def _predict(
    service: Service,
    request: Request,
    score: Callable[[Scorer, bytes], Answer],
    refuse: Callable[[int, str, str], Answer],
) -> Answer:
    if service.scorer is None:
        return refuse(503, "TEMPORARILY_UNAVAILABLE", "the model is being loaded")
    limit = service.settings.body_limit
    body = await _body(request, limit)
    if body is None:
        return refuse(413, "BAD_REQUEST", f"the request is larger than {limit} bytes")
    return await service.predict(lambda scorer: score(scorer, body), _caller(request))


async def _body(request: Request, limit: int) -> bytes | None:
    """The whole body; None where it is larger than `limit`."""
    parts: list[bytes] = []
    size = 0
    async for part in request.stream():
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
    return b"".join(parts)


def _caller(request: Request) -> Caller:
    mode = header(request.scope, b"x-promote-mode")
    entity = header(request.scope, b"x-entity-id")
    return Caller(request.scope["request_id"], mode if mode in MODES else "live", entity)


def _response(answer: Answer) -> Response:
    return Response(answer.body, answer.status, media_type=answer.media_type)


def _json(status: int, content: dict[str, Any]) -> Response:
    return Response(json.dumps(content), status, media_type="application/json")
