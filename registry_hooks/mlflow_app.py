"""``mlflow server --app-name promote``: MLflow's own server that also tells the controller, and may say no.

MLflow has no webhook for stage transitions. This app stands before and after the handlers of its server: before
a version enters a stage or gets an alias it asks the controller, whose refusal reaches the caller (and the UI)
as MLflow's own kind of error; after a change it wakes the controller. Without a controller nothing is different.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

from fastapi import FastAPI
from flask import Flask, Response, g, request
from mlflow.entities.model_registry.model_version_stages import get_canonical_stage
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import PERMISSION_DENIED

from registry_hooks.controller_call import ControllerCall, Move
from registry_hooks.model_version import STAGES

Body: TypeAlias = Mapping[str, object]

STAGE = ("POST", "model-versions/transition-stage")
ALIAS = ("POST", "registered-models/alias")
RENAME = ("POST", "registered-models/rename")
CHANGES = frozenset(
    {
        STAGE,
        ALIAS,
        RENAME,
        ("DELETE", "registered-models/alias"),
        ("DELETE", "registered-models/delete"),
        ("DELETE", "model-versions/delete"),
    }
)
"""Requests that move a version into or out of a channel: method, and path after ``/mlflow/``."""


def create_app() -> FastAPI | Flask:
    """What ``mlflow server`` runs: an ASGI application under uvicorn, its default, else a WSGI one."""
    from mlflow.server import app

    attach(app, ControllerCall.from_environment())
    if os.environ.get("_MLFLOW_SGI_NAME") != "uvicorn":
        return app
    from mlflow.server.fastapi_app import create_fastapi_app

    serving: FastAPI = create_fastapi_app(app)
    return serving


def attach(app: Flask, controller: ControllerCall) -> None:
    """Stand before and after every handler of `app`."""

    def before() -> Response | None:
        change = (request.method, request.path.rpartition("/mlflow/")[2])
        if change not in CHANGES:
            return None
        body = _body()
        g.promote_models = tuple(_models(body))
        move = _move(change, body)
        reason = controller.refusal(move) if move else None
        return _refused(reason) if reason else None

    def after(response: Response) -> Response:
        if response.status_code == 200:
            for model in g.get("promote_models", ()):
                controller.wake(model)
        return response

    app.before_request(before)
    app.after_request(after)


def _body() -> Body:
    """The request as MLflow reads it, which old clients encode twice; what is no JSON is left to MLflow."""
    try:
        body = json.loads(request.get_data())
        body = json.loads(body) if isinstance(body, str) else body
    except ValueError:
        return {}
    return body if isinstance(body, dict) else {}


def _models(body: Body) -> Iterator[str]:
    yield from (name for name in (body.get("name"), body.get("new_name")) if isinstance(name, str))


def _move(change: tuple[str, str], body: Body) -> Move | None:
    """The channel that a version is about to enter; leaving all stages is no such move."""
    channel_of: Mapping[tuple[str, str], Callable[[Body], str | None]] = {STAGE: _stage, ALIAS: _alias}
    channel = channel_of[change](body) if change in channel_of else None
    return Move(str(body.get("name")), str(body.get("version")), channel) if channel else None


def _stage(body: Body) -> str | None:
    try:
        stage = str(get_canonical_stage(str(body.get("stage"))))  # type: ignore[no-untyped-call]
    except MlflowException:
        return None
    return stage if stage in STAGES else None


def _alias(body: Body) -> str | None:
    alias = body.get("alias")
    return f"@{alias}" if isinstance(alias, str) else None


def _refused(reason: str) -> Response:
    error = MlflowException(reason, PERMISSION_DENIED)
    shown = error.serialize_as_json()  # type: ignore[no-untyped-call]
    return Response(shown, 403, mimetype="application/json")
