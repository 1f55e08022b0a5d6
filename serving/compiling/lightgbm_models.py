"""LightGBM's boosters from the text that LightGBM writes of them: double throughout, `<=` at thresholds.

Missing values take one of three ways, which is a property of the column: as zero, as NaN, or as NaN together with zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    Zeros,
    turning,
)
from serving.compiling.conversion import NotConvertible
from serving.compiling.tree_arrays import LEAF, Branch, Tree, constant
from serving.runtime.exchange import Array

TOLERANCE = 1e-9

_ZERO = float(np.float32(1e-35))
"""What is no larger than this is zero to LightGBM."""

_CATEGORICAL, _DEFAULT_LEFT, _MISSING = 1, 2, 12
"""Bits of what LightGBM says of a decision."""
_ZERO_IS_MISSING = 4
"""Of the bits of `_MISSING`; none of them is set where nothing is missing."""

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
    zeros = _zeros(parts, int(head["max_feature_idx"]) + 1)
    return Boosted(trees, targets, np.float64, (*average, *steps), zeros, labels)


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
    if len(leaves) == 1:
        return constant(float(leaves[0]), target)
    nothing = np.zeros(len(leaves), int)
    values = np.concatenate([np.zeros(len(leaves) - 1), leaves])
    decisions, threshold = _numbers(told["decision_type"], int), _numbers(told["threshold"])
    sets = (decisions & _CATEGORICAL).astype(bool)
    return Tree(
        np.concatenate([_numbers(told["split_feature"], int), nothing]),
        np.concatenate([_beyond_zero(threshold), nothing]),
        _children(told["left_child"]),
        _children(told["right_child"]),
        values[:, None],
        np.concatenate([_missing_left(decisions, threshold), nothing.astype(bool)]),
        target,
        np.concatenate([np.where(sets, Branch.MEMBER, Branch.AT_MOST), nothing]),
        tuple(_members(told, int(place)) for place in threshold[sets]),
    )


def _children(text: str) -> Array:
    """Leaves are numbered -1, -2, ... in the text, and behind the inner nodes here."""
    told = _numbers(text, int)
    inner = len(told)
    return np.concatenate([np.where(told < 0, inner - told - 1, told), np.full(inner + 1, LEAF)])


def _missing_left(decisions: Array, threshold: Array) -> Array:
    """Where NaN is not missing it is a zero, and among categories it is none."""
    by_default = (decisions & _DEFAULT_LEFT).astype(bool)
    found = np.where(decisions & _MISSING == 0, threshold >= 0, by_default)
    return np.where(decisions & _CATEGORICAL, False, found)


def _members(told: Mapping[str, str], place: int) -> Array:
    """The categories that go left, from the set's bits."""
    start, end = _numbers(told["cat_boundaries"], int)[place : place + 2]
    words = _numbers(told["cat_threshold"], int)[start:end].astype("<u4")
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little"))


def _zeros(parts: Sequence[Mapping[str, str]], features: int) -> Zeros | None:
    """Which columns take zeros for missing values; a model that was trained on may do so in some of its trees only."""
    kinds = np.zeros((2, features), bool)
    for part in parts:
        if "decision_type" in part:
            decisions, feature = _numbers(part["decision_type"], int), _numbers(part["split_feature"], int)
            numbers = decisions & _CATEGORICAL == 0
            zero = decisions & _MISSING == _ZERO_IS_MISSING
            kinds[0, feature[numbers & zero]] = True
            kinds[1, feature[numbers & ~zero]] = True
    if kinds.all(axis=0).any():
        raise NotConvertible("some of LightGBM's trees take a column's zeros for missing values and some do not")
    return Zeros(kinds[0], _ZERO) if kinds[0].any() else None


def _beyond_zero(threshold: Array) -> Array:
    """Thresholds that tell apart what LightGBM does: to it all values near zero are zero."""
    below = (threshold >= -_ZERO) & (threshold < 0)
    above = (threshold >= 0) & (threshold < _ZERO)
    return np.where(below, np.nextafter(-_ZERO, -np.inf), np.where(above, _ZERO, threshold))


def _numbers(text: str, kind: type = float) -> Array:
    return np.array([kind(part) for part in text.split()], kind)
