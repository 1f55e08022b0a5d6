"""LightGBM's boosters from the text that LightGBM writes of them: double throughout, `<=` at thresholds.

Missing values take one of three ways, which is a property of the column: as zero, as NaN, or as NaN together with zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from serving.compiling.boosted_graph import (
    EXP,
    HIGHEST,
    SIGMOID,
    SOFTMAX,
    WHOLE,
    Boosted,
    Step,
    missing_as_zero,
    turning,
)
from serving.compiling.conversion import NotConvertible
from serving.compiling.tree_arrays import LEAF, Tree
from serving.runtime.exchange import Array

TOLERANCE = 1e-9

_ZERO = float(np.float32(1e-35))
"""What is no larger than this is zero to LightGBM."""

_CATEGORICAL, _DEFAULT_LEFT = 1, 2
_MISSING_IS_ZERO, _ZERO_IS_MISSING, _MISSING_IS_NAN = 0, 1, 2

_PLAIN = ("regression", "regression_l1", "huber", "fair", "quantile", "mape", "lambdarank", "rank_xendcg")
_EXPONENTIAL = ("poisson", "gamma", "tweedie")


def read(native: Any) -> Boosted:
    """A booster, or an estimator of LightGBM's scikit-learn interface."""
    booster = native.booster_ if hasattr(native, "booster_") else native
    head, *parts = _parts(booster.model_to_string())
    targets = int(head["num_tree_per_iteration"])
    trees = [_tree(part, position % targets) for position, part in enumerate(parts)]
    average = (Step("Div", float(len(trees) // targets)),) if "average_output" in head else ()
    steps, labels = _steps(head.get("objective", "").split(), getattr(native, "classes_", None), targets)
    return Boosted(trees, targets, np.float64, (*average, *steps), labels)


def _parts(text: str) -> Iterator[dict[str, str]]:
    """What the text says of the model, and then of each tree."""
    for part in text.partition("\nend of trees")[0].split("\nTree="):
        yield {name: value for name, _, value in (line.partition("=") for line in part.splitlines())}


def _steps(
    objective: list[str], classes: Array | None, targets: int
) -> tuple[tuple[Step, ...], tuple[Any, ...] | None]:
    """What becomes of a sum; with classes also what positions stand for."""
    name, settings = (objective or ["of somebody's own"])[0], dict(part.partition(":")[::2] for part in objective[1:])
    values = _values(name, settings)
    if classes is None:
        return values, None
    if targets > 1:
        labels: tuple[Step, ...] = (*values, HIGHEST)
    else:
        labels = (*values[:-1], Step("Greater", turning(lambda part: part > 1 - part, np.float64)), WHOLE)
    return labels, _named(classes)


def _values(name: str, settings: Mapping[str, str]) -> tuple[Step, ...]:
    if name in _PLAIN and "sqrt" not in settings:
        return ()
    if name in _EXPONENTIAL:
        return (EXP,)
    if name == "multiclass":
        return (SOFTMAX,)
    if name in ("binary", "multiclassova", "cross_entropy"):
        scale = float(settings.get("sigmoid", 1.0))
        return (*(() if scale == 1.0 else (Step("Mul", scale),)), SIGMOID)
    raise NotConvertible(f"LightGBM's objective {' '.join([name, *settings])} is not converted")


def _named(classes: Array) -> tuple[Any, ...] | None:
    """None where classes are their own positions."""
    counted = classes.dtype.kind in "iu" and np.array_equal(classes, np.arange(len(classes)))
    return None if counted else tuple(classes.tolist())


def _tree(told: Mapping[str, str], target: int) -> Tree:
    if told.get("is_linear", "0") != "0":
        raise NotConvertible("LightGBM's trees with a linear model at each leaf are not converted")
    leaves = _numbers(told["leaf_value"])
    inner = len(leaves) - 1
    left, right = (_children(told, side, inner, len(leaves)) for side in ("left_child", "right_child"))
    values = np.concatenate([np.zeros(inner), leaves])[:, None]
    if not inner:
        return Tree(np.zeros(1, int), np.zeros(1), left, right, values, None, target)
    decisions = _numbers(told["decision_type"], int)
    given = _numbers(told["threshold"])
    feature = np.concatenate([_numbers(told["split_feature"], int), np.zeros(len(leaves), int)])
    if (decisions & _CATEGORICAL).any():
        raise NotConvertible("LightGBM's splits on categories are not converted")
    missing = decisions >> 2 & 3
    if (missing == _ZERO_IS_MISSING).any():
        raise NotConvertible("LightGBM's models that take zeros for missing values are not converted")
    by_default = (decisions & _DEFAULT_LEFT).astype(bool)
    missing_left = np.where(missing == _MISSING_IS_NAN, by_default, missing_as_zero(given))
    nothing = np.zeros(len(leaves))
    return Tree(
        feature,
        np.concatenate([_beyond_zero(given), nothing]),
        left,
        right,
        values,
        np.concatenate([missing_left, nothing.astype(bool)]),
        target,
    )


def _children(told: Mapping[str, str], side: str, inner: int, leaves: int) -> Array:
    """Leaves are numbered -1, -2, ... in the text, and behind the inner nodes here."""
    ends = np.full(leaves, LEAF)
    if not inner:
        return ends
    told_children = _numbers(told[side], int)
    return np.concatenate([np.where(told_children < 0, inner - told_children - 1, told_children), ends])


def _beyond_zero(threshold: Array) -> Array:
    """Thresholds that tell apart what LightGBM does: to it all values near zero are zero."""
    below = (threshold >= -_ZERO) & (threshold < 0)
    above = (threshold >= 0) & (threshold < _ZERO)
    return np.where(below, np.nextafter(-_ZERO, -np.inf), np.where(above, _ZERO, threshold))


def _numbers(text: str, kind: type = float) -> Array:
    return np.array([kind(part) for part in text.split()], kind)
