"""scikit-learn's estimators and pipelines by skl2onnx, computed in double; trees by converters of our own.

Numbers go in as doubles, which is what scikit-learn makes of a frame of numbers before it computes; columns that an
encoder looks up keep their own type. A pipeline that picks columns by name gets an input for each column; any other
estimator gets the matrix that pandas would give it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto
from onnx.shape_inference import infer_shapes
from skl2onnx import convert_sklearn
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import VotingClassifier
from sklearn.pipeline import FeatureUnion, Pipeline

from serving.compiling import sklearn_encoders, sklearn_steps, sklearn_tree_nodes
from serving.compiling.conversion import Conversion, Edge, Loaded, NotConvertible
from serving.compiling.graph import finished, gather_inputs, keep_outputs
from serving.compiling.hints import Hints
from serving.compiling.sklearn_features import hints_of
from serving.compiling.sklearn_writer import ROUNDED
from serving.runtime.plan import Column, Feed, Plan

_OPSET = 18
_ML = 5

_MATRIX = "rows"

_CONVERTERS = sklearn_tree_nodes.CONVERTERS | sklearn_encoders.CONVERTERS | sklearn_steps.CONVERTERS
_SHAPES = sklearn_tree_nodes.SHAPES | sklearn_encoders.SHAPES | sklearn_steps.SHAPES

_ROUNDING = {"LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor"}
_ROUNDING |= {"TreeEnsembleClassifier", "TreeEnsembleRegressor"}
"""ONNX operators that compute in float32 whatever they are given."""

_TYPES = {"float64": DoubleTensorType, "int64": Int64TensorType, "object": StringTensorType}

EXACT, NEAR = 1e-9, 1e-5
"""Tolerances: where all is computed in double, and where the model computes in float32 what is double here."""


def convert(loaded: Loaded) -> Conversion:
    """A scikit-learn model whose answers are one array."""
    output, estimator = _output(loaded), getattr(loaded.native, "best_estimator_", loaded.native)
    hints = hints_of(estimator, [column.name for column in loaded.plan.columns])
    inputs = _inputs(estimator, loaded.plan, hints)
    model = _converted(estimator, inputs, labels=output == 0)
    output = model.graph.output[output].name
    keep_outputs(model.graph, [output])
    _refuse_rounding(model)
    feeds = _feeds(model, loaded.plan, inputs)
    return Conversion(
        finished(model, [output], _ML),
        feeds,
        tuple(replace(result, source=output) for result in loaded.results),
        NEAR if _float32(loaded.plan) else EXACT,
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


def _inputs(estimator: Any, plan: Plan, hints: Hints) -> dict[str, tuple[str, int]]:
    """Name of each input to NumPy type and width."""
    if plan.tensors:
        return {_MATRIX: ("float64", _width(plan))}
    types = {column.name: _type(column, hints) for column in plan.columns}
    if _picks_columns(estimator) or len(set(types.values())) > 1:
        return {name: (dtype, 1) for name, dtype in types.items()}
    return {_MATRIX: (next(iter(types.values())), len(types))}


def _width(plan: Plan) -> int:
    if len(plan.tensors) != 1 or len(plan.tensors[0].shape) != 2 or plan.tensors[0].shape[1] < 1:
        raise NotConvertible("a scikit-learn model whose input is no matrix of known width is not converted")
    return plan.tensors[0].shape[1]


def _type(column: Column, hints: Hints) -> str:
    if column.kind == "string":
        if column.name in hints.opaque:
            raise NotConvertible(f"the text of column {column.name!r} does not end in an encoder with known categories")
        return "object"
    if column.kind in ("binary", "datetime"):
        raise NotConvertible(f"column {column.name!r} is {column.kind}")
    if not column.required:
        return "float64"
    return "int64" if column.name in hints.categories and column.kind in ("integer", "long") else "float64"


def _picks_columns(model: Any) -> bool:
    """Whether the first step that does anything is given columns by name."""
    if isinstance(model, Pipeline):
        return any(_picks_columns(step) for _, step in model.steps[:1]) or (
            model.steps[0][1] in (None, "passthrough") and _picks_columns(model[1:])
        )
    if isinstance(model, FeatureUnion):
        return any(_picks_columns(part) for _, part in model.transformer_list)
    return isinstance(model, ColumnTransformer)


def _converted(model: Any, inputs: dict[str, tuple[str, int]], labels: bool) -> ModelProto:
    types = [(name, _TYPES[dtype]([None, width])) for name, (dtype, width) in inputs.items()]
    for part in (model, *model.get_params().values()):
        if isinstance(part, VotingClassifier):
            part.flatten_transform = False  # skl2onnx insists, and no prediction depends on it
    converters, shapes = _CONVERTERS, _SHAPES
    last = model.steps[-1][1] if isinstance(model, Pipeline) else model
    if labels and isinstance(last, sklearn_steps.LINEAR):
        converters, shapes = converters | sklearn_steps.LINEAR_CONVERTERS, shapes | sklearn_steps.LINEAR_SHAPES
    converted: ModelProto = convert_sklearn(
        model,
        initial_types=types,
        options={id(model): {"zipmap": False}} if hasattr(model, "predict_proba") else None,
        target_opset=_OPSET,
        custom_conversion_functions=converters,
        custom_shape_calculators=shapes,
    )
    return converted


def _refuse_rounding(model: ModelProto) -> None:
    """`NotConvertible` where anything is float32 that is not in the model itself.

    Labels would flip on rows so rare that no proof finds them.
    """
    makers = {node.op_type for node in model.graph.node}
    if found := sorted(makers & _ROUNDING):
        raise NotConvertible(f"a part of it would be computed in float32 ({', '.join(found)})")
    inferred = infer_shapes(model)
    for part in (*inferred.graph.value_info, *inferred.graph.output):
        if part.type.tensor_type.elem_type == TensorProto.FLOAT and ROUNDED not in part.name:
            maker = next(node.op_type for node in inferred.graph.node if part.name in node.output)
            raise NotConvertible(f"a part of it would be computed in float32 ({maker})")


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
