"""What a model refuses in its columns, found by changing one value in rows that it predicts.

A limit is believed only where every row changed so is refused, so nothing is refused at run time that the model would
have answered: what is too strange for these trials is the model's own error then.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serving.compiling.drawing import FLOATS, INTEGERS, UNKNOWN
from serving.compiling.hints import Hints
from serving.compiling.rows import changed, take
from serving.compiling.trying import TimeIsUpError, Trial, singles
from serving.runtime.exchange import Rows
from serving.runtime.plan import KINDS, Column, Tensor

_ROWS = 3
"""On so many rows a refusal must be seen."""
_WIDE = 50
"""Models with more columns than these are asked about each of them on one row only."""
_MOST_CATEGORIES = 1000
"""More than these are not listed in a plan."""
_CLOSE = 1.001
"""A largest value is known to this factor."""
_FLOAT32_MAX, _FLOAT64_MAX = (float(np.finfo(kind).max) for kind in (np.float32, np.float64))
_MAGNITUDES = (
    *(1e6, 1e12, 1e18, 1e30, _FLOAT32_MAX, _CLOSE * _FLOAT32_MAX),
    *(1e60, 1e100, 1e150, 1e200, 1e250, 1e300, _FLOAT64_MAX),
)


def limited(trial: Trial, columns: Sequence[Column], base: Rows, hints: Hints) -> tuple[tuple[Column, ...], bool]:
    """The columns with their limits, and whether there was time to try all; `base` are rows that are predicted."""
    rows = list(singles(take(base, slice(0, _ROWS if len(columns) <= _WIDE else 1))))
    search = _Search(trial, rows, {column.name: column for column in columns})
    try:
        search.nulls()
        search.infinities()
        search.magnitudes()
        search.categories(hints)
    except TimeIsUpError:
        return tuple(search.found.values()), False
    return tuple(search.found.values()), True


def limited_tensors(trial: Trial, tensors: Sequence[Tensor], base: Rows) -> tuple[Tensor, ...]:
    """The same for tensors, of which one limit holds for all values."""
    rows = list(singles(take(base, slice(0, _ROWS))))
    try:
        return tuple(_limited_tensor(trial, tensor, rows) for tensor in tensors)
    except TimeIsUpError:
        return tuple(tensors)


def _limited_tensor(trial: Trial, tensor: Tensor, rows: Sequence[Rows]) -> Tensor:
    dtype = np.dtype(tensor.dtype)
    if dtype.kind != "f" or not rows[0].columns[tensor.name].size:
        return tensor
    most = float(np.finfo(dtype).max)

    def refused(*values: float) -> bool:
        return not any(trial.takes(_replaced(row, tensor.name, value)) for row in rows for value in values)

    steps = [magnitude for magnitude in _MAGNITUDES if magnitude <= most]
    largest = _halved(steps, lambda value: not refused(value)) if refused(most, -most) else None
    return replace(tensor, nulls=not refused(math.nan), infinite=not refused(math.inf, -math.inf), largest=largest)


def _replaced(row: Rows, name: str, value: float) -> Rows:
    """The row with its first value replaced."""
    values = row.columns[name].copy()
    values.flat[0] = value
    return replace(row, columns={**row.columns, name: values})


@dataclass(frozen=True, slots=True)
class _Search:
    """One limit after the other, for all columns."""

    trial: Trial
    rows: Sequence[Rows]
    found: dict[str, Column]

    def nulls(self) -> None:
        for name in self._refused({name: _missing(column) for name, column in self.found.items()}):
            self.found[name] = replace(self.found[name], nulls=False)

    def infinities(self) -> None:
        floats = [name for name, column in self.found.items() if column.kind in FLOATS]
        for name in self._refused(dict.fromkeys(floats, (math.inf, -math.inf))):
            self.found[name] = replace(self.found[name], infinite=False)

    def magnitudes(self) -> None:
        steps = {name: _magnitudes(column) for name, column in self.found.items()}
        for name in self._refused({name: (part[-1], -part[-1]) for name, part in steps.items() if part}):
            self.found[name] = replace(self.found[name], largest=self._largest(name, steps[name]))

    def categories(self, hints: Hints) -> None:
        known = {name: values for name, values in hints.categories.items() if len(values) <= _MOST_CATEGORIES}
        for name in self._refused({name: _unknown(self.found[name], values) for name, values in known.items()}):
            if all(self._takes(self.rows[0], name, value) for value in known[name]):
                self.found[name] = replace(self.found[name], categories=known[name])

    def _refused(self, strange: Mapping[str, Sequence[Any]]) -> Iterator[str]:
        """Columns that refuse all their strange values in every row; none where all columns together are taken."""
        values = {name: listed for name, listed in strange.items() if listed and name in self.rows[0].columns}
        if self.trial.takes(changed(self.rows[0], {name: listed[0] for name, listed in values.items()})):
            return
        for name, listed in values.items():
            if not any(self._takes(row, name, value) for row in self.rows for value in listed):
                yield name

    def _takes(self, row: Rows, name: str, value: Any) -> bool:
        return self.trial.takes(changed(row, {name: value}))

    def _largest(self, name: str, steps: Sequence[float]) -> float | None:
        return _halved(steps, lambda value: self._takes(self.rows[0], name, value))


def _halved(steps: Sequence[float], takes: Callable[[float], bool]) -> float | None:
    """The largest value that is taken, by halving between two steps of which one is taken and the next one is not.

    None where none is taken.
    """
    low = high = 0.0
    for high in steps:
        if not takes(high):
            break
        low = high
    while low and high / low > _CLOSE * _CLOSE:
        middle = math.sqrt(low) * math.sqrt(high)
        low, high = (middle, high) if takes(middle) else (low, middle)
    return low or None


def _missing(column: Column) -> Sequence[Any]:
    """Of integers and booleans nothing can be missing."""
    if column.kind in ("boolean", *INTEGERS):
        return ()
    if column.kind in FLOATS:
        return (math.nan,)
    return (np.datetime64("NaT") if column.kind == "datetime" else None,)


def _magnitudes(column: Column) -> Sequence[float]:
    if column.kind not in (*INTEGERS, *FLOATS):
        return ()
    most = (np.iinfo if column.kind in INTEGERS else np.finfo)(KINDS[column.kind]).max
    return [magnitude for magnitude in _MAGNITUDES if magnitude <= most]


def _unknown(column: Column, known: Sequence[Any]) -> Sequence[Any]:
    """A value that is no category."""
    if column.kind == "string":
        return (UNKNOWN,)
    return (max(known) + 1,) if known and column.kind in (*INTEGERS, *FLOATS) else ()
