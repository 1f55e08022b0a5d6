"""What a model answers, as arrays with one row each where it can be; else as MLflow's own encoder writes it.

The values are those that ``mlflow models serve`` would write: a Series is a list of records there, dates in a frame are
ISO text, and dates in an array of nanoseconds are numbers.
"""

from __future__ import annotations

import json
from io import StringIO
from typing import Any

import numpy as np
import pandas as pd
from mlflow.pyfunc import scoring_server
from mlflow.utils.proto_json_utils import NumpyEncoder

from serving.runtime.exchange import Array, ModelError, Predictions, Written

_WRAPPED = '{"predictions": '


def predictions_of(answer: Any) -> Predictions | None:
    """The answer as arrays; None where it is nothing with rows that arrays can hold."""
    if isinstance(answer, pd.Series):
        answer = answer.to_frame()
    if isinstance(answer, pd.DataFrame):
        return _of_frame(answer)
    if isinstance(answer, list):
        array = _of_list(answer)
    elif isinstance(answer, np.ndarray) and answer.ndim > 0:
        array = _of_array(answer)
    else:
        return None
    return None if array is None else Predictions({"": array}, len(array))


def written(answer: Any, inputs: Any, log: bool) -> Written:
    """The answer by MLflow's encoder; `ModelError` where it is not JSON."""
    text = StringIO()
    try:
        scoring_server.predictions_to_json(answer, text)  # type: ignore[no-untyped-call]
    except (TypeError, ValueError) as error:
        raise ModelError(f"The model's answer cannot be written as JSON: {error}") from error
    return from_response(text.getvalue(), inputs, log)


def from_response(response: str, inputs: Any, log: bool) -> Written:
    """Out of the body that MLflow's scoring server would send; `ModelError` where there is NaN or an infinity in it."""
    if "NaN" in response or "Infinity" in response:
        json.loads(response, parse_constant=_refuse)
    whole = not response.startswith(_WRAPPED)
    told = response if whole else response[len(_WRAPPED) : -1]
    if not log:
        return Written(told.encode(), whole=whole)
    return Written(told.encode(), _plain(inputs), json.loads(told), whole)


def _of_frame(frame: pd.DataFrame) -> Predictions | None:
    names = [str(name) for name in frame.columns if isinstance(name, str | int) and not isinstance(name, bool)]
    if len(set(names)) != len(frame.columns) or not names:
        return None
    columns = {}
    for name, (_, values) in zip(names, frame.items(), strict=True):
        array = _of_column(values)
        if array is None:
            return None
        columns[name] = array
    return Predictions(columns, len(frame), frame=True)


def _of_column(values: pd.Series) -> Array | None:
    if isinstance(values.dtype, np.dtype) and values.dtype.kind in "biuf":
        array: Array = values.to_numpy()
        return array
    if values.dtype.kind == "M" and not values.hasnans:
        return _objects([value.isoformat() for value in values])
    return _of_list(values.tolist())


def _of_array(array: Array) -> Array | None:
    if array.dtype.kind in "biufU" or array.dtype == np.dtype("datetime64[ns]"):
        return array.astype(np.int64) if array.dtype.kind == "M" else array
    return _of_list(array.tolist()) if array.dtype.kind == "O" and array.ndim == 1 else None


def _of_list(values: list[Any]) -> Array | None:
    """An array of exactly these values: of numbers where all are of one type, else of objects."""
    values = [value.item() if isinstance(value, np.generic) else value for value in values]
    kinds = {type(value) for value in values}
    if not values or not kinds <= {float, int, bool, str, type(None)}:
        return None
    if int in kinds and not all(-(2**63) <= value < 2**63 for value in values if type(value) is int):
        return None
    return np.array(values) if kinds in ({float}, {bool}, {int}) else _objects(values)


def _objects(values: list[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _refuse(constant: str) -> Any:
    raise ModelError(f"The model answered NaN or an infinity: {constant}.")


def _plain(inputs: Any) -> Any:
    """Inputs in Python's own types, by column where they are a frame: the front knows no others."""
    if isinstance(inputs, pd.DataFrame):
        inputs = {str(name): inputs.iloc[:, i].tolist() for i, name in enumerate(inputs.columns)}
    return json.loads(json.dumps(inputs, cls=_Plain))


class _Plain(NumpyEncoder):
    def default(self, o: Any) -> Any:
        try:
            return super().default(o)  # type: ignore[no-untyped-call]
        except TypeError:
            return str(o)
