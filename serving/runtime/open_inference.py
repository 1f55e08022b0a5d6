"""The Open Inference Protocol v2 over HTTP: metadata, health, and inference in JSON and with binary tensors.

Inference is for the server's plain ASGI edge to call; the rest is asked seldom, and is FastAPI's.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

import msgspec
import orjson
from fastapi import APIRouter, Response

from serving.runtime.exchange import Array, BadRequestError, Stage
from serving.runtime.open_inference_binary import from_bytes, to_bytes
from serving.runtime.open_inference_model import NotFoundError, OpenModel
from serving.runtime.open_inference_tensors import Output, from_json, json_data
from serving.runtime.prediction_header import LOSS, loss_of, told_of
from serving.runtime.routes import JSON, Asked, Protocol, Reply

_PATH = re.compile("/v2/models/([^/]+)(?:/versions/([^/]+))?/infer")

_BINARY = (b"content-type", b"application/octet-stream")

_JSON_LENGTH = b"inference-header-content-length"
"""Header of a body that is JSON and then bytes: how long the JSON is."""

_MOST_DIGITS = 15

_NONE: Mapping[str, Any] = {}

_UNSUPPORTED = ("shared_memory_region", "classification")
"""Parameters of tensors that cannot be ignored without a wrong answer."""


_NO_DATA = msgspec.Raw(b"")


class _Input(msgspec.Struct):
    name: str
    datatype: str
    shape: list[int]
    parameters: Mapping[str, Any] | None = None
    data: msgspec.Raw = _NO_DATA


class _Asked(msgspec.Struct):
    name: str
    parameters: Mapping[str, Any] | None = None


class _Request(msgspec.Struct):
    inputs: list[_Input]
    id: str | None = None
    parameters: Mapping[str, Any] | None = None
    outputs: list[_Asked] | None = None


_DECODER = msgspec.json.Decoder(_Request)


_ELSEWHERE: dict[int | str, dict[str, Any]] = {404: {"description": "This server has another model or version"}}


class OpenInference:
    """The protocol's HTTP side of one server."""

    def __init__(self, model: OpenModel) -> None:
        self._model = model
        self._stage = model.service.figures.stage
        self._paths = frozenset((f"/v2/models/{model.name}/infer", _path(model.name, model.version)))

    def protocol(self) -> Protocol:
        """Inference, for the edge."""
        return Protocol(lambda path: path in self._paths or _PATH.fullmatch(path) is not None, self._infer, failure)

    async def _infer(self, asked: Asked) -> Reply:
        began = time.perf_counter()
        self._check(asked.path)
        request, tail = _parts(asked.body, asked.headers.get(_JSON_LENGTH))
        parameters = request.parameters or _NONE
        ask = self._model.ask(_tensors(request.inputs, tail), parameters, parameters.get("content_type") == "pd")
        self._stage(Stage.PARSE, time.perf_counter() - began)
        names = [output.name for output in request.outputs or ()]
        outputs = await self._model.predict(ask, names, asked.caller)
        began = time.perf_counter()
        reply = self._written(request, outputs)
        self._stage(Stage.WRITE, time.perf_counter() - began)
        return reply

    def _check(self, path: str) -> None:
        found = None if path in self._paths else _PATH.fullmatch(path)
        if found:
            self._model.check(*found.groups())

    def routes(self) -> APIRouter:
        """Everything but inference."""
        routes = APIRouter(prefix="/v2", tags=["Open Inference Protocol"])
        routes.add_api_route("", self._server, summary="This server and what it can do")
        routes.add_api_route("/health/live", self._live, summary="Whether there is a server at all")
        routes.add_api_route("/health/ready", self._ready, summary="Whether the server predicts; 503 where not")
        model, version = "/models/{name}", "/models/{name}/versions/{version}"
        for path, answer, summary in (
            (model, self._metadata, "The model's inputs and outputs"),
            (version, self._version_metadata, "A version's inputs and outputs"),
            (f"{model}/ready", self._model_ready, "Whether the model predicts"),
            (f"{version}/ready", self._version_ready, "Whether the version predicts"),
        ):
            routes.add_api_route(path, answer, summary=summary, responses=_ELSEWHERE)
        return routes

    async def _server(self) -> Response:
        return _answer(200, server_metadata())

    async def _live(self) -> Response:
        return _answer(200, {"live": True})

    async def _ready(self) -> Response:
        ready = self._model.ready
        return _answer(200 if ready else 503, {"ready": ready})

    async def _metadata(self, name: str) -> Response:
        return await self._version_metadata(name, "")

    async def _version_metadata(self, name: str, version: str) -> Response:
        try:
            self._model.check(name, version)
        except NotFoundError as error:
            return _refused(error)
        return _answer(200, self._model.metadata())

    async def _model_ready(self, name: str) -> Response:
        return await self._version_ready(name, "")

    async def _version_ready(self, name: str, version: str) -> Response:
        try:
            self._model.check(name, version)
        except NotFoundError as error:
            return _refused(error)
        ready = self._model.ready
        return _answer(200 if ready else 503, {"name": name, "ready": ready})

    def _written(self, request: _Request, outputs: Sequence[Output]) -> Reply:
        binary = _binary(request)
        tensors, pieces = [], [b""]
        for output in outputs:
            tensor = {"name": output.name, "datatype": output.datatype, "shape": output.values.shape}
            if binary.get(output.name, binary[""]):
                pieces.append(to_bytes(output))
                tensor["parameters"] = {"binary_data_size": len(pieces[-1])}
            else:
                tensor["data"] = json_data(output)
            tensors.append(tensor)
        told = {"model_name": self._model.name, "model_version": self._model.version, "outputs": tensors}
        if request.id is not None:
            told["id"] = request.id
        pieces[0] = orjson.dumps(told, option=orjson.OPT_SERIALIZE_NUMPY)
        predicted = told_of(outputs[0].values) if outputs else ()
        predicted += tuple(header for output in outputs if output.name == LOSS for header in loss_of(output.values))
        if len(pieces) == 1:
            return Reply(pieces[0], 200, (JSON, *predicted))
        length = str(len(pieces[0])).encode()
        return Reply(b"".join(pieces), 200, (_BINARY, (_JSON_LENGTH, length), *predicted))


def server_metadata() -> dict[str, Any]:
    return {"name": "mlflow-promote", "version": _version(), "extensions": ["binary_tensor_data"]}


def failure(_code: str, message: str) -> bytes:
    """An error as the protocol writes it."""
    return orjson.dumps({"error": message.encode("utf-8", "replace").decode()})


def _path(name: str, version: str) -> str:
    return f"/v2/models/{name}/versions/{version}/infer"


def _version() -> str:
    try:
        return metadata.version("mlflow-promote")
    except metadata.PackageNotFoundError:  # a model's own environment has this code, but no such package
        return ""


def _parts(body: bytes, announced: bytes | None) -> tuple[_Request, memoryview]:
    """The request, and the bytes behind its JSON, whose length is `announced` where there are any."""
    whole = memoryview(body)
    length = len(whole) if announced is None else _length(announced)
    if length > len(whole):
        raise BadRequestError(f"the body ends before the {length} bytes of JSON that its header announces")
    try:
        return _DECODER.decode(whole[:length]), whole[length:]
    except msgspec.ValidationError as error:
        raise BadRequestError(f"the request is not one of the protocol: {error}") from error
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadRequestError(f"the request is not JSON: {error}") from error


def _length(announced: bytes) -> int:
    if not announced.isdigit() or len(announced) > _MOST_DIGITS:
        raise BadRequestError("Inference-Header-Content-Length is not a number of bytes")
    return int(announced)


def _tensors(inputs: Sequence[_Input], tail: memoryview) -> dict[str, Array]:
    arrays, place = {}, 0
    for tensor in inputs:
        name, parameters = tensor.name, tensor.parameters or _NONE
        size = _binary_size(name, parameters)
        if size is not None:
            arrays[name] = from_bytes(name, tensor.datatype, tensor.shape, tail[place : place + size])
            place += size
        elif tensor.data is _NO_DATA:
            raise BadRequestError(f"tensor {name!r} has neither 'data' nor 'binary_data_size'")
        else:
            arrays[name] = from_json(name, tensor.datatype, tensor.shape, tensor.data)
    if not inputs or len(arrays) < len(inputs):
        raise BadRequestError("the request has no tensors, or two of the same name")
    if place != len(tail):
        raise BadRequestError(f"{len(tail)} bytes follow the JSON, but its tensors have {place}")
    return arrays


def _binary_size(name: str, parameters: Mapping[str, Any]) -> int | None:
    for unsupported in _UNSUPPORTED:
        if unsupported in parameters:
            raise BadRequestError(f"tensor {name!r}: {unsupported!r} is not supported")
    size = parameters.get("binary_data_size")
    if size is not None and (not isinstance(size, int) or isinstance(size, bool) or size < 0):
        raise BadRequestError(f"tensor {name!r}: 'binary_data_size' is not a number of bytes")
    return size


def _binary(request: _Request) -> dict[str, bool]:
    """Which outputs are wanted as bytes; the empty name stands for all that are not mentioned."""
    wanted = {"": (request.parameters or _NONE).get("binary_data_output") is True}
    for output in request.outputs or ():
        parameters = output.parameters or _NONE
        _binary_size(output.name, parameters)
        if "binary_data" in parameters:
            wanted[output.name] = parameters["binary_data"] is True
    return wanted


def _answer(status: int, content: Mapping[str, Any]) -> Response:
    return Response(orjson.dumps(content), status, media_type="application/json")


def _refused(error: NotFoundError) -> Response:
    return _answer(error.status, {"error": str(error)})
