"""scikit-learn's estimators and pipelines by skl2onnx, computed in double; trees by converters of our own.

Numbers go in as doubles, which is what scikit-learn makes of a frame of numbers before it computes; columns that an
encoder looks up keep their own type. A pipeline that picks columns by name gets an input for each column; any other
estimator gets the matrix that pandas would give it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from sklearn.base import is_classifier
from sklearn.compose import ColumnTransformer
from sklearn.pipeline import FeatureUnion, Pipeline

from serving.compiling.conversion import Conversion, Edge, Loaded, NotConvertible
from serving.compiling.graph import finished, gather_inputs, keep_outputs
from serving.compiling.hints import Hints
from serving.compiling.sklearn_features import hints_of
from serving.compiling.sklearn_tree_nodes import CONVERTERS, SHAPES
from serving.runtime.plan import Column, Feed, Plan

_OPSET = 18
_ML_OF_TREES = 5

_MATRIX = "rows"

_TYPES = {"float64": DoubleTensorType, "int64": Int64TensorType, "object": StringTensorType}

EXACT, ROUNDED = 1e-9, 1e-5
"""Tolerances: where all is computed in double, and where the model computes in float32 what is double here."""


def convert(loaded: Loaded) -> Conversion:
    """A scikit-learn model whose answers are one array."""
    output = _output(loaded)
    hints = hints_of(loaded.native, [column.name for column in loaded.plan.columns])
    inputs = _inputs(loaded, hints)
    model = _converted(loaded.native, inputs)
    output = model.graph.output[output].name
    keep_outputs(model.graph, [output])
    feeds = _feeds(model, loaded.plan, inputs)
    ml = _ML_OF_TREES if any(node.op_type == "TreeEnsemble" for node in model.graph.node) else None
    return Conversion(
        finished(model, [output], ml),
        feeds,
        tuple(replace(result, source=output) for result in loaded.results),
        ROUNDED if _float32(loaded.plan) else EXACT,
        _edges(hints),
        loaded.frame,
    )


def _output(loaded: Loaded) -> int:
    """Which of the converted model's outputs is asked for."""
    asked = loaded.pyfunc.metadata.flavors["python_function"].get("predict_fn", "predict")
    if len(loaded.results) != 1 or loaded.frame:
        raise NotConvertible("answers of scikit-learn that are a frame are not converted")
    if asked not in ("predict", "predict_proba"):
        raise NotConvertible(f"answers of {asked} are not converted")
    return 1 if asked == "predict_proba" else 0


def _inputs(loaded: Loaded, hints: Hints) -> dict[str, tuple[str, int]]:
    """Name of each input to NumPy type and width."""
    if loaded.plan.tensors:
        return {_MATRIX: ("float64", _width(loaded.plan))}
    types = {column.name: _type(column, column.name in hints.categories) for column in loaded.plan.columns}
    if _picks_columns(loaded.native) or len(set(types.values())) > 1:
        return {name: (dtype, 1) for name, dtype in types.items()}
    return {_MATRIX: (next(iter(types.values())), len(types))}


def _width(plan: Plan) -> int:
    if len(plan.tensors) != 1 or len(plan.tensors[0].shape) != 2 or plan.tensors[0].shape[1] < 1:
        raise NotConvertible("a scikit-learn model whose input is no matrix of known width is not converted")
    return plan.tensors[0].shape[1]


def _type(column: Column, encoded: bool) -> str:
    if column.kind == "string":
        if not encoded:
            raise NotConvertible(f"the text of column {column.name!r} does not end in an encoder with known categories")
        return "object"
    if column.kind in ("binary", "datetime"):
        raise NotConvertible(f"column {column.name!r} is {column.kind}")
    if not column.required:
        return "float64"
    return "int64" if encoded and column.kind in ("integer", "long") else "float64"


def _picks_columns(model: Any) -> bool:
    """Whether the first step that does anything is given columns by name."""
    if isinstance(model, Pipeline):
        return any(_picks_columns(step) for _, step in model.steps[:1]) or (
            model.steps[0][1] in (None, "passthrough") and _picks_columns(model[1:])
        )
    return isinstance(model, ColumnTransformer | FeatureUnion)


def _converted(model: Any, inputs: dict[str, tuple[str, int]]) -> ModelProto:
    types = [(name, _TYPES[dtype]([None, width])) for name, (dtype, width) in inputs.items()]
    options = {id(model): {"zipmap": False}} if is_classifier(model) else None
    converted: ModelProto = convert_sklearn(
        model,
        initial_types=types,
        options=options,
        target_opset=_OPSET,
        custom_conversion_functions=dict(CONVERTERS),
        custom_shape_calculators=dict(SHAPES),
    )
    return converted


def _feeds(model: ModelProto, plan: Plan, inputs: dict[str, tuple[str, int]]) -> tuple[Feed, ...]:
    if _MATRIX not in inputs or len(inputs) > 1:
        return gather_inputs(model.graph)
    names = (plan.tensors[0].name,) if plan.tensors else tuple(column.name for column in plan.columns)
    return (Feed(_MATRIX, names, inputs[_MATRIX][0]),)


def _float32(plan: Plan) -> bool:
    kinds = {column.kind for column in plan.columns} | {tensor.dtype for tensor in plan.tensors}
    return bool(kinds & {"float", "float32"})


def _edges(hints: Hints) -> tuple[Edge, ...]:
    numbers = [Edge(name, tuple(np.unique(values).tolist())) for name, values in hints.edges.items()]
    return (*numbers, *(Edge(name, values) for name, values in hints.categories.items()))
