"""The Open Inference Protocol over gRPC, in the event loop of the HTTP server.

Imported only where it is asked for, and only by processes that do not fork any more: gRPC has threads of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from serving.runtime.exchange import BadRequestError, ServingError, Stage
from serving.runtime.figures import GONE
from serving.runtime.json_logs import Request, request
from serving.runtime.open_inference import server_metadata
from serving.runtime.open_inference_contents import parameters_of, response, tensors_of
from serving.runtime.open_inference_messages import PACKAGE, message
from serving.runtime.open_inference_model import OpenModel
from serving.runtime.service import Caller, Service
from serving.runtime.settings import AccessLog
from serving.runtime.tracing import Tracing

_SERVICE = f"{PACKAGE}.GRPCInferenceService"

_INFER = f"/{_SERVICE}/ModelInfer"

_STATUS = {
    400: grpc.StatusCode.INVALID_ARGUMENT,
    404: grpc.StatusCode.NOT_FOUND,
    413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    415: grpc.StatusCode.INVALID_ARGUMENT,
    503: grpc.StatusCode.UNAVAILABLE,
    504: grpc.StatusCode.DEADLINE_EXCEEDED,
}
"""HTTP's status to gRPC's; what is not here is INTERNAL."""

_FULL = "queue_full"
"""Cause of the errors that are RESOURCE_EXHAUSTED rather than UNAVAILABLE."""

_MODES = frozenset(("live", "shadow", "replay"))

_LONGEST_ID = 200

_LONGEST_MESSAGE = 1000
"""Characters of an error: they travel in headers, whose size clients limit."""

_logger = logging.getLogger("serving.runtime.access")

Answer = Callable[[Any, Any], Awaitable[Any]]


class GrpcServer:
    """A server that runs."""

    def __init__(self, server: Any, port: int) -> None:
        self._server, self.port = server, port

    async def stop(self, grace: float) -> None:
        """Take no new requests, and let those in flight finish for `grace` seconds."""
        await self._server.stop(grace)


async def serve(service: Service, tracing: Tracing, host: str, port: int) -> GrpcServer:
    """Serve on that address, port 0 for any free one; `RuntimeError` where it is taken."""
    settings = service.settings
    options = [
        ("grpc.max_receive_message_length", settings.body_limit),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_metadata_size", settings.header_limit),
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]
    server = grpc.aio.server(options=options)
    server.add_generic_rpc_handlers((_Inference(OpenModel(service), tracing).handlers(),))
    bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    await server.start()
    return GrpcServer(server, bound)


class _Inference:
    """The methods of the service."""

    def __init__(self, model: OpenModel, tracing: Tracing) -> None:
        self._model = model
        self._answer = tracing.around(self._predicted, _about)
        self._figures, self._settings = model.service.figures, model.service.settings
        self._access = self._settings.access_log
        self._prefix, self._numbers = f"{os.urandom(6).hex()}-", itertools.count(1)
        self._version = ("x-model-version", model.version)

    def handlers(self) -> Any:
        methods: Mapping[str, Answer] = {
            "ServerLive": self._live,
            "ServerReady": self._ready,
            "ModelReady": self._model_ready,
            "ServerMetadata": self._server_metadata,
            "ModelMetadata": self._model_metadata,
            "ModelInfer": self._infer,
        }
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(_method(name, answer)) for name, answer in methods.items()
        }
        return grpc.method_handlers_generic_handler(_SERVICE, handlers)

    async def _live(self, _asked: Any, _context: Any) -> Any:
        return message("ServerLiveResponse")(live=True)

    async def _ready(self, _asked: Any, _context: Any) -> Any:
        return message("ServerReadyResponse")(ready=self._model.ready)

    async def _model_ready(self, asked: Any, _context: Any) -> Any:
        self._model.check(asked.name, asked.version)
        return message("ModelReadyResponse")(ready=self._model.ready)

    async def _server_metadata(self, _asked: Any, _context: Any) -> Any:
        return message("ServerMetadataResponse")(**server_metadata())

    async def _model_metadata(self, asked: Any, _context: Any) -> Any:
        self._model.check(asked.name, asked.version)
        return message("ModelMetadataResponse")(**self._model.metadata())

    async def _infer(self, asked: Any, context: Any) -> Any:
        """Counts what `_predicted` does."""
        began, status, cause = time.perf_counter(), 500, "server"
        try:
            answer = await self._answer(asked, self._caller(context))
            status, cause = 200, ""
        except ServingError as error:
            status, cause = error.status, error.cause
            raise
        except asyncio.CancelledError:
            status, cause = GONE, "gone"
            raise
        finally:
            self._count(status, cause, time.perf_counter() - began)
        return answer

    def _count(self, status: int, cause: str, seconds: float) -> None:
        self._figures.request(status, seconds)
        if cause:
            self._figures.error(cause)
        if self._access is AccessLog.ALL or (status >= 400 and self._access is AccessLog.ERRORS):
            told = {"path": _INFER, "status": status, "cause": cause, "milliseconds": round(seconds * 1000, 3)}
            _logger.info("%d %s", status, _INFER, extra=told)

    async def _predicted(self, asked: Any, caller: Caller) -> Any:
        began = time.perf_counter()
        self._model.check(asked.model_name, asked.model_version)
        parameters = parameters_of(asked.parameters)
        ask = self._model.ask(tensors_of(asked), parameters, parameters.get("content_type") == "pd")
        self._figures.stage(Stage.PARSE, time.perf_counter() - began)
        outputs = await self._model.predict(ask, [output.name for output in asked.outputs], caller)
        began = time.perf_counter()
        answer = response(asked, self._model.name, self._model.version, outputs)
        self._figures.stage(Stage.WRITE, time.perf_counter() - began)
        return answer

    def _caller(self, context: Any) -> Caller:
        told = {name: value for name, value in context.invocation_metadata() or () if isinstance(value, str)}
        given, trace = told.get("x-request-id", ""), told.get("traceparent")
        request_id = given if 0 < len(given) <= _LONGEST_ID else f"{self._prefix}{next(self._numbers)}"
        request.set(Request(request_id, trace))
        context.set_trailing_metadata((self._version, ("x-request-id", request_id)))
        remaining = context.time_remaining()
        seconds = min(self._settings.request_timeout, math.inf if remaining is None else remaining)
        mode = told.get("x-promote-mode", "")
        deadline = asyncio.get_running_loop().time() + seconds
        return Caller(request_id, mode if mode in _MODES else "live", told.get("x-entity-id"), deadline, trace)


def _about(_asked: Any, caller: Caller) -> tuple[Caller, str]:
    return caller, _INFER


def _method(name: str, answer: Answer) -> Answer:
    """From bytes to bytes, with errors as gRPC has them."""
    kind = message(f"{name}Request")

    async def method(body: bytes, context: Any) -> bytes:
        try:
            told: bytes = (await answer(_read(kind, body), context)).SerializeToString()
        except ServingError as error:
            trailing = (*(context.trailing_metadata() or ()), *_retry(error))
            await context.abort(_status(error), str(error)[:_LONGEST_MESSAGE], trailing)
            raise
        return told

    return method


def _read(kind: Any, body: bytes) -> Any:
    try:
        return kind.FromString(body)
    except DecodeError as error:
        raise BadRequestError(f"the request is not a {kind.DESCRIPTOR.name}: {error}") from error


def _status(error: ServingError) -> grpc.StatusCode:
    if error.cause == _FULL:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return _STATUS.get(error.status, grpc.StatusCode.INTERNAL)


def _retry(error: ServingError) -> tuple[tuple[str, str], ...]:
    """When gRPC's own retries are to come back."""
    if error.retry_after is None:
        return ()
    return (("grpc-retry-pushback-ms", str(round(error.retry_after * 1000))),)
