"""XGBoost's boosters: float32 throughout, `<` at thresholds, the intercept first and then the trees in their order.

So done, sums are equal to the last bit; only the exponentials behind them differ between the libraries.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np

from serving.compiling.boosted_graph import EXP, HIGHEST, SIGMOID, SOFTMAX, WHOLE, Boosted, Step, turning
from serving.compiling.conversion import NotConvertible
from serving.compiling.tree_arrays import LEAF, Branch, Tree, constant
from serving.runtime.exchange import Array

TOLERANCE = 2e-6
"""Exponentials in float32 differ in their last bits."""

_PLAIN = ("squarederror", "squaredlogerror", "absoluteerror", "pseudohubererror", "quantileerror", "expectileerror")

_STEPS: dict[str, tuple[Step, ...]] = {
    **dict.fromkeys((f"reg:{name}" for name in _PLAIN), ()),
    **dict.fromkeys(("reg:logistic", "binary:logistic"), (SIGMOID,)),
    **dict.fromkeys(("count:poisson", "reg:gamma", "reg:tweedie", "survival:cox", "survival:aft"), (EXP,)),
    "binary:logitraw": (),
    "binary:hinge": (Step("Greater", 0.0), WHOLE),
    "multi:softprob": (SOFTMAX,),
    "multi:softmax": (HIGHEST,),
}
"""What objectives make of a sum."""


def read(native: Any) -> Boosted:
    """A booster, or an estimator of XGBoost's scikit-learn interface."""
    booster = _booster(native)
    told = json.loads(booster.save_raw("json"))
    learner = told["learner"]
    objective, part = learner["objective"]["name"], learner["gradient_booster"]
    if part["name"] != "gbtree":
        raise NotConvertible(f"XGBoost's {part['name']} is not converted")
    if objective not in _STEPS:
        raise NotConvertible(f"XGBoost's objective {objective} is not converted")
    start = _intercept(told)
    trees = [constant(float(value), target) for target, value in enumerate(start) if value]
    trees += [
        _tree(told, target) for told, target in zip(part["model"]["trees"], part["model"]["tree_info"], strict=True)
    ]
    steps = _labelled(objective) if hasattr(native, "n_classes_") else _STEPS[objective]
    return Boosted(trees or [constant(0.0)], len(start), np.float32, steps)


def _booster(native: Any) -> Any:
    """With the trees that predict only: estimators that stopped early leave the rest out, boosters do not."""
    if not hasattr(native, "get_booster"):
        return native
    if not np.isnan(native.missing):
        raise NotConvertible(f"XGBoost takes {native.missing} for missing values")
    booster = native.get_booster()
    best = booster.attr("best_iteration")
    return booster if best is None else booster[: int(best) + 1]


def _intercept(told: dict[str, Any]) -> Array:
    """What each target's sum begins with, as XGBoost itself makes it of `base_score`: the model without its trees."""
    import xgboost

    learner, part = told["learner"], told["learner"]["gradient_booster"]
    param = dict(part["model"]["gbtree_model_param"], num_trees="0")
    bare = dict(part["model"], trees=[], tree_info=[], iteration_indptr=[0], gbtree_model_param=param)
    known = dict(learner["learner_model_param"], boost_from_average="0")  # else it is taken for not yet trained
    without = dict(learner, gradient_booster=dict(part, model=bare), learner_model_param=known)
    empty = xgboost.Booster(model_file=bytearray(json.dumps(dict(told, learner=without)).encode()))
    nothing = xgboost.DMatrix(np.zeros((1, int(known["num_feature"])), np.float32))
    return np.ravel(empty.predict(nothing, output_margin=True, validate_features=False))


def _labelled(objective: str) -> tuple[Step, ...]:
    """What a classifier's `predict` makes of a sum: the likeliest class, or the second one of two over a half."""
    if objective == "multi:softprob":
        return (SOFTMAX, HIGHEST)
    if objective == "binary:logistic":
        return (Step("Greater", turning(lambda probability: probability > 0.5, np.float32)), WHOLE)
    if objective == "binary:logitraw":
        return (Step("Greater", 0.5), WHOLE)
    if objective in ("binary:hinge", "multi:softmax"):
        return _STEPS[objective]
    raise NotConvertible(f"XGBoost's classifiers with the objective {objective} are not converted")


def _tree(told: dict[str, Any], target: int) -> Tree:
    if int(told["tree_param"]["size_leaf_vector"]) > 1:
        raise NotConvertible("XGBoost's trees with several values at a leaf are not converted")
    if any(told.get("split_type", ())):
        raise NotConvertible("XGBoost's splits on categories are not converted")
    left, right = np.array(told["left_children"]), np.array(told["right_children"])
    kept = np.array(sorted(_reached(left, right)))
    number = np.full(len(left), LEAF)
    number[kept] = np.arange(len(kept))
    values = np.array(told["split_conditions"], np.float32)[kept]
    left, right = left[kept], right[kept]
    return Tree(
        np.array(told["split_indices"])[kept],
        values,
        np.where(left == LEAF, LEAF, number[left]),
        np.where(left == LEAF, LEAF, number[right]),
        values[:, None],
        np.array(told["default_left"], bool)[kept],
        target,
        Branch.LESS,
    )


def _reached(left: Array, right: Array) -> Iterator[int]:
    """Nodes that rows can come to: pruning leaves others behind."""
    waiting = [0]
    while waiting:
        node = waiting.pop()
        yield node
        if left[node] != LEAF:
            waiting += [int(left[node]), int(right[node])]
