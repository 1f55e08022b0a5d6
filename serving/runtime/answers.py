"""Predictions and errors as MLflow's scoring server writes them in JSON.

Arrays of numbers are written by orjson from their memory, frames as one object for each row, and only values of other
kinds are looked at one by one: by Python's encoder, with MLflow's rules. NaN and infinities are not JSON: refused.
"""

from __future__ import annotations

import base64
import datetime
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import orjson

from serving.runtime.exchange import Array, ModelError, Predictions, Written

_BEGIN, _END = b'{"predictions":', b"}"

_WRITTEN = frozenset(
    np.dtype(name)
    for name in ("float64", "int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool")
)
"""Types that orjson writes from memory as Python would. Of other floats it writes fewer digits."""

_SIMPLE = frozenset({int, float, str, bool, type(None)})

_NOT_FINITE = "The model answered NaN or an infinity."


def write(predictions: Predictions | Written) -> bytes:
    """The body of an answer; `ModelError` where there is NaN, an infinity or a value that JSON does not know."""
    if isinstance(predictions, Written):
        return predictions.predictions if predictions.whole else _BEGIN + predictions.predictions + _END
    if predictions.frame:
        return _BEGIN + _frame(predictions.columns, predictions.count) + _END
    (array,) = predictions.columns.values()
    return _BEGIN + _array(array) + _END


def error(code: str, message: str) -> bytes:
    """The body of a refusal."""
    return orjson.dumps({"error_code": code, "message": message.encode("utf-8", "replace").decode()})


def _array(array: Array) -> bytes:
    dtype = array.dtype
    if dtype.kind not in "biuf":
        return _values(array.tolist(), _kinds(array))
    _check_finite(array)
    if dtype not in _WRITTEN:
        array = array.astype(np.float64 if dtype.kind == "f" else dtype.newbyteorder("="))
    if array.size == 1:
        return orjson.dumps(array.tolist())
    return orjson.dumps(np.ascontiguousarray(array), option=orjson.OPT_SERIALIZE_NUMPY)


def _frame(columns: Mapping[str, Array], count: int) -> bytes:
    names, kinds = list(columns), set()
    values = []
    for array in columns.values():
        _check_finite(array)
        values.append(_moments(array) if array.dtype.kind == "M" else array.tolist())
        if array.dtype.kind not in "biufUM":
            kinds |= _kinds(array)
    if count == 1:
        return _values([{name: value for name, (value,) in zip(names, values, strict=True)}], kinds)
    return _values([dict(zip(names, row, strict=True)) for row in zip(*values, strict=True)], kinds)


def _check_finite(array: Array) -> None:
    if array.dtype.kind == "f" and not (math.isfinite(array.item()) if array.size == 1 else np.isfinite(array).all()):
        raise ModelError(_NOT_FINITE)


def _kinds(array: Array) -> set[type]:
    """Python's types of the values of an array of objects."""
    return set(map(type, array.ravel().tolist()))


def _values(values: list[Any], kinds: set[type]) -> bytes:
    """Of lists and dictionaries, and values of these kinds in them."""
    try:
        if not kinds - _SIMPLE and float not in kinds:
            return orjson.dumps(values)
    except TypeError:  # an integer of more than 64 bits, or half a character
        pass
    try:
        return json.dumps(values, default=_encoded, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as problem:
        raise ModelError(f"The model's answer cannot be written as JSON: {problem}") from problem


def _encoded(value: Any) -> Any:
    """By the rules of MLflow's encoder."""
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, bytes | bytearray):
        return base64.encodebytes(value).decode("ascii")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    raise TypeError(f"{type(value).__name__} is not known to JSON")


def _moments(array: Array) -> list[str]:
    """As pandas writes them: with six or nine digits of a second, or none."""
    texts = np.datetime_as_string(array, unit="ns").tolist()
    return [text[:-10] if text.endswith(".000000000") else text.removesuffix("000") for text in texts]
