"""The commands over HTTP, with an OpenAPI document; thin, it decides nothing.

Handlers are plain functions, so that FastAPI runs them in its thread pool: the store and the registry block.
Every refusal is one JSON object with the same three keys.
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from typing import Annotated
from urllib.parse import unquote

from fastapi import APIRouter, Depends, FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from pydantic import BaseModel, Field, FiniteFloat, model_validator
from starlette.exceptions import HTTPException

from monitoring.labels import Kept, Label
from pipelines.commands import Accepted, Allowed, Commands, Recorded
from pipelines.overview import Overview
from pipelines.refusal import Code, CommandError, from_registry, from_store
from pipelines.rollout import Event
from pipelines.status import DriftStatus, IntentStatus, RolloutStatus, Status
from pipelines.store import StoreError
from registry_hooks.registry import RegistryError

_STATUS = {
    Code.UNKNOWN_MODEL: 404,
    Code.UNKNOWN_VERSION: 404,
    Code.UNKNOWN_ROLLOUT: 404,
    Code.UNKNOWN_INTENT: 404,
    Code.NO_REPORT: 404,
    Code.FORBIDDEN: 403,
    Code.INVALID: 422,
    Code.UNAUTHORIZED: 401,
    Code.REGISTRY_UNREACHABLE: 503,
    Code.REGISTRY_REFUSED: 502,
    Code.STORE_UNREACHABLE: 503,
    Code.FAILED: 500,
}
"""HTTP status of a refusal; every other one is 409, a conflict with how things are."""


MOST_LABELS = 10_000
"""In one request."""


class Refusal(BaseModel):
    """Every answer that is not a success."""

    error: Code
    message: str = Field(description="one line")
    hint: str = Field("", description="what to do")
    field: str | None = Field(None, description="the field that is wrong, where it is one")


class Wish(BaseModel):
    """What a command may carry."""

    actor: str | None = Field(None, description="who asks, where the header x-actor does not say it", max_length=200)


class PromoteWish(Wish):
    """Which version to make live."""

    version: int = Field(ge=1)
    dry_run: bool = Field(False, description="check and plan only")


class Hint(BaseModel):
    """Where to look."""

    model: str | None = None


class Move(BaseModel):
    """A transition that somebody is about to make."""

    model: str
    version: int
    channel: str = Field(description="a stage, ``None`` among them, or @alias")


class Truth(BaseModel):
    """What became known of one row of an answer: a label, or a loss instead."""

    request_id: str = Field(min_length=1, max_length=200, description="header x-request-id of the answer")
    row: int = Field(0, ge=0, lt=2**31, description="row of the request, from 0 on")
    label: str | FiniteFloat | bool | None = Field(None, description="what would have been right")
    loss: float | None = Field(None, ge=0, le=1, description="how bad the answer was, from 0 to 1")

    @model_validator(mode="after")
    def _one_of_both(self) -> Truth:
        if (self.label is None) == (self.loss is None):
            raise ValueError("give either label or loss")
        return self


class Truths(BaseModel):
    """Labels of any models, in any order."""

    labels: list[Truth] = Field(max_length=MOST_LABELS)


class Health(BaseModel):
    """The controller process is there."""

    status: str = "ok"


def create_api(
    commands: Commands,
    overview: Overview,
    *,
    drift: Callable[[str], object],
    wake: Callable[[str | None], object],
    metrics: CollectorRegistry,
    token: str | None = None,
    routers: Sequence[APIRouter] = (),
) -> FastAPI:
    """The application. `drift` checks one model now.

    `routers` verify their callers themselves, without the token; a path that is ours already stays ours.
    """
    app = FastAPI(title="mlflow-promote", responses={"default": {"model": Refusal}}, redoc_url=None)
    ours = (
        _open_routes(),
        _questions(overview),
        _wishes(commands),
        _drift(drift, overview),
        _hooks(commands, wake),
        _metrics(metrics),
    )
    for router in (*ours, *routers):
        app.include_router(router)
    _refusals(app)
    _guard(app, token, (_paths(routers) - _paths(ours)) | {"/healthz"})
    return app


def _paths(routers: Iterable[APIRouter]) -> set[str]:
    return {route.path for router in routers for route in router.routes if isinstance(route, APIRoute)}


def _guard(app: FastAPI, token: str | None, open_paths: Collection[str]) -> None:
    """Let only the token's bearers in; without a token, only programs of this machine and no web page."""

    @app.middleware("http")
    async def check(request: Request, proceed: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = None if request.url.path in open_paths else _stranger(request, token)
        return await proceed(request) if refused is None else _refusal(refused)


def _stranger(request: Request, token: str | None) -> CommandError | None:
    if token is not None:
        given = dict(request.scope["headers"]).get(b"authorization", b"")
        if hmac.compare_digest(given, f"Bearer {token}".encode()):
            return None
        hint = "send 'Authorization: Bearer <token>'; the command line takes it from PROMOTE_TOKEN"
        return CommandError(Code.UNAUTHORIZED, "the bearer token is missing or wrong", hint)
    own = f"{request.url.scheme}://{request.url.netloc}"
    if _is_loopback(request.url.hostname or "") and request.headers.get("origin", own) == own:
        return None
    hint = "set a token in the settings to be reached by other names or from web pages"
    return CommandError(Code.FORBIDDEN, "without a token only programs of this machine are answered", hint)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _named(x_actor: Annotated[str, Header(max_length=600)] = "") -> str:
    """Who asks, as the percent-encoded header says."""
    return unquote(x_actor)


Named = Annotated[str, Depends(_named)]


def _who(named: str, wish: Wish | None) -> str:
    return named or (wish.actor if wish and wish.actor else "http")


def _open_routes() -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/healthz")
    def healthz() -> Health:
        return Health()

    return router


def _questions(overview: Overview) -> APIRouter:
    router = APIRouter(tags=["questions"])

    @router.get("/status")
    def status(model: str | None = None) -> Status:
        return overview.status(model)

    @router.get("/models/{model}")
    def model_status(model: str) -> Status:
        return overview.status(model)

    @router.get("/models/{model}/history")
    def history(model: str, limit: Annotated[int, Query(ge=1, le=1000)] = 50) -> dict[str, tuple[Event, ...]]:
        return {"events": overview.events(model, limit)}

    @router.get("/rollouts/{rollout}")
    def rollout(rollout: str) -> RolloutStatus:
        return overview.rollout(rollout)

    @router.get("/intents/{intent}")
    def intent(intent: str) -> IntentStatus:
        return overview.intent(intent)

    return router


def _wishes(commands: Commands) -> APIRouter:
    router = APIRouter(tags=["commands"])

    @router.post("/models/{model}/promote", status_code=202)
    def promote(model: str, wish: PromoteWish, named: Named) -> Accepted:
        """Make the version live, through the canary."""
        return commands.promote(model, wish.version, _who(named, wish), dry_run=wish.dry_run)

    @router.get("/models/{model}/requests")
    def requests(model: str) -> Recorded:
        """Some of the last requests of the live version, each as latency in milliseconds, prediction, time of its end,
        whether it failed, whether it was refused, and replica; and the policy by which a canary is judged."""
        return commands.recorded(model)

    @router.post("/labels")
    def labels(truths: Truths) -> Kept:
        """Say what became known of answers, in any order and any number of times: all of them are kept, or none."""
        return commands.label([Label(one.request_id, one.row, one.label, one.loss) for one in truths.labels])

    for command in (commands.rollback, commands.abort, commands.pause, commands.resume):
        router.post(f"/models/{{model}}/{command.__name__}", status_code=202)(_steering(command))
    return router


def _steering(command: Callable[[str, str], Accepted]) -> Callable[..., Accepted]:
    def steer(model: str, named: Named, wish: Wish | None = None) -> Accepted:
        return command(model, _who(named, wish))

    steer.__name__, steer.__doc__ = command.__name__, command.__doc__
    return steer


def _drift(check: Callable[[str], object], overview: Overview) -> APIRouter:
    router = APIRouter(tags=["drift"])

    @router.post("/models/{model}/drift")
    def run(model: str) -> DriftStatus:
        """Check the model for drift now, and answer when the check is done."""
        overview.status(model)
        check(model)
        return overview.drift_report(model)

    @router.get("/models/{model}/drift")
    def report(model: str) -> DriftStatus:
        """The last check."""
        return overview.drift_report(model)

    return router


def _hooks(commands: Commands, wake: Callable[[str | None], object]) -> APIRouter:
    router = APIRouter(prefix="/hooks", tags=["hooks"])

    @router.post("/wake", status_code=202)
    def hint(hint: Hint) -> Health:
        """Something changed in the registry: look now."""
        wake(hint.model)
        return Health()

    @router.post("/allowed")
    def allowed(move: Move) -> Allowed:
        """Whether somebody may make this transition now."""
        return commands.allowed(move.model, move.version, move.channel)

    return router


def _metrics(registry: CollectorRegistry) -> APIRouter:
    router = APIRouter(tags=["metrics"])

    @router.get("/metrics", response_class=Response)
    def metrics() -> Response:
        return Response(generate_latest(registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _refusals(app: FastAPI) -> None:
    @app.exception_handler(CommandError)
    def refused(_: Request, error: CommandError) -> JSONResponse:
        return _refusal(error)

    @app.exception_handler(RegistryError)
    def registry(_: Request, error: RegistryError) -> JSONResponse:
        return _refusal(from_registry(error))

    @app.exception_handler(StoreError)
    def store(_: Request, error: StoreError) -> JSONResponse:
        return _refusal(from_store(error))

    @app.exception_handler(HTTPException)
    def unknown(request: Request, error: HTTPException) -> JSONResponse:
        hint = "the document at /openapi.json lists every path"
        refusal = CommandError(Code.UNKNOWN_PATH, f"{request.method} {request.url.path}: {error.detail}", hint)
        return _refusal(refusal, error.status_code)

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:]) or str(first["loc"][0])
        hint = "the document at /openapi.json describes every field"
        return _refusal(CommandError(Code.INVALID, f"{name}: {first['msg']}", hint, field=name))


def _refusal(error: CommandError, status: int | None = None) -> JSONResponse:
    body = Refusal(error=error.code, message=str(error), hint=error.hint, field=error.field)
    headers = {"www-authenticate": "Bearer"} if error.code is Code.UNAUTHORIZED else None
    return JSONResponse(body.model_dump(mode="json"), status or _STATUS.get(error.code, 409), headers)
