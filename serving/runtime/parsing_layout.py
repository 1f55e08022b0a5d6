"""Rows as tuples to one array for each column, by a handful of calls for each type and none for each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from serving.runtime.exchange import Array
from serving.runtime.parsing_types import known
from serving.runtime.plan import KINDS, Column

Row = tuple[Any, ...]


class Layout:
    """Where a row has the values of which column. What does not fit is an error of NumPy's, or a `ValueError`."""

    def __init__(self, columns: Sequence[Column], positions: Mapping[str, int]) -> None:
        """`columns`: those that are there, in the order of the plan."""
        self._empty: dict[str, Any] = dict.fromkeys(column.name for column in columns)
        places: dict[str, dict[str, int]] = {}
        for column in columns:
            places.setdefault(KINDS[column.kind], {})[column.name] = positions[column.name]
        self._groups = [_Group(np.dtype(kind), of_kind) for kind, of_kind in places.items()]
        checks = ((positions[column.name], known(column)) for column in columns)
        self._checks = [(position, values) for position, values in checks if values is not None]

    def arrays(self, rows: Sequence[Row]) -> dict[str, Array]:
        if len(rows) > 1 or self._checks:
            return self.of_columns(list(zip(*rows, strict=True)))
        arrays, (row,) = self._empty.copy(), rows
        for group in self._groups:
            values = np.array(group.pick(row), group.dtype).reshape(group.one)
            arrays.update(zip(group.names, values, strict=False))  # NumPy's end of an iteration is an exception: slow
        return arrays

    def of_columns(self, columns: Sequence[Sequence[Any]]) -> dict[str, Array]:
        arrays = self._empty.copy()
        for group in self._groups:
            arrays.update(zip(group.names, np.array(group.pick(columns), group.dtype), strict=False))
        for position, values in self._checks:
            if not values.issuperset(columns[position]):
                raise ValueError(f"an unknown category in column {position}")
        return arrays


class _Group:
    """Columns of one type."""

    def __init__(self, dtype: np.dtype[Any], positions: Mapping[str, int]) -> None:
        self.dtype, self.names, self.one = dtype, tuple(positions), (len(positions), 1)
        self.pick: Callable[[Sequence[Any]], Any] = itemgetter(*positions.values())
        if len(positions) == 1:
            (position,) = positions.values()
            self.pick = itemgetter(slice(position, position + 1))
