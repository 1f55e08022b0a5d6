"""The model of this server as the Open Inference Protocol sees it, over HTTP and gRPC alike.

Where the signature has columns, a tensor is a column; where it has tensors, an array. Where there is no typed
signature, the request is written in MLflow's scoring protocol for MLflow's own code to parse: one tensor as its
``inputs``, several as ``inputs`` by name, or as a frame where the request says that its content is ``pd``. Otherwise
MLServer's content types are ignored: the signature says what values mean.
"""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from serving.runtime.exchange import (
    Array,
    BadRequestError,
    NotReadyError,
    Raw,
    Rows,
    ServingError,
    Written,
)
from serving.runtime.open_inference_tensors import Output, datatype_of, to_wire
from serving.runtime.plan import KINDS, Column, Plan, Tensor
from serving.runtime.service import Caller, Service, State

PREDICTION = "prediction"
"""Name of an output that has none."""

_INPUT = "input-0"
"""Name of the only input where it has none; such a model takes its tensor under any name."""

_SEQUENCE = ("sequence_id", "sequence_start", "sequence_end")

_OWN = frozenset(("binary_data_output", "content_type", "headers", "priority", "timeout", *_SEQUENCE))
"""Parameters of a request that clients set for servers, not for models."""


class NotFoundError(ServingError):
    """This server has another model, or another version of it."""

    status, code, cause = 404, "RESOURCE_DOES_NOT_EXIST", "request"


class OpenModel:
    """What requests of the protocol are to the model, and what the model's answers are to the protocol."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.name, self.version = service.settings.origin.model, str(service.settings.origin.version)
        self._plan = plan = service.plan
        self._params = {param.name: param for param in plan.params}
        self._binary = frozenset(column.name for column in plan.columns if column.kind == "binary")
        self._answer = _name_of_answer(plan)

    @property
    def ready(self) -> bool:
        return self.service.state in (State.READY, State.DEGRADED)

    def check(self, name: str, version: str | None) -> None:
        """`NotFoundError` where a request is for somebody else."""
        if name != self.name:
            raise NotFoundError(f"this server has the model {self.name!r}, not {name!r}")
        if version and version != self.version:
            raise NotFoundError(f"this server has version {self.version} of {self.name!r}, not {version!r}")

    def check_ready(self) -> None:
        if not self.service.loaded:
            raise NotReadyError(self.service.doing)

    def metadata(self) -> dict[str, Any]:
        told = {"name": self.name, "versions": [self.version], "platform": f"mlflow_{self._plan.flavor}"}
        inputs: tuple[Column | Tensor, ...] = (*self._plan.columns, *self._plan.tensors)
        return told | {"inputs": [_described(part, _INPUT) for part in inputs], "outputs": _outputs(self._plan)}

    def ask(self, tensors: Mapping[str, Array], parameters: Mapping[str, Any], frame: bool) -> Rows | Raw:
        """What the model is asked; `frame`: whether a request without typed signature means a data frame."""
        params = {
            name: self._param(name, value)
            for name, value in parameters.items()
            if name not in _OWN or name in self._params
        }
        if not self._plan.typed:
            return _raw(tensors, params, frame)
        if self._binary:
            tensors = {name: _in_base64(array) if name in self._binary else array for name, array in tensors.items()}
        return self.service.parser.of_arrays(tensors, params or None)

    async def predict(self, ask: Rows | Raw, asked: Sequence[str], caller: Caller) -> list[Output]:
        """The asked outputs, or all where none is named."""
        answer = await self.service.predict(ask, caller)
        if isinstance(answer, Written):
            arrays = _of_written(answer, self._answer)
        else:
            arrays = {name or self._answer: array for name, array in answer.columns.items()}
        for name in asked:
            if name not in arrays:
                raise BadRequestError(f"there is no output {name!r}, only {', '.join(map(repr, arrays))}")
        return [to_wire(name, arrays[name]) for name in asked or arrays]

    def _param(self, name: str, value: Any) -> Any:
        """gRPC knows no lists: a parameter that is one may come as its JSON."""
        param = self._params.get(name)
        if param is None or param.shape is None or not isinstance(value, str):
            return value
        try:
            return json.loads(value)
        except ValueError as error:
            raise BadRequestError(f"parameter {name!r}: expected a list, or its JSON") from error


def _in_base64(array: Array) -> Array:
    """What came as bytes, as it would have come in JSON."""
    values = array.ravel().tolist()
    return _objects([b64encode(value).decode() if isinstance(value, bytes) else value for value in values])


def _as_text(name: str, array: Array) -> Array:
    values = array.tolist()
    if not any(isinstance(value, bytes) for value in values):
        return array
    try:
        return _objects([value.decode() if isinstance(value, bytes) else value for value in values])
    except UnicodeDecodeError as error:
        raise BadRequestError(f"tensor {name!r}: not text in UTF-8: {error}") from error


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _raw(tensors: Mapping[str, Array], params: Mapping[str, Any], frame: bool) -> Raw:
    lists = {}
    for name, array in tensors.items():
        flat = _as_text(name, array.reshape(-1)) if array.dtype.kind == "O" else array
        lists[name] = flat.reshape(array.shape).tolist()
    told: dict[str, Any] = {"dataframe_split": _frame(lists)} if frame else {"inputs": lists}
    if not frame and len(lists) == 1:
        told = {"inputs": next(iter(lists.values()))}
    return Raw(json.dumps(told | ({"params": params} if params else {})).encode(), "application/json")


def _frame(lists: Mapping[str, list[Any]]) -> dict[str, Any]:
    if len({len(values) for values in lists.values()}) > 1:
        raise BadRequestError("each tensor is a column here: all need the same number of rows")
    columns = [[_alone(value) for value in values] for values in lists.values()]
    return {"columns": list(lists), "data": [list(row) for row in zip(*columns)]}  # noqa: B905 - just checked


def _alone(value: Any) -> Any:
    """A column may be ``[n, 1]``."""
    return value[0] if isinstance(value, list) and len(value) == 1 else value


def _of_written(answer: Written, name: str) -> dict[str, Array]:
    """An answer that MLflow wrote; what is neither rows nor columns of values is one text of JSON."""
    if answer.whole:
        return {name: _objects([answer.predictions.decode()])}
    told = json.loads(answer.predictions)
    if isinstance(told, dict) and told and all(isinstance(values, list) for values in told.values()):
        return {key: _array(values) for key, values in told.items()}
    if not isinstance(told, list):
        return {name: _array([told])}
    names = list(told[0]) if told and isinstance(told[0], dict) else []
    if names and all(isinstance(row, dict) and list(row) == names for row in told):
        return {key: _array(row[key] for row in told) for key in names}
    return {name: _array(told)}


def _array(values: Iterable[Any]) -> Array:
    """Nested lists as dimensions, where they all have the same length."""
    values = list(values)
    try:
        return np.array(values, dtype=object)
    except ValueError:
        return _objects(values)


def _name_of_answer(plan: Plan) -> str:
    return plan.outputs[0].name or PREDICTION if len(plan.outputs) == 1 else PREDICTION


def _outputs(plan: Plan) -> list[dict[str, Any]]:
    if plan.compiled is None:
        return [_described(part, PREDICTION) for part in plan.outputs]
    unnamed = _name_of_answer(plan)
    return [
        {"name": result.name or unnamed, "datatype": datatype_of(np.dtype(result.dtype)), "shape": [-1, *result.shape]}
        for result in plan.compiled.results
    ]


def _described(part: Column | Tensor, unnamed: str) -> dict[str, Any]:
    dtype = np.dtype(KINDS[part.kind] if isinstance(part, Column) else part.dtype)
    shape = [-1] if isinstance(part, Column) else list(part.shape)
    return {"name": part.name or unnamed, "datatype": datatype_of(dtype), "shape": shape}
