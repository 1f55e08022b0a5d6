"""The Open Inference Protocol v2 in JSON, translated to and from MLflow's scoring protocol.

A tensor is a column where the signature has columns (shape ``[n]`` or ``[n, 1]``), and an array where it has
tensors or there is none. What has no meaning here is refused, not ignored: binary data, unknown types.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
from mlflow.types import Schema

from serving.prediction_log import columns_of
from serving.runtime.scoring import Answer, Scorer

_TYPES = {
    "BOOL": "bool",
    **{f"{sign}{bits}": f"{sign.lower()}{bits}" for sign in ("INT", "UINT") for bits in (8, 16, 32, 64)},
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "object",
}
_NAMES = {name: datatype for datatype, name in _TYPES.items()}


class RequestError(ValueError):
    """The request is not one of the protocol, or its tensors do not fit the model."""


def describe(name: str, version: str, scorer: Scorer) -> dict[str, Any]:
    """The model's metadata as the protocol has it."""
    told = {"name": name, "versions": [version], "platform": "mlflow"}
    outputs = scorer.model.metadata.get_output_schema()  # type: ignore[no-untyped-call]
    return told | {"inputs": _described(scorer.schema, "0"), "outputs": _described(outputs, "prediction")}


def infer(name: str, version: str, scorer: Scorer, body: bytes) -> Answer:
    """Answer one inference request."""
    try:
        request = _request(body)
        asked = json.dumps(_translated(request["inputs"], scorer.schema)).encode()
    except RequestError as error:
        return failure(400, "BAD_REQUEST", str(error))
    answer = scorer.score(asked, "application/json")
    if answer.status != 200:
        return failure(answer.status, "", json.loads(answer.body)["message"])
    told = {"model_name": name, "model_version": version, "outputs": _tensors(answer.outputs)}
    told |= {"id": request["id"]} if "id" in request else {}
    return Answer(200, json.dumps(told, default=str).encode(), inputs=answer.inputs, outputs=answer.outputs)


def failure(status: int, code: str, message: str) -> Answer:  # noqa: ARG001
    """An error as the protocol writes it."""
    return Answer(status, json.dumps({"error": message}).encode())


def _request(body: bytes) -> dict[str, Any]:
    try:
        request = json.loads(body)
    except ValueError as error:
        raise RequestError(f"the request is not JSON: {error}") from error
    inputs = request.get("inputs") if isinstance(request, dict) else None
    if not isinstance(inputs, list) or not inputs or not all(isinstance(tensor, dict) for tensor in inputs):
        raise RequestError("the request has no list of tensors called 'inputs'")
    return dict(request)


def _translated(tensors: list[dict[str, Any]], schema: Schema | None) -> dict[str, Any]:
    """The same request in MLflow's scoring protocol."""
    arrays = {str(tensor.get("name")): _array(tensor) for tensor in tensors}
    if schema is not None and not schema.is_tensor_spec():
        return {"dataframe_split": _frame(arrays)}
    if len(arrays) == 1 and (schema is None or not schema.has_input_names()):
        return {"inputs": next(iter(arrays.values())).tolist()}
    return {"inputs": {name: array.tolist() for name, array in arrays.items()}}


def _frame(arrays: Mapping[str, np.ndarray[Any, Any]]) -> dict[str, Any]:
    rows = {len(array) for array in arrays.values()}
    if len(rows) != 1 or any(array.size != len(array) for array in arrays.values()):
        raise RequestError("each tensor is a column here: all need the same shape, [n] or [n, 1]")
    columns = [array.ravel().tolist() for array in arrays.values()]
    return {"columns": list(arrays), "data": [list(row) for row in zip(*columns)]}  # noqa: B905


def _array(tensor: Mapping[str, Any]) -> np.ndarray[Any, Any]:
    name, datatype, shape = tensor.get("name"), tensor.get("datatype"), tensor.get("shape")
    if datatype not in _TYPES:
        raise RequestError(f"tensor {name!r}: datatype {datatype!r} is not one of {', '.join(_TYPES)}")
    if "data" not in tensor:
        raise RequestError(f"tensor {name!r}: no 'data'; binary data is not understood")
    if not isinstance(shape, list) or not shape or not all(isinstance(size, int) and size > 0 for size in shape):
        raise RequestError(f"tensor {name!r}: 'shape' is not a list of positive numbers")
    try:
        return np.array(tensor["data"], dtype=_TYPES[datatype]).reshape(shape)
    except (ValueError, TypeError, OverflowError) as error:
        raise RequestError(f"tensor {name!r}: {error}") from error


def _tensors(outputs: Any) -> list[dict[str, Any]]:
    if isinstance(outputs, np.ndarray):
        arrays = {"prediction": outputs}
    elif hasattr(outputs, "columns") and hasattr(outputs, "iloc"):
        arrays = {str(name): outputs.iloc[:, i].to_numpy() for i, name in enumerate(outputs.columns)}
    else:
        arrays = {name: np.array(values) for name, values in columns_of(outputs, "prediction").items()}
    return [
        {"name": name, "datatype": _datatype(a.dtype), "shape": list(a.shape), "data": a.ravel().tolist()}
        for name, a in arrays.items()
    ]


def _described(schema: Schema | None, unnamed: str) -> list[dict[str, Any]]:
    if schema is None:
        return []
    return [
        {
            "name": spec.name or unnamed,
            "datatype": _datatype(np.dtype(_numpy(spec.type))),
            "shape": list(getattr(spec, "shape", (-1,))),
        }
        for spec in schema.inputs
    ]


def _numpy(kind: Any) -> Any:
    """The NumPy type of a tensor's or a column's type; columns of arrays and objects are just objects."""
    if isinstance(kind, np.dtype):
        return kind
    return kind.to_numpy() if hasattr(kind, "to_numpy") else "object"


def _datatype(dtype: np.dtype[Any]) -> str:
    return _NAMES.get(dtype.name, "BYTES")
