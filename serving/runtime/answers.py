"""Predictions and errors as MLflow's scoring server writes them in JSON, without a walk over the values in Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from serving.runtime.exchange import Array, ModelError, Predictions, Written

_BEGIN, _END = b'{"predictions":', b"}"


def write(predictions: Predictions | Written) -> bytes:
    """The body of an answer; `ModelError` where there is NaN, an infinity or a value that JSON does not know."""
    if isinstance(predictions, Written):
        return predictions.predictions if predictions.whole else _BEGIN + predictions.predictions + _END
    if predictions.frame:
        return _BEGIN + _records(predictions.columns, predictions.count) + _END
    return _BEGIN + _array(next(iter(predictions.columns.values()))) + _END


def error(code: str, message: str) -> bytes:
    """The body of a refusal."""
    whole = message.encode("utf-8", "replace").decode()
    return orjson.dumps({"error_code": code, "message": whole})


def _array(array: Array) -> bytes:
    return _dumped(_plain(array).tolist())


def _records(columns: Mapping[str, Array], count: int) -> bytes:
    names = list(columns)
    values = [_plain(array).tolist() for array in columns.values()]
    return _dumped([dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)]) if count else b"[]"


def _plain(array: Array) -> Array:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ModelError("The model answered NaN or an infinity.")
    return array


def _dumped(value: Any) -> bytes:
    try:
        return orjson.dumps(value, option=orjson.OPT_SERIALIZE_NUMPY)
    except TypeError as problem:
        raise ModelError(f"The model's answer cannot be written as JSON: {problem}") from problem
