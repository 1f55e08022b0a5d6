"""Models that are ONNX already: served as they are, without the layers above them.

MLflow answers a frame with a frame, a column for each output; tensors it answers with a mapping, which arrays cannot
say, so those are served natively.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, ValueInfoProto, helper, numpy_helper

from serving.compiling.conversion import Conversion, Loaded, NotConvertible
from serving.runtime.plan import Feed

_DTYPES = {
    TensorProto.FLOAT: "float32",
    TensorProto.DOUBLE: "float64",
    TensorProto.INT32: "int32",
    TensorProto.INT64: "int64",
    TensorProto.BOOL: "bool",
    TensorProto.STRING: "object",
}

TOLERANCE = 1e-6
"""The same runtime; how many rows come together may change the order of sums."""


def convert(loaded: Loaded) -> Conversion:
    """A model with one input takes all columns as one matrix, and else each input is the column of its name."""
    if not loaded.plan.columns or not loaded.frame:
        raise NotConvertible("MLflow answers tensors of ONNX models with a mapping")
    model = onnx.load(_file(loaded))
    constants = {part.name for part in model.graph.initializer}
    inputs = [part for part in model.graph.input if part.name not in constants]
    feeds = _feeds(model, inputs, tuple(column.name for column in loaded.plan.columns))
    results = tuple(replace(result, source=result.name) for result in loaded.results)
    return Conversion(bytes(model.SerializeToString()), feeds, results, TOLERANCE, frame=True)


def _feeds(model: onnx.ModelProto, inputs: list[ValueInfoProto], columns: tuple[str, ...]) -> tuple[Feed, ...]:
    if len(inputs) == 1:
        return (Feed(inputs[0].name, columns, _dtype(inputs[0])),)
    return tuple(_column(model, part) for part in inputs)


def _column(model: onnx.ModelProto, part: ValueInfoProto) -> Feed:
    """MLflow gives a column as a vector and the server as a matrix one wide, of which a new step makes a vector."""
    matrix, flat = f"{part.name} of rows", f"{part.name} of any length"
    kind = part.type.tensor_type.elem_type
    model.graph.initializer.append(numpy_helper.from_array(np.array([-1], np.int64), flat))
    model.graph.node.insert(0, helper.make_node("Reshape", [matrix, flat], [part.name]))
    model.graph.input.append(helper.make_tensor_value_info(matrix, kind, [None, 1]))
    model.graph.input.remove(part)
    return Feed(matrix, (part.name,), _dtype(part))


def _file(loaded: Loaded) -> str:
    return str(loaded.folder / loaded.pyfunc.metadata.flavors["onnx"]["data"])


def _dtype(part: Any) -> str:
    kind = part.type.tensor_type.elem_type
    if kind not in _DTYPES:
        raise NotConvertible(f"its input {part.name!r} is no tensor of numbers or text")
    return _DTYPES[kind]
