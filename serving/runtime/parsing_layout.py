"""Rows as tuples to one array for each type, by a handful of calls for each and none for each value."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from serving.runtime.parsing_types import known
from serving.runtime.plan import KINDS, Column
from serving.stacked_columns import StackedColumns, Stacking

Row = tuple[Any, ...]


class Layout:
    """Where a row has the values of which column. What does not fit is an error of NumPy's, or a `ValueError`."""

    def __init__(self, columns: Sequence[Column], positions: Mapping[str, int]) -> None:
        """`columns`: those that are there, in the order of the plan."""
        places: dict[str, dict[str, int]] = {}
        for column in columns:
            places.setdefault(KINDS[column.kind], {})[column.name] = positions[column.name]
        self._groups = [_Group(np.dtype(kind), of_kind) for kind, of_kind in places.items()]
        self._stacking = Stacking([column.name for column in columns], [tuple(group) for group in places.values()])
        checks = ((positions[column.name], known(column)) for column in columns)
        self._checks = [(position, values) for position, values in checks if values is not None]

    def arrays(self, rows: Sequence[Row]) -> StackedColumns:
        if len(rows) > 1 or self._checks:
            return self.of_columns(list(zip(*rows, strict=True)))
        (row,) = rows
        arrays = [np.array(group.pick(row), group.dtype).reshape(group.one) for group in self._groups]
        return StackedColumns(self._stacking, arrays)

    def of_columns(self, columns: Sequence[Sequence[Any]]) -> StackedColumns:
        arrays = [np.array(group.pick(columns), group.dtype) for group in self._groups]
        for position, values in self._checks:
            if not values.issuperset(columns[position]):
                raise ValueError(f"an unknown category in column {position}")
        return StackedColumns(self._stacking, arrays)


class _Group:
    """Columns of one type."""

    def __init__(self, dtype: np.dtype[Any], positions: Mapping[str, int]) -> None:
        self.dtype, self.one = dtype, (len(positions), 1)
        self.pick: Callable[[Sequence[Any]], Any] = itemgetter(*positions.values())
        if len(positions) == 1:
            (position,) = positions.values()
            self.pick = itemgetter(slice(position, position + 1))
