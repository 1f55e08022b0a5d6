"""What happens to every request whatever its path; and the paths that predict, answered here without a framework.

Plain ASGI: between uvicorn and the model a request costs some ten microseconds. Everything else goes to the
application behind it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import os
import time
from typing import Any

from serving.runtime.exchange import BadRequestError, MediaTypeError, NotReadyError, ServingError, TooLargeError
from serving.runtime.figures import GONE
from serving.runtime.http_limits import TASK
from serving.runtime.json_logs import Request, request
from serving.runtime.routes import Asked, Headers, Protocol, Reply
from serving.runtime.service import Caller, Service
from serving.runtime.settings import AccessLog

MODES = {b"live": "live", b"shadow": "shadow", b"replay": "replay"}
"""What ``x-promote-mode`` may say of a request."""

_WAITS = (b"x-envoy-expected-rq-timeout-ms", b"x-request-timeout-ms")
"""Headers that say how many milliseconds the caller waits."""

_HEARD = frozenset(
    (
        b"accept",
        b"content-encoding",
        b"content-length",
        b"content-type",
        b"expect",
        b"inference-header-content-length",
        b"traceparent",
        b"x-entity-id",
        b"x-promote-mode",
        b"x-request-id",
        *_WAITS,
    )
)
"""Headers that anybody here listens to."""

_LONGEST_ID = 200

_PATIENCE = 4
"""How many times the largest body is read and thrown away, so that the client comes to read why."""

_CLOSE = (b"connection", b"close")

_logger = logging.getLogger("serving.runtime.access")


class _GoneError(ConnectionError):
    """The client went away before its request was complete."""


class MethodError(ServingError):
    """The path knows no method but POST."""

    status, code, cause = 405, "METHOD_NOT_ALLOWED", "request"


class Edge:
    """The ASGI application of one server, around `app`. Made in the event loop."""

    def __init__(self, app: Any, service: Service, protocols: tuple[Protocol, ...]) -> None:
        self._app, self._service, self._protocols = app, service, protocols
        self._figures, self._limit = service.figures, service.settings.body_limit
        self._timeout = service.settings.request_timeout
        self._access = service.settings.access_log
        self._version = (b"x-model-version", str(service.settings.origin.version).encode())
        self._prefix, self._numbers = f"{os.urandom(6).hex()}-", itertools.count(1)
        self._clock = asyncio.get_running_loop().time

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in _HEARD}
        path = scope["path"]
        for protocol in self._protocols:
            if protocol.serves(path):
                await self._predict(protocol, headers, scope, receive, send)
                return
        await self._other(headers, scope, receive, send)

    async def _predict(self, protocol: Protocol, headers: Headers, scope: Any, receive: Any, send: Any) -> None:
        began = time.perf_counter()
        request_id, trace = self._request_id(headers), _trace(headers)
        request.set(Request(request_id, trace))
        scope[TASK] = asyncio.current_task()
        # Where something is raised that nobody thought of, uvicorn logs it, and the caller is told no more than this.
        reply, cause = protocol.unforeseen, "server"
        try:
            if scope["method"] != "POST":
                raise MethodError(f"{scope['method']} is not a way to ask for predictions")
            caller = self._caller(request_id, trace, headers)
            body = await self._body(headers, receive)
            reply, cause = await protocol.answer(Asked(scope["path"], headers, body, caller)), ""
        except ServingError as error:
            reply, cause = _refusal(error, protocol), error.cause
        except asyncio.CancelledError:  # its client is gone, or the time to drain is over
            reply, cause = self._cancelled(protocol)
        except _GoneError:
            reply, cause = Reply(b"", GONE), "gone"
        finally:
            scope[TASK] = None
            await self._answer(reply, request_id, send)
            self._count(reply.status, cause, scope["path"], time.perf_counter() - began)

    async def _other(self, headers: Headers, scope: Any, receive: Any, send: Any) -> None:
        request_id = self._request_id(headers)
        request.set(Request(request_id, _trace(headers)))

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message.get("headers", ()), *self._of_every(request_id)]
            await send(message)

        await self._app(scope, receive, answer)

    async def _body(self, headers: Headers, receive: Any) -> bytes:
        """The whole body; `TooLargeError` where it is over the limit."""
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise MediaTypeError(f"content-encoding {headers[b'content-encoding'].decode('latin-1')} is not understood")
        if b"expect" in headers and int(headers.get(b"content-length", b"0")) > self._limit:
            raise self._too_large()
        message = await receive()
        if not message.get("more_body") and message["type"] == "http.request" and len(message["body"]) <= self._limit:
            body: bytes = message["body"]
            return body
        return await self._rest(message, receive)

    async def _rest(self, message: Any, receive: Any) -> bytes:
        parts: list[bytes] = []
        size = 0
        while True:
            if message["type"] != "http.request":
                raise _GoneError
            size += len(message["body"])
            if size <= self._limit:
                parts.append(message["body"])
            if not message["more_body"] or size > _PATIENCE * self._limit:
                break
            message = await receive()
        if size > self._limit:
            raise self._too_large()
        return b"".join(parts)

    def _too_large(self) -> TooLargeError:
        return TooLargeError(f"the request is larger than {self._limit} bytes")

    def _caller(self, request_id: str, trace: str | None, headers: Headers) -> Caller:
        seconds = self._timeout
        for name in _WAITS:
            if name in headers:
                seconds = min(seconds, _milliseconds(headers[name]) / 1000)
        mode = MODES.get(headers.get(b"x-promote-mode", b"live"), "live")
        entity = headers.get(b"x-entity-id")
        named = None if entity is None else entity.decode("latin-1")
        return Caller(request_id, mode, named, self._clock() + seconds, trace)

    def _request_id(self, headers: Headers) -> str:
        given = headers.get(b"x-request-id")
        if given and len(given) <= _LONGEST_ID and (text := given.decode("latin-1")).isprintable():
            return text
        return f"{self._prefix}{next(self._numbers):x}"

    def _cancelled(self, protocol: Protocol) -> tuple[Reply, str]:
        if not self._service.stopping:
            return Reply(b"", GONE), "gone"
        return _refusal(NotReadyError("the server ends"), protocol), NotReadyError.cause

    async def _answer(self, reply: Reply, request_id: str, send: Any) -> None:
        if reply.status == GONE:
            return
        body = reply.body
        headers = [*reply.headers, (b"content-length", b"%d" % len(body)), *self._of_every(request_id)]
        await send({"type": "http.response.start", "status": reply.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _of_every(self, request_id: str) -> tuple[tuple[bytes, bytes], ...]:
        """Headers of every answer."""
        named = (b"x-request-id", request_id.encode("latin-1"))
        return (self._version, named, _CLOSE) if self._service.stopping else (self._version, named)

    def _count(self, status: int, cause: str, path: str, seconds: float) -> None:
        self._figures.request(status, seconds)
        if cause:
            self._figures.error(cause)
        if self._access is AccessLog.ALL or (status >= 400 and status != GONE and self._access is AccessLog.ERRORS):
            told = {"path": path, "status": status, "milliseconds": round(seconds * 1000, 3)}
            told |= {"cause": cause} if cause else {}
            _logger.info("%d %s", status, path, extra=told)


def _refusal(error: ServingError, protocol: Protocol) -> Reply:
    headers = protocol.headers
    if error.retry_after is not None:
        headers = (*headers, (b"retry-after", b"%d" % max(1, math.ceil(error.retry_after))))
    if isinstance(error, MethodError):
        headers = (*headers, (b"allow", b"POST"))
    if isinstance(error, TooLargeError):
        headers = (*headers, _CLOSE)
    return Reply(protocol.failure(error.code, str(error)), error.status, headers)


def _trace(headers: Headers) -> str | None:
    given = headers.get(b"traceparent")
    return None if given is None else given.decode("latin-1")


def _milliseconds(value: bytes) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not number >= 0:
        raise BadRequestError(f"{value.decode('latin-1')!r} is no number of milliseconds to wait")
    return number
