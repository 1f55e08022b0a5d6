"""What an answer says of itself to the gateway, which logs it and takes it off: some of the values that were predicted.

The canary compares predictions by them. One value per row, sixteen at most, numbers with six digits, as a JSON list,
with a star behind it where rows were left out; of probabilities the second of two, or which one is the largest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from serving.runtime.exchange import Array, Predictions, Written

_NAME = b"x-promote-prediction"

LOSS = "promote_loss"
"""An output of this name is the model's own word of how bad its answer is, from 0 to 1 in each row."""

_LOSS_NAME = b"x-promote-loss"

_MOST_VALUES = 16

_SAMPLE = b"*"

_MOST_CHARACTERS = 64
"""Of one string."""

_MOST_BYTES = 1024
"""Of the header."""

_SIMPLE = (str, bool, int, float, type(None))

Header = tuple[bytes, bytes]


def told(predictions: Predictions | Written) -> tuple[Header, ...]:
    """The header, or nothing where the answer is of a kind that cannot be told in short."""
    if isinstance(predictions, Written):
        return (*_of_values(_first(predictions.outputs)), *_loss_written(predictions.outputs))
    first = told_of(next(iter(predictions.columns.values())))
    return (*first, *loss_of(predictions.columns[LOSS])) if LOSS in predictions.columns else first


def loss_of(array: Array) -> tuple[Header, ...]:
    """The mean of the losses; nothing where they are no numbers from 0 to 1."""
    if array.dtype.kind not in "biuf" or not array.size or not ((array >= 0) & (array <= 1)).all():
        return ()
    return ((_LOSS_NAME, b"%.6g" % array.mean()),)


def _loss_written(outputs: Any) -> tuple[Header, ...]:
    """Of an answer that MLflow wrote."""
    if not isinstance(outputs, Mapping) or LOSS not in outputs:
        return ()
    try:
        return loss_of(np.asarray(outputs[LOSS]))
    except ValueError:
        return ()


def told_of(array: Array) -> tuple[Header, ...]:
    """The same of one output."""
    if array.size == 1 and array.dtype.kind in "iuf":
        return ((_NAME, b"[%.6g]" % array.item() if array.dtype.kind == "f" else b"[%d]" % array.item()),)
    one_per_row = _one_per_row(array)
    if one_per_row is None or not one_per_row.size:
        return ()
    values = _some(one_per_row)
    if values.dtype.kind == "f":
        text = b"[" + b",".join([b"%.6g" % value for value in values.tolist()]) + b"]"
        return _header(text, sample=len(values) < len(one_per_row))
    return _of_values(values.tolist(), len(one_per_row))


def _one_per_row(array: Array) -> Array | None:
    if array.dtype.kind not in "biufOU":
        return None
    if array.ndim == 1:
        return array
    if array.ndim != 2 or not array.shape[1]:
        return None
    if array.shape[1] == 1:
        return array[:, 0]
    if array.dtype.kind not in "iuf":
        return None
    return array[:, 1] if array.shape[1] == 2 else array.argmax(axis=1)


def _some(values: Any) -> Any:
    """Evenly spaced over the rows."""
    count = len(values)
    return values if count <= _MOST_VALUES else values[:: -(-count // _MOST_VALUES)]


def _first(outputs: Any) -> Any:
    """The values of the first output of an answer that MLflow wrote."""
    if isinstance(outputs, Mapping):
        return next(iter(outputs.values()), None)
    return outputs


def _of_values(values: Any, rows: int | None = None) -> tuple[Header, ...]:
    """`values` are those of so many rows, where they are not all."""
    if isinstance(values, np.ndarray):
        return told_of(values)
    if not isinstance(values, Sequence) or isinstance(values, str | bytes) or not values:
        return ()
    chosen = [value[:_MOST_CHARACTERS] if isinstance(value, str) else value for value in _some(values)]
    if not all(isinstance(value, _SIMPLE) for value in chosen):
        return ()
    while len(text := json.dumps(chosen, separators=(",", ":"))) > _MOST_BYTES:
        chosen = chosen[::2]
    return _header(text.encode(), sample=len(chosen) < (rows or len(values)))


def _header(text: bytes, *, sample: bool) -> tuple[Header, ...]:
    return ((_NAME, text + _SAMPLE if sample else text),)
