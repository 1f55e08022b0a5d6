"""The application of one server: the paths that predict in front, FastAPI with everything else behind them."""

from __future__ import annotations

import json
from importlib import metadata

from fastapi import APIRouter, FastAPI, Request, Response
from fastapi.responses import PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException

from serving.runtime import answers
from serving.runtime.edge import Edge
from serving.runtime.invocations import Invocations
from serving.runtime.open_inference import OpenInference
from serving.runtime.open_inference_model import OpenModel
from serving.runtime.openapi import described
from serving.runtime.service import Service, State
from serving.runtime.tracing import Tracing

_JSON = "application/json"


def create_app(service: Service, tracing: Tracing) -> Edge:
    """The ASGI application. To be called in the event loop that serves it."""
    inference = OpenInference(OpenModel(service))
    app = FastAPI(title=service.settings.origin.model, version=str(service.settings.origin.version), redoc_url=None)
    app.include_router(_health(service))
    app.include_router(inference.routes())
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _failed)
    described(app, service)
    protocols = (Invocations(service).protocol(), inference.protocol())
    return Edge(app, service, tuple(map(tracing.traced, protocols)))


def _health(service: Service) -> APIRouter:
    routes = APIRouter(tags=["Server"])

    @routes.get("/health", summary="How the server is; 503 where it does not predict, or is about to end")
    async def health() -> Response:
        return Response(json.dumps(service.told()), _status(service), media_type=_JSON)

    @routes.get("/health/live", summary="Whether there is a server at all")
    async def live() -> Response:
        return Response('{"status": "live"}', media_type=_JSON)

    @routes.get("/ping", summary="Whether predictions are answered, as MLflow's scoring server says it")
    async def ping() -> Response:
        return Response("\n", _status(service), media_type=_JSON)

    @routes.get("/version", summary="MLflow's version")
    async def version() -> Response:
        return Response(_mlflow_version(), media_type=_JSON)

    @routes.get(
        "/metrics",
        summary="Figures of all processes of this server, for Prometheus",
        response_class=PlainTextResponse,
    )
    async def figures() -> Response:
        service.look()
        return Response(service.figures.text(), media_type=CONTENT_TYPE_LATEST)

    return routes


def _status(service: Service) -> int:
    return 200 if service.state in (State.READY, State.DEGRADED) else 503


def _mlflow_version() -> str:
    for package in ("mlflow", "mlflow-skinny"):
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return ""


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code = {404: "ENDPOINT_NOT_FOUND", 405: "METHOD_NOT_ALLOWED"}.get(error.status_code, "BAD_REQUEST")
    body = answers.error(code, str(error.detail))
    return Response(body, error.status_code, headers=dict(error.headers or {}), media_type=_JSON)


async def _failed(_request: Request, _error: Exception) -> Response:
    """The trace goes to the log; the caller is told no more than this."""
    return Response(answers.error("INTERNAL_ERROR", "the server failed"), 500, media_type=_JSON)
