"""XGBoost's and LightGBM's models, with the thresholds and sums of the library itself: in its type and its order."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType

import numpy as np

from serving.compiling import lightgbm_models, xgboost_models
from serving.compiling.boosted_graph import ANSWER, ROWS, Boosted, written
from serving.compiling.conversion import Conversion, Edge, Loaded, NotConvertible
from serving.compiling.trees import Branch, thresholds
from serving.runtime.plan import Feed, Plan

_READERS: dict[str, ModuleType] = {"lightgbm": lightgbm_models, "xgboost": xgboost_models}


def convert(loaded: Loaded) -> Conversion:
    """A booster, or an estimator of these libraries, whose answer is one array."""
    if len(loaded.results) != 1 or loaded.frame:
        raise NotConvertible("answers that are a frame are not converted")
    names, places = _inputs(loaded.plan)
    reader = _READERS[loaded.plan.flavor]
    model = reader.read(loaded.native)
    _refuse_fractions(model, places, loaded.plan)
    feed = Feed(ROWS, names, _fed(model, loaded.plan))
    result = replace(loaded.results[0], source=ANSWER, labels=model.labels)
    return Conversion(
        written(model, feed.dtype, len(places)), (feed,), (result,), reader.TOLERANCE, _edges(model, places)
    )


def _inputs(plan: Plan) -> tuple[tuple[str, ...], list[tuple[str, int]]]:
    """What is fed, and for each feature the column or tensor with the position there."""
    if plan.columns:
        if odd := [column.name for column in plan.columns if column.kind in ("string", "binary", "datetime")]:
            raise NotConvertible(f"column {odd[0]!r} is no number")
        names = tuple(column.name for column in plan.columns)
        return names, [(name, 0) for name in names]
    if len(plan.tensors) != 1 or len(plan.tensors[0].shape) != 2 or plan.tensors[0].shape[1] < 1:
        raise NotConvertible("its input is no matrix of known width")
    name = plan.tensors[0].name
    return (name,), [(name, position) for position in range(plan.tensors[0].shape[1])]


def _fed(model: Boosted, plan: Plan) -> str:
    """Both libraries make float32 of a tensor of integers; of a frame's integers each makes what it computes in."""
    whole = any(np.dtype(tensor.dtype).kind in "biu" for tensor in plan.tensors)
    return "float32" if whole else str(np.dtype(model.dtype))


def _refuse_fractions(model: Boosted, places: list[tuple[str, int]], plan: Plan) -> None:
    """Categories are whole numbers; what a library makes of others is not converted."""
    whole = {column.name for column in plan.columns if column.kind in ("integer", "long")}
    for tree in model.trees:
        for feature in tree.feature[np.equal(tree.branch, Branch.MEMBER)]:
            if places[feature][0] not in whole:
                raise NotConvertible(f"column {places[feature][0]!r} has categories and is not an integer")


def _edges(model: Boosted, places: list[tuple[str, int]]) -> tuple[Edge, ...]:
    return tuple(
        Edge(places[feature][0], tuple(values.tolist()), places[feature][1])
        for feature, values in thresholds(model.trees).items()
    )
