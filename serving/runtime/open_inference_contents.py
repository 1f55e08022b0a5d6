"""Inference requests and answers as messages of gRPC: to tensors, and back.

An answer has its values as the request had them: raw bytes, or lists of a type. (FP16 has no lists, so that answers
with it are raw.)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.open_inference_binary import as_bytes, from_bytes, to_bytes
from serving.runtime.open_inference_messages import CHOICE, message
from serving.runtime.open_inference_tensors import Output, dtype_of, shaped

_FIELDS = {
    "BOOL": "bool_contents",
    **dict.fromkeys(("INT8", "INT16", "INT32"), "int_contents"),
    "INT64": "int64_contents",
    **dict.fromkeys(("UINT8", "UINT16", "UINT32"), "uint_contents"),
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}
"""Datatype to the list that its values are in."""

_WIDE = np.dtype(np.int64)


def tensors_of(request: Any) -> dict[str, Array]:
    """The input tensors of a ``ModelInferRequest``."""
    raws = request.raw_input_contents
    if raws and len(raws) != len(request.inputs):
        raise BadRequestError(f"{len(raws)} raw contents for {len(request.inputs)} tensors")
    arrays = {}
    for position, tensor in enumerate(request.inputs):
        name, datatype, shape = tensor.name, tensor.datatype, tuple(tensor.shape)
        if raws:
            arrays[name] = from_bytes(name, datatype, shape, memoryview(raws[position]))
        else:
            arrays[name] = _from_contents(name, datatype, shape, tensor.contents)
    if not arrays or len(arrays) < len(request.inputs):
        raise BadRequestError("the request has no tensors, or two of the same name")
    return arrays


def parameters_of(told: Mapping[str, Any]) -> dict[str, Any]:
    chosen = {name: value.WhichOneof(CHOICE) for name, value in told.items()}
    return {name: getattr(told[name], field) for name, field in chosen.items() if field}


def response(request: Any, name: str, version: str, outputs: Sequence[Output]) -> Any:
    """The ``ModelInferResponse`` to a request."""
    answer = message("ModelInferResponse")(model_name=name, model_version=version, id=request.id)
    raw = bool(request.raw_input_contents) or any(output.datatype not in _FIELDS for output in outputs)
    for output in outputs:
        tensor = answer.outputs.add(name=output.name, datatype=output.datatype, shape=output.values.shape)
        if raw:
            answer.raw_output_contents.append(to_bytes(output))
        else:
            getattr(tensor.contents, _FIELDS[output.datatype]).extend(_values(output))
    return answer


def _from_contents(name: str, datatype: str, shape: Sequence[int], contents: Any) -> Array:
    dtype = dtype_of(name, datatype)
    if datatype not in _FIELDS:
        raise BadRequestError(f"tensor {name!r}: {datatype} has to be in raw_input_contents")
    values = getattr(contents, _FIELDS[datatype])
    if dtype.kind == "O":
        array = np.empty(len(values), dtype=object)
        array[:] = values
    else:
        array = _numbers(name, datatype, values)
    return shaped(name, array, shape)


def _numbers(name: str, datatype: str, values: Sequence[Any]) -> Array:
    """The lists of small integers are wider than the integers."""
    dtype = dtype_of(name, datatype)
    if dtype.kind not in "iu" or dtype.itemsize == _WIDE.itemsize:
        return np.fromiter(values, dtype, len(values))
    wide, bounds = np.fromiter(values, _WIDE, len(values)), np.iinfo(dtype)
    if len(wide) and not bounds.min <= wide.min() <= wide.max() <= bounds.max:
        raise BadRequestError(f"tensor {name!r}: values are not all {datatype}: {bounds.min} to {bounds.max}")
    return wide.astype(dtype)


def _values(output: Output) -> Sequence[Any]:
    flat: list[Any] = output.values.ravel().tolist()
    return [as_bytes(value) for value in flat] if output.datatype == "BYTES" else flat
