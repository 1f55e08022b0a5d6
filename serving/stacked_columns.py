"""The columns of a request as one array for each type, instead of one for each column.

A request of one row with fourteen columns has three arrays then: a third of the calls where it is parsed, where several
requests are put together, where they are fed to a compiled model and where they are logged. To everybody else it is a
mapping of column name to array like any other.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

_KEPT = 64
"""So many questions are remembered by a stacking."""


class Stacking:
    """Which column lies where; shared by all requests that are alike, and compared by identity."""

    def __init__(self, names: Sequence[str], groups: Sequence[Sequence[str]]) -> None:
        """`names` in the order of the plan; `groups`: those of each array, which is every name once."""
        self.names = tuple(names)
        self.groups = tuple(tuple(group) for group in groups)
        self.places = {name: (i, j) for i, group in enumerate(self.groups) for j, name in enumerate(group)}
        self._had: frozenset[str] = frozenset()
        self._whole: dict[tuple[str, ...], tuple[int, ...] | None] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        return Stacking, (self.names, self.groups)

    def has(self, names: frozenset[str]) -> bool:
        """Whether all of them are there; quick for those that were asked for last."""
        if names is not self._had and names <= self.places.keys():
            self._had = names
        return names is self._had

    def whole(self, names: tuple[str, ...]) -> tuple[int, ...] | None:
        """Of which arrays, one under the other, `names` are the rows; None where they are not so."""
        try:
            return self._whole[names]
        except KeyError:
            if len(self._whole) == _KEPT:
                self._whole.clear()
            found = self._whole[names] = self._search(names)
            return found

    def _search(self, names: tuple[str, ...]) -> tuple[int, ...] | None:
        arrays: list[int] = []
        at = 0
        while at < len(names):
            array = self.places.get(names[at], (-1, 0))[0]
            group = self.groups[array] if array >= 0 else ()
            if not group or names[at : at + len(group)] != group:
                return None
            arrays.append(array)
            at += len(group)
        return tuple(arrays)


class StackedColumns(Mapping[str, Array]):
    """Column name to array of shape (rows,)."""

    __slots__ = ("arrays", "stacking")

    def __init__(self, stacking: Stacking, arrays: Sequence[Array]) -> None:
        """`arrays`: for each group of `stacking` one of shape (columns, rows)."""
        self.stacking, self.arrays = stacking, arrays

    def __getitem__(self, name: str) -> Array:
        array, row = self.stacking.places[name]
        found: Array = self.arrays[array][row]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self.stacking.names)

    def __len__(self) -> int:
        return len(self.stacking.names)

    def __contains__(self, name: object) -> bool:
        return name in self.stacking.places


def stack(columns: Mapping[str, Array], names: tuple[str, ...], dtype: np.dtype[Any]) -> Array:
    """These columns end to end, as one array of `dtype`."""
    if isinstance(columns, StackedColumns):
        arrays = columns.stacking.whole(names)
        if arrays is not None:
            parts = [columns.arrays[array].reshape(-1) for array in arrays]
            return np.concatenate(parts, dtype=dtype) if len(parts) > 1 else parts[0].astype(dtype)
    return np.concatenate([columns[name] for name in names], dtype=dtype)


def alike(requests: Sequence[Mapping[str, Array]]) -> Stacking | None:
    """The stacking that all share, if any."""
    first = requests[0]
    if not isinstance(first, StackedColumns):
        return None
    stacking = first.stacking
    same = all(isinstance(other, StackedColumns) and other.stacking is stacking for other in requests)
    return stacking if same else None


def end_to_end(requests: Sequence[Mapping[str, Array]], names: Sequence[str]) -> Mapping[str, Array]:
    """The rows of all requests, one after the other, with at least these columns.

    `ValueError` where arrays do not go together, `KeyError` where a column is not there.
    """
    stacking = alike(requests)
    if stacking is None:
        return {name: np.concatenate([request[name] for request in requests]) for name in names}
    parts = zip(*(request.arrays for request in requests if isinstance(request, StackedColumns)), strict=True)
    return StackedColumns(stacking, [np.concatenate(part, axis=1) for part in parts])
