"""Whether two answers are the same: types, shapes and labels exactly, scores within a tolerance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from serving.runtime.exchange import Array, Predictions


@dataclass(frozen=True, slots=True)
class Difference:
    """The first one between two answers."""

    text: str
    row: int | None = None
    """None where it is not of one row."""


def difference(wanted: Predictions, given: Predictions, tolerance: float) -> Difference | None:
    """None where the answers are the same."""
    if (wanted.frame, list(wanted.columns)) != (given.frame, list(given.columns)):
        return Difference(f"the answer is {_kind(given)} and not {_kind(wanted)}")
    for name, values in wanted.columns.items():
        other, of = given.columns[name], f" of {name}" if name else ""
        if (values.dtype, values.shape) != (other.dtype, other.shape):
            return Difference(f"the answer{of} is {other.dtype}{other.shape} and not {values.dtype}{values.shape}")
        wrong = np.flatnonzero(~_same(values, other, tolerance).reshape(len(values), -1).all(axis=1))
        if len(wrong):
            row = int(wrong[0])
            return Difference(f"{values[row].tolist()!r} is answered with {other[row].tolist()!r}{of}", row)
    return None


def distance(wanted: Predictions, given: Predictions) -> float:
    """The largest difference of scores, relative to the larger of 1 and the score."""
    parts = [_apart(values, given.columns[name]) for name, values in wanted.columns.items() if values.dtype.kind == "f"]
    return max((float(part.max(initial=0.0)) for part in parts), default=0.0)


def _same(values: Array, other: Array, tolerance: float) -> Array:
    if values.dtype.kind != "f":
        return np.asarray(values == other)
    return np.asarray(_apart(values, other) <= tolerance)


def _apart(values: Array, other: Array) -> Array:
    """Zero where both are the same infinity, or both NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        apart = np.abs(values - other) / np.maximum(1.0, np.abs(values))
    alike = (values == other) | (np.isnan(values) & np.isnan(other))
    return np.where(alike, 0.0, np.where(np.isnan(apart), np.inf, apart))


def _kind(answer: Predictions) -> str:
    return f"a frame of {', '.join(answer.columns)}" if answer.frame else "an array"
