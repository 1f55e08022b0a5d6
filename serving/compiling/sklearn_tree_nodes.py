"""Writes scikit-learn's trees as exact ONNX, in the place of skl2onnx's converters, which compute in float32.

What scikit-learn does, and so does this: trees and forests round their input to float32 and compare it with thresholds
in double; histogram boosting compares doubles. Leaves are summed in double in the order of the trees, then divided by
their number (forests) or added to a constant (boosting). Ties go to the first class, as `argmax` has it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from skl2onnx.common.data_types import DoubleTensorType
from skl2onnx.common.shape_calculator import (
    calculate_linear_classifier_output_shapes,
    calculate_linear_regressor_output_shapes,
)
from sklearn.base import ClassifierMixin
from sklearn.ensemble import GradientBoostingClassifier, GradientBoostingRegressor

from serving.compiling.conversion import NotConvertible
from serving.compiling.sklearn_trees import BOOSTING, FORESTS, HISTOGRAMS, SINGLE, trees_of
from serving.compiling.sklearn_writer import Writer, write_labels, write_labels_of_two
from serving.compiling.tree_arrays import Tree


def _write_forest_classifier(_: Any, operator: Any, container: Any) -> None:
    model, writer = operator.raw_operator, Writer(operator, container)
    trees, classes = trees_of(model), len(model.classes_)
    number = writer.constant(float(len(trees)), "number")
    if classes == 2 and all(_pure(tree) for tree in trees):
        first, second = _pure_shares(writer, trees, number)
        write_labels_of_two(writer, model.classes_, "Less", first, second)
        return
    sums = writer.sums(trees, classes, rounded=True)
    shares = writer.node("Div", [sums, number], writer.targets[1])
    write_labels(writer, model.classes_, shares)


def _pure(tree: Tree) -> bool:
    """Whether a leaf is all one class or all the other: sums are then whole numbers, and one tells the other."""
    values = tree.value[tree.left == -1]
    return bool(np.isin(values, (0.0, 1.0)).all() and (values.sum(axis=1) == 1.0).all())


def _pure_shares(writer: Writer, trees: list[Tree], number: str) -> tuple[str, str]:
    """Both classes' sums, of which one is counted."""
    second = [_only(tree, 1) for tree in trees]
    sums = writer.sums(second, 1, rounded=True)
    rest = writer.node("Sub", [number, sums], writer.name("rest"))
    both = writer.node("Concat", [rest, sums], writer.name("both"), axis=1)
    writer.node("Div", [both, number], writer.targets[1])
    return rest, sums


def _only(tree: Tree, value: int) -> Tree:
    """The tree with one of its values."""
    kept = tree.value[:, value : value + 1]
    return Tree(tree.feature, tree.threshold, tree.left, tree.right, kept, tree.missing_left)


def _write_forest_regressor(_: Any, operator: Any, container: Any) -> None:
    model, writer = operator.raw_operator, Writer(operator, container)
    trees = trees_of(model)
    sums = writer.sums(trees, model.n_outputs_, rounded=True)
    writer.node("Div", [sums, writer.constant(float(len(trees)), "number")], writer.targets[0])


def _write_boosting_classifier(_: Any, operator: Any, container: Any) -> None:
    model, writer = operator.raw_operator, Writer(operator, container)
    old = isinstance(model, GradientBoostingClassifier)
    if old and model.loss not in ("log_loss", "deviance"):
        raise NotConvertible(f"gradient boosting with the loss {model.loss} is not converted")
    targets = model.n_trees_per_iteration_ if hasattr(model, "n_trees_per_iteration_") else len(model.estimators_[0])
    sums = writer.sums(trees_of(model), targets, rounded=old)
    if targets > 1:
        writer.node("Softmax", [sums], writer.targets[1], axis=1)
        write_labels(writer, model.classes_, sums)
    else:
        _write_sigmoid(writer, sums)
        comparison = "GreaterOrEqual" if old else "Greater"
        write_labels_of_two(writer, model.classes_, comparison, sums, writer.constant(0.0, "zero"))


def _write_sigmoid(writer: Writer, sums: str) -> None:
    second = writer.node("Sigmoid", [sums], writer.name("second"))
    first = writer.node("Sub", [writer.constant(1.0, "one"), second], writer.name("first"))
    writer.node("Concat", [first, second], writer.targets[1], axis=1)


def _write_boosting_regressor(_: Any, operator: Any, container: Any) -> None:
    model, writer = operator.raw_operator, Writer(operator, container)
    old = isinstance(model, GradientBoostingRegressor)
    sums = writer.sums(trees_of(model), 1, rounded=old)
    if not old and model.loss in ("poisson", "gamma"):
        writer.node("Exp", [sums], writer.targets[0])
    else:
        writer.node("Identity", [sums], writer.targets[0])


CONVERTERS: dict[type, Callable[..., None]] = {
    **dict.fromkeys((*FORESTS[:2], *SINGLE[:2]), _write_forest_classifier),
    **dict.fromkeys((*FORESTS[2:], *SINGLE[2:]), _write_forest_regressor),
    **dict.fromkeys((BOOSTING[0], HISTOGRAMS[0]), _write_boosting_classifier),
    **dict.fromkeys((BOOSTING[1], HISTOGRAMS[1]), _write_boosting_regressor),
}
"""By class, for skl2onnx."""


def _classifier_shapes(operator: Any) -> None:
    calculate_linear_classifier_output_shapes(operator)
    operator.outputs[1].type = DoubleTensorType(operator.outputs[1].type.shape)


def _regressor_shapes(operator: Any) -> None:
    calculate_linear_regressor_output_shapes(operator)
    operator.outputs[0].type = DoubleTensorType(operator.outputs[0].type.shape)


SHAPES: dict[type, Callable[[Any], None]] = {
    kind: _classifier_shapes if issubclass(kind, ClassifierMixin) else _regressor_shapes for kind in CONVERTERS
}
"""By class, for skl2onnx: scores are doubles."""
