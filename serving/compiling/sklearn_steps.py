"""Preparing steps and linear classifiers that skl2onnx does not write in double."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto
from skl2onnx.common.data_types import DoubleTensorType, Int64TensorType, StringTensorType
from sklearn.impute import SimpleImputer
from sklearn.linear_model import (
    LogisticRegression,
    LogisticRegressionCV,
    Perceptron,
    RidgeClassifier,
    RidgeClassifierCV,
    SGDClassifier,
)
from sklearn.preprocessing import Binarizer, FunctionTransformer, KBinsDiscretizer, PolynomialFeatures
from sklearn.svm import LinearSVC

from serving.compiling.conversion import NotConvertible
from serving.compiling.sklearn_writer import Writer, write_labels, write_labels_of_two
from serving.runtime.exchange import Array

_UFUNCS: dict[Any, str] = {np.abs: "Abs", np.sqrt: "Sqrt", np.exp: "Exp", np.log: "Log", np.sin: "Sin", np.cos: "Cos"}


def _write_imputer(_: Any, operator: Any, container: Any) -> None:
    imputer, writer = operator.raw_operator, Writer(operator, container)
    if isinstance(operator.inputs[0].type, StringTensorType):
        _write_text_imputer(imputer, writer)
        return
    if not np.isnan(imputer.missing_values):
        raise NotConvertible("an imputer of something else than missing values is not converted")
    source = writer.matrix()
    statistics = np.asarray(imputer.statistics_, dtype=np.float64)
    missing = writer.step("IsNaN", [source], "missing")
    filled = writer.step("Where", [missing, writer.constant(statistics, "statistics"), source], "filled")
    parts = [_chosen(writer, filled, np.flatnonzero(~np.isnan(statistics)), len(statistics), "kept")]
    if imputer.add_indicator:
        flags = writer.step("Cast", [missing], "flags", to=TensorProto.DOUBLE)
        parts.append(_chosen(writer, flags, imputer.indicator_.features_, len(statistics), "indicated"))
    writer.node("Concat", parts, writer.targets[0], axis=1)


def _write_text_imputer(imputer: Any, writer: Writer) -> None:
    """An imputer of NaN leaves texts as they are: in a request a missing text is None."""
    if imputer.missing_values is None or imputer.missing_values == imputer.missing_values or imputer.add_indicator:
        raise NotConvertible("an imputer of texts is only converted where it looks for NaN")
    writer.node("Concat", [part.full_name for part in writer.inputs], writer.targets[0], axis=1)


def _chosen(writer: Writer, source: str, columns: Array, width: int, what: str) -> str:
    if len(columns) == width:
        return source
    return writer.step("Gather", [source, writer.constant(np.asarray(columns, np.int64), f"{what}_at")], what, axis=1)


def _write_binarizer(_: Any, operator: Any, container: Any) -> None:
    writer = Writer(operator, container)
    threshold = writer.constant(np.float64(operator.raw_operator.threshold), "threshold")
    holds = writer.step("Greater", [writer.matrix(), threshold], "holds")
    writer.node("Cast", [holds], writer.targets[0], to=TensorProto.DOUBLE)


def _write_bins(_: Any, operator: Any, container: Any) -> None:
    """A value's bin is the number of inner edges that it has reached."""
    bins, writer = operator.raw_operator, Writer(operator, container)
    inner = [np.asarray(edges[1:-1], np.float64) for edges in bins.bin_edges_]
    edges = np.full((len(inner), max(1, *map(len, inner))), np.inf)
    for position, part in enumerate(inner):
        edges[position, : len(part)] = part
    raised = writer.step("Unsqueeze", [writer.matrix(), writer.constant(np.array([2]), "last")], "raised")
    reached = writer.step("GreaterOrEqual", [raised, writer.constant(edges, "edges")], "reached")
    counts = writer.step("Cast", [reached], "counts", to=TensorProto.DOUBLE)
    axis = writer.constant(np.array([2]), "axis")
    if bins.encode == "ordinal":
        writer.node("ReduceSum", [counts, axis], writer.targets[0], keepdims=0)
        return
    number = writer.step("ReduceSum", [counts, axis], "number", keepdims=1)
    _write_one_hot(writer, number, bins.n_bins_, edges.shape[1] + 1)


def _write_one_hot(writer: Writer, number: str, bins: Array, most: int) -> None:
    """(rows, columns, 1) bins as one column for each bin of each column."""
    same = writer.step("Equal", [number, writer.constant(np.arange(most, dtype=np.float64), "bins")], "same")
    flags = writer.step("Cast", [same], "one_hot", to=TensorProto.DOUBLE)
    flat = writer.step("Reshape", [flags, writer.constant(np.array([-1, len(bins) * most]), "shape")], "all_bins")
    real = np.concatenate([np.arange(width) + position * most for position, width in enumerate(bins)])
    writer.node("Gather", [flat, writer.constant(real, "real_bins")], writer.targets[0], axis=1)


def _write_polynomial(_: Any, operator: Any, container: Any) -> None:
    """Products of columns, of which a column of ones makes those of fewer factors."""
    step, writer = operator.raw_operator, Writer(operator, container)
    source = writer.matrix()
    first = writer.step("Gather", [source, writer.constant(np.array([0]), "first_at")], "first", axis=1)
    nothing = writer.step("Mul", [first, writer.constant(np.float64(0.0), "zero")], "nothing")
    ones = writer.step("Exp", [nothing], "ones")
    factors = writer.step("Concat", [ones, source], "factors", axis=1)
    columns = _factors(step)
    product = ""
    for slot in range(columns.shape[1]):
        at = writer.constant(columns[:, slot], f"at_{slot}")
        factor = writer.step("Gather", [factors, at], f"factor_{slot}", axis=1)
        product = writer.step("Mul", [product, factor], f"product_{slot}") if product else factor
    writer.node("Identity", [product], writer.targets[0])


def _factors(step: PolynomialFeatures) -> Array:
    """For every output the input columns that are multiplied, counted from 1; 0 is no column."""
    degree = max(1, int(step.powers_.sum(axis=1).max()))
    columns = np.zeros((len(step.powers_), degree), np.int64)
    for output, powers in enumerate(step.powers_):
        factors = np.repeat(np.arange(len(powers)) + 1, powers)
        columns[output, : len(factors)] = factors
    return columns


def _write_function(_: Any, operator: Any, container: Any) -> None:
    step, writer = operator.raw_operator, Writer(operator, container)
    if step.func is None:
        writer.node("Identity", [writer.matrix()], writer.targets[0])
    elif step.func is np.log1p:
        more = writer.step("Add", [writer.matrix(), writer.constant(np.float64(1.0), "one")], "more")
        writer.node("Log", [more], writer.targets[0])
    elif step.func in _UFUNCS and not step.kw_args:
        writer.node(_UFUNCS[step.func], [writer.matrix()], writer.targets[0])
    else:
        raise NotConvertible(f"the function {getattr(step.func, '__name__', step.func)} is not converted")


def _write_linear(_: Any, operator: Any, container: Any) -> None:
    """Labels of a linear classifier, as its `predict` finds them. The second output is not used."""
    model, writer = operator.raw_operator, Writer(operator, container)
    if np.ndim(model.classes_) != 1 or isinstance(model.classes_, list):
        raise NotConvertible("a classifier with several outputs is not converted")
    weights = writer.constant(np.asarray(model.coef_, np.float64).reshape(-1, model.n_features_in_).T, "weights")
    product = writer.step("MatMul", [writer.matrix(), weights], "product")
    start = writer.constant(np.asarray(model.intercept_, np.float64).ravel(), "start")
    scores = writer.step("Add", [product, start], "scores")
    if len(model.classes_) == 2:
        write_labels_of_two(writer, model.classes_, "Greater", scores, writer.constant(np.float64(0.0), "zero"))
    else:
        write_labels(writer, model.classes_, scores)
    for unused in writer.targets[1:]:
        writer.node("Identity", [scores], unused)


def _widths(operator: Any) -> int:
    return sum(part.type.shape[1] for part in operator.inputs)


def _same_shape(operator: Any) -> None:
    operator.outputs[0].type = DoubleTensorType([operator.inputs[0].type.shape[0], _widths(operator)])


def _named_shape(operator: Any) -> None:
    """As many columns as the step has names for."""
    rows = operator.inputs[0].type.shape[0]
    kind = StringTensorType if isinstance(operator.inputs[0].type, StringTensorType) else DoubleTensorType
    operator.outputs[0].type = kind([rows, len(operator.raw_operator.get_feature_names_out())])


def _label_shape(operator: Any) -> None:
    words = np.asarray(operator.raw_operator.classes_).dtype.kind in "OU"
    rows = operator.inputs[0].type.shape[0]
    operator.outputs[0].type = (StringTensorType if words else Int64TensorType)([rows])
    for unused in operator.outputs[1:]:
        unused.type = DoubleTensorType([rows, None])


_STEPS: tuple[tuple[tuple[type, ...], Callable[..., None], Callable[[Any], None]], ...] = (
    ((SimpleImputer,), _write_imputer, _named_shape),
    ((Binarizer,), _write_binarizer, _same_shape),
    ((KBinsDiscretizer,), _write_bins, _named_shape),
    ((PolynomialFeatures,), _write_polynomial, _named_shape),
    ((FunctionTransformer,), _write_function, _same_shape),
)

CONVERTERS: dict[type, Callable[..., None]] = {kind: write for kinds, write, _ in _STEPS for kind in kinds}
"""By class, for skl2onnx."""

SHAPES: dict[type, Callable[[Any], None]] = {kind: shape for kinds, _, shape in _STEPS for kind in kinds}
"""By class, for skl2onnx."""

LINEAR = (
    *(LogisticRegression, LogisticRegressionCV, SGDClassifier, Perceptron),
    *(RidgeClassifier, RidgeClassifierCV, LinearSVC),
)
"""Classifiers that are written here where they are the last step, and only labels are asked for."""

LINEAR_CONVERTERS: dict[type, Callable[..., None]] = dict.fromkeys(LINEAR, _write_linear)
LINEAR_SHAPES: dict[type, Callable[[Any], None]] = dict.fromkeys(LINEAR, _label_shape)
