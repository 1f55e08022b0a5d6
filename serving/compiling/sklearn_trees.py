"""The trees of scikit-learn's fitted models: thresholds and leaves in double, in the order of their sum."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier, DummyRegressor
from sklearn.ensemble import (
    ExtraTreesClassifier,
    ExtraTreesRegressor,
    GradientBoostingClassifier,
    GradientBoostingRegressor,
    HistGradientBoostingClassifier,
    HistGradientBoostingRegressor,
    RandomForestClassifier,
    RandomForestRegressor,
)
from sklearn.tree import DecisionTreeClassifier, DecisionTreeRegressor, ExtraTreeClassifier, ExtraTreeRegressor

from serving.compiling.conversion import NotConvertible
from serving.compiling.tree_arrays import Tree, constant
from serving.runtime.exchange import Array

FORESTS = (RandomForestClassifier, ExtraTreesClassifier, RandomForestRegressor, ExtraTreesRegressor)
SINGLE = (DecisionTreeClassifier, ExtraTreeClassifier, DecisionTreeRegressor, ExtraTreeRegressor)
BOOSTING = (GradientBoostingClassifier, GradientBoostingRegressor)
HISTOGRAMS = (HistGradientBoostingClassifier, HistGradientBoostingRegressor)
ALL = (*FORESTS, *SINGLE, *BOOSTING, *HISTOGRAMS)


def trees_of(model: Any) -> list[Tree]:
    """The trees of a fitted model, in the order in which it sums them."""
    if isinstance(model, SINGLE):
        return [_tree(model.tree_, _leaf_values(model))]
    if isinstance(model, FORESTS):
        return [_tree(part.tree_, _leaf_values(part)) for part in model.estimators_]
    if isinstance(model, BOOSTING):
        return [*_start(_boosting_start(model)), *_boosted(model)]
    return [*_start(np.ravel(model._baseline_prediction)), *_histograms(model)]


def _tree(tree: Any, values: Array, target: int = 0) -> Tree:
    missing = getattr(tree, "missing_go_to_left", None)
    return Tree(
        tree.feature,
        tree.threshold,
        tree.children_left,
        tree.children_right,
        values,
        None if missing is None else missing.astype(bool),
        target,
    )


def _leaf_values(model: Any) -> Array:
    """(nodes, classes) shares of a classifier, (nodes, outputs) values of a regressor."""
    if not hasattr(model, "classes_"):
        return np.asarray(model.tree_.value[:, :, 0])
    if model.n_outputs_ > 1:
        raise NotConvertible("a classifier with several outputs is not converted")
    values: Array = model.tree_.value[:, 0, :]
    return values if _holds_shares(model.tree_) else values / values.sum(axis=1, keepdims=True)


def _holds_shares(tree: Any) -> bool:
    """Up to 1.2 scikit-learn kept counts in a classifier's nodes."""
    return bool(np.allclose(tree.value[:, 0, :].sum(axis=1), 1.0))


def _start(values: Array) -> Iterator[Tree]:
    """What boosting begins with, one value for each output."""
    for target, value in enumerate(values):
        yield constant(float(value), target)


def _boosting_start(model: Any) -> Array:
    if model.init_ != "zero" and not isinstance(model.init_, DummyClassifier | DummyRegressor):
        raise NotConvertible("gradient boosting on top of another model is not converted")
    start: Array = model._raw_predict_init(np.zeros((1, model.n_features_in_), np.float32))
    first: Array = start[0]
    return first


def _boosted(model: Any) -> Iterator[Tree]:
    for stage in model.estimators_:
        for target, part in enumerate(stage):
            yield _tree(part.tree_, model.learning_rate * part.tree_.value[:, :, 0], target)


def _histograms(model: Any) -> Iterator[Tree]:
    for stage in model._predictors:
        for target, part in enumerate(stage):
            yield _histogram(part.nodes, target)


def _histogram(nodes: Array, target: int) -> Tree:
    if "is_categorical" in (nodes.dtype.names or ()) and nodes["is_categorical"].any():
        raise NotConvertible("histogram boosting with categorical columns is not converted")
    leaf = nodes["is_leaf"].astype(bool)
    left, right = (np.where(leaf, -1, nodes[side].astype(np.int64)) for side in ("left", "right"))
    missing = nodes["missing_go_to_left"].astype(bool)
    feature = nodes["feature_idx"].astype(np.int64)
    return Tree(feature, nodes["num_threshold"], left, right, nodes["value"][:, None], missing, target)
