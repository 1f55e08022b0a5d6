"""Models that are ONNX already: served as they are, without the layers above them.

MLflow answers a frame with a frame, a column for each output; tensors it answers with a mapping, which arrays cannot
say, so those are served natively.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import onnx
from onnx import TensorProto

from serving.compiling.conversion import Conversion, Loaded, NotConvertible
from serving.runtime.plan import Feed

_DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
}

TOLERANCE = 1e-6
"""The same runtime; how many rows come together may change the order of sums."""


def convert(loaded: Loaded) -> Conversion:
    """A model that takes all columns as one matrix, as MLflow feeds it where it has one input."""
    if not loaded.plan.columns or not loaded.frame:
        raise NotConvertible("MLflow answers tensors of ONNX models with a mapping")
    model = onnx.load(_file(loaded))
    constants = {part.name for part in model.graph.initializer}
    inputs = [part for part in model.graph.input if part.name not in constants]
    if len(inputs) != 1:
        raise NotConvertible(f"the model has {len(inputs)} inputs, of which MLflow makes one column each")
    feed = Feed(inputs[0].name, tuple(column.name for column in loaded.plan.columns), _dtype(inputs[0]))
    results = tuple(replace(result, source=result.name) for result in loaded.results)
    return Conversion(bytes(model.SerializeToString()), (feed,), results, TOLERANCE, frame=True)


def _file(loaded: Loaded) -> str:
    return str(loaded.folder / loaded.pyfunc.metadata.flavors["onnx"]["data"])


def _dtype(part: Any) -> str:
    kind = part.type.tensor_type.elem_type
    if kind not in _DTYPES:
        raise NotConvertible(f"its input {part.name!r} is no tensor of numbers")
    return _DTYPES[kind]
