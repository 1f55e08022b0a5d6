"""One request's way to the model: through MLflow, or past its checks where those were seen to change nothing.

The server has parsed a request by the model's signature before it comes here. MLflow checks the same once more, column
by column, which costs a small model several times what its prediction does. Those checks go by names, types and shapes
where every type is the signature's own; so the first request of each layout takes MLflow's whole way, and where the
model was handed exactly what was given, the next ones of that layout are handed to it as they are.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import pandas as pd
from mlflow.pyfunc import PyFuncModel

from serving.runtime.devices import loader_of
from serving.runtime.exchange import Array
from serving.stacked_columns import StackedColumns

_LIBRARIES = {
    "mlflow.catboost",
    "mlflow.lightgbm",
    "mlflow.onnx",
    "mlflow.pytorch",
    "mlflow.sklearn",
    "mlflow.statsmodels",
    "mlflow.xgboost",
}
"""Loaders of models that learn nothing of a request but its rows. A class of somebody's own may ask MLflow for more."""

_LAYOUTS = 64
"""So many are remembered."""


class ModelCalls:
    """A loaded model, called as `PyFuncModel.predict` would call it."""

    def __init__(self, model: PyFuncModel) -> None:
        self.model = model
        self._function: Callable[..., Any] | None = _function_of(model)
        self._layouts: dict[Hashable, dict[str, Any] | None] = {}
        """How the model's function is called besides its rows; None where MLflow changes the rows."""

    def predict(self, given: Any, layout: Hashable, params: Any = None) -> Any:
        """Predict on what a request was parsed to; `layout` is the same for all that look alike."""
        if self._function is None or params:
            return self.model.predict(given, params=params)
        try:
            told = self._layouts[layout]
        except KeyError:
            return self._learn(self._function, given, layout)
        return self.model.predict(given) if told is None else self._function(given, **told)

    def _learn(self, function: Callable[..., Any], given: Any, layout: Hashable) -> Any:
        if len(self._layouts) >= _LAYOUTS:
            self._layouts.clear()
        thread = threading.get_ident()

        def watched(seen: Any, *args: Any, **told: Any) -> Any:
            if threading.get_ident() == thread:
                self._layouts[layout] = told if not args and _same(given, seen) else None
            return function(seen, *args, **told)

        self.model._predict_fn = watched
        try:
            return self.model.predict(given)
        finally:
            self.model._predict_fn = function


def layout_of(columns: Mapping[str, Array]) -> Hashable:
    """Names, types and the shape of a row: all that MLflow's checks go by."""
    if isinstance(columns, StackedColumns):
        stacking = columns.stacking
        return stacking.names, stacking.groups, tuple(array.dtype for array in columns.arrays)
    return tuple((name, array.dtype, array.shape[1:]) for name, array in columns.items())


def _function_of(model: PyFuncModel) -> Callable[..., Any] | None:
    """What `PyFuncModel.predict` calls in the end; None where nothing is known of it."""
    takes_params = model.metadata.get_params_schema() is not None  # type: ignore[no-untyped-call]
    return None if takes_params or loader_of(model) not in _LIBRARIES else getattr(model, "_predict_fn", None)


def _same(given: Any, seen: Any) -> bool:
    """Whether they are the same to every model: kind, names, types and values."""
    if type(given) is not type(seen):
        return False
    if isinstance(given, pd.DataFrame):
        named = given.columns.equals(seen.columns) and given.index.equals(seen.index)
        return bool(named and given.dtypes.equals(seen.dtypes) and given.equals(seen))
    if isinstance(given, dict):
        return list(given) == list(seen) and all(_same(given[name], seen[name]) for name in given)
    return (
        isinstance(given, np.ndarray)
        and given.dtype == seen.dtype
        and given.shape == seen.shape
        and given.tobytes() == seen.tobytes()
    )
