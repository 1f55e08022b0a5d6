"""Rows to try on a model: like its own data, at the values where its answers may change, and at the ends of the range.

Columns are drawn independently of each other, from what the input example, the model's scalers, encoders and thresholds
tell of them. The seed is fixed: the same model is always tried on the same rows.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from serving.compiling.conversion import Edge
from serving.compiling.hints import Hints
from serving.compiling.rows import column_array
from serving.runtime.exchange import Array, Rows
from serving.runtime.plan import KINDS, Column, Plan, Tensor

SEED = 20_000_101

FLOATS = ("float", "double")
INTEGERS = ("integer", "long")
UNKNOWN = "~ nobody knows ~"
"""A text that is no category of anybody's."""

_TEXTS = (UNKNOWN, "", " ", "None", "nan", "0", "Ünï 東京 🌍", "x" * 300)
_DAY = 86_400_000_000_000
_ROWS_OF_VALUES = 4_000_000
"""No more values than this are drawn at a time."""


class Drawing:
    """Draws rows for one model."""

    def __init__(self, plan: Plan, example: Rows | None, hints: Hints) -> None:
        self._plan, self._example, self._hints = plan, example, hints
        self._random = np.random.default_rng(SEED)

    @property
    def columns(self) -> bool:
        """Whether the rows are of columns; tensors may be so large that only few are drawn."""
        return bool(self._plan.columns)

    def ordinary(self, count: int) -> Rows:
        """Rows with values that the model's data may well have had."""
        if self._plan.tensors:
            count = self._affordable(count)
            return Rows({tensor.name: self._tensor(tensor, count) for tensor in self._plan.tensors}, count)
        return Rows({column.name: self._column(column, count) for column in self._plan.columns}, count)

    def edges(self, count: int, edges: Iterable[Edge]) -> Rows:
        """Rows with some values at edges, or next to them."""
        rows = self.ordinary(count)
        refused = {column.name for column in self._plan.columns if column.categories is not None}
        for edge in edges:
            flat = rows.columns[edge.name].reshape(rows.count, -1)[:, edge.position]
            candidates = _beside(edge.values, flat.dtype, exactly=edge.name in refused)
            chosen = np.flatnonzero(self._random.random(rows.count) < _SHARE_OF_EDGES)
            flat[chosen] = candidates[self._random.integers(0, len(candidates), len(chosen))]
        return rows

    def extremes(self, count: int) -> Rows | None:
        """Rows with one value each at an end of what the plan says that the model takes; None where there is none."""
        ends = [(column.name, value) for column in self._plan.columns for value in _extremes(column)]
        if not ends:
            return None
        chosen = [ends[position] for position in self._random.permutation(len(ends))[:count]]
        rows = self.ordinary(len(chosen))
        for position, (name, value) in enumerate(chosen):
            rows.columns[name][position] = value
        return rows

    def _affordable(self, count: int) -> int:
        size = sum(int(np.prod(self._shape(tensor))) for tensor in self._plan.tensors)
        return max(8, min(count, _ROWS_OF_VALUES // max(1, size)))

    def _shape(self, tensor: Tensor) -> tuple[int, ...]:
        """Of one row, with sizes for what may have any."""
        if self._example is not None:
            return tuple(self._example.columns[tensor.name].shape[1:])
        return tuple(3 if size < 0 else size for size in tensor.shape[1:])

    def _tensor(self, tensor: Tensor, count: int) -> Array:
        shape, dtype = (count, *self._shape(tensor)), np.dtype(tensor.dtype)
        seen = None if self._example is None else self._example.columns[tensor.name]
        low, high = (-3.0, 3.0) if seen is None else _widened(float(seen.min()), float(seen.max()))
        if dtype.kind == "b":
            return self._random.random(shape) < 0.5
        if dtype.kind in "iu":
            low, high = (0, 2) if seen is None else (seen.min(), seen.max() + 1)
            return self._random.integers(low, high, shape).astype(dtype)
        return self._random.uniform(low, high, shape).astype(dtype)

    def _column(self, column: Column, count: int) -> Array:
        seen = self._seen(column)
        if column.kind in (*FLOATS, *INTEGERS) and column.categories is None:
            return self._numbers(column, seen, count)
        if column.kind == "boolean":
            return self._random.random(count) < 0.5
        if column.kind == "datetime":
            start = seen[0] if seen else np.datetime64("2024-01-01", "ns")
            return np.asarray(start, KINDS["datetime"]) + self._random.integers(-_DAY, _DAY, count) * 100
        values = list(column.categories or (*seen, *self._hints.categories.get(column.name, ())))
        return column_array(self._picked(values or ["a", "b", "c"], count), column.kind)

    def _seen(self, column: Column) -> list[Any]:
        """Values of the input example, without missing ones."""
        if self._example is None or column.name not in self._example.columns:
            return []
        return [value for value in self._example.columns[column.name] if value is not None and value == value]

    def _picked(self, values: list[Any], count: int) -> list[Any]:
        return [values[position] for position in self._random.integers(0, len(values), count)]

    def _numbers(self, column: Column, seen: list[Any], count: int) -> Array:
        """Uniform over the range where the model's data seems to have been, some of it taken from there."""
        low, high = self._range(column, seen)
        values = self._random.uniform(low, high, count)
        known = [*seen, *self._hints.categories.get(column.name, ())]
        if known:
            from_known = self._random.random(count) < 0.3
            values[from_known] = self._picked(known, int(from_known.sum()))
        if column.kind in INTEGERS:
            limits = np.iinfo(KINDS[column.kind])
            values = np.clip(np.rint(values), limits.min / 2, limits.max / 2)
        return values.astype(KINDS[column.kind])

    def _range(self, column: Column, seen: list[Any]) -> tuple[float, float]:
        known = [float(value) for value in seen if np.isfinite(value)]
        known += [edge for edge in self._hints.edges.get(column.name, ()) if np.isfinite(edge)]
        if column.name in self._hints.spread:
            centre, width = self._hints.spread[column.name]
            known += [centre - 3 * width, centre + 3 * width]
        return _widened(min(known), max(known)) if known else (-10.0, 10.0)


_SHARE_OF_EDGES = 0.35


def _widened(low: float, high: float) -> tuple[float, float]:
    margin = 0.25 * (high - low) or max(1.0, abs(low))
    return low - margin, high + margin


def _extremes(column: Column) -> list[Any]:
    """Values at which converted models are often wrong, as far as the plan says that the model takes them."""
    values: list[Any] = []
    if column.kind in FLOATS:
        largest = column.largest or (1e300 if column.kind == "double" else 3e38)
        values += [0.0, -0.0, 5e-324, 1e-30, *(s * m for m in (1e6, 1e15, largest) if m <= largest for s in (1, -1))]
        values += [np.inf, -np.inf] if column.infinite else []
        values += [np.nan] if column.nulls else []
    elif column.kind in INTEGERS and column.categories is None:
        limits = np.iinfo(KINDS[column.kind])
        values += [0, -1, 2**24 + 1, *(() if column.largest else (limits.min, limits.max))]
    elif column.kind == "string":
        values += [] if column.categories is not None else _TEXTS
        values += [None] if column.nulls else []
    return values


def _beside(values: tuple[Any, ...], dtype: np.dtype[Any], exactly: bool) -> Array:
    """The values themselves and their next neighbours, also those in float32, which other libraries round to."""
    if dtype.kind == "O":
        return column_array(
            values if exactly else [*values, *(f"{value}{end}" for value in values for end in " \0"), *_TEXTS], "string"
        )
    edges = np.asarray(values, float)
    if exactly:
        return edges.astype(dtype)
    if dtype.kind != "f":
        whole = np.floor(edges)
        return np.unique(np.concatenate([whole - 1, whole, whole + 1, whole + 2])).astype(dtype)
    with np.errstate(over="ignore"):
        near = edges.astype(np.float32)
    up, down = (np.nextafter(near, np.float32(side)).astype(float) for side in (np.inf, -np.inf))
    turns = [edges, (near + up) / 2, (near + down) / 2]
    around = [np.nextafter(part, side) for part in turns for side in (-np.inf, np.inf)]
    found = np.unique(np.concatenate([*turns, near, up, down, *around]))
    return np.asarray(found[np.isfinite(found)], dtype)
