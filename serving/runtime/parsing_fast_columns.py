"""Decoders for a signature of columns.

The columns of ``dataframe_split`` may come in any order: their names are compared as bytes, and each order that was
seen has its own decoder, for a bounded number of orders.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from operator import attrgetter
from typing import Any

import msgspec
from msgspec import UNSET, UnsetType
from msgspec.json import Decoder

from serving.runtime.parsing_fast import Arrays, Format, Split
from serving.runtime.parsing_layout import Layout, Row
from serving.runtime.parsing_types import of_column
from serving.runtime.plan import Column

_KEPT = 64
"""So many orders of columns are remembered at a time."""

_LONGEST = 65536
"""Bytes of names that are remembered as an order."""


def formats(columns: Sequence[Column]) -> Mapping[str, Format]:
    """The formats that have decoders."""
    records, lists = _Records(columns), _Lists(columns)
    found: dict[str, Format] = {
        "dataframe_split": (Split, _Splits(columns).read),
        "dataframe_records": (list[records.type], records.read),  # type: ignore[name-defined]
    }
    if any(column.kind == "binary" for column in columns):
        return found  # `inputs` and `instances` have binary values as text
    if len(columns) == 1:
        either: Format = (list[of_column(columns[0])] | lists.type, lists.read)  # type: ignore[misc]
    else:
        either = (list[records.type] | lists.type, _either(records.read, lists.read))  # type: ignore[name-defined]
    return found | {"inputs": either, "instances": either}


class _Splits:
    """``dataframe_split``."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self._columns = {column.name: column for column in columns}
        self._orders: dict[bytes, tuple[Callable[[Any], list[Row]], Layout]] = {}

    def read(self, told: Split) -> Arrays | None:
        names = bytes(told.columns)
        order = self._orders.get(names) or self._order(names)
        rows = order[0](told.data)
        if not rows or (told.index is not None and len(told.index) != len(rows)):
            return None
        return order[1].arrays(rows)

    def _order(self, told: bytes) -> tuple[Callable[[Any], list[Row]], Layout]:
        names = msgspec.json.decode(told, type=list[str])
        positions = {name: position for position, name in enumerate(names)}
        if len(positions) < len(names):
            raise ValueError("a name stands there twice")
        there = _there(self._columns.values(), positions)
        row = tuple.__class_getitem__(tuple(_type(self._columns.get(name)) for name in names))
        order = Decoder(list[row]).decode, Layout(there, positions)  # type: ignore[valid-type]
        if len(told) <= _LONGEST:
            _put(self._orders, told, order)
        return order


class _Records:
    """``dataframe_records``, and ``inputs`` and ``instances`` by row."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.type = _struct("Record", columns, of_column)
        self._get = _getter(columns)
        self._optional = [position for position, column in enumerate(columns) if not column.required]
        self._layouts = _Layouts(columns)

    def read(self, records: list[Any]) -> Arrays | None:
        if not records:
            return None
        rows = list(map(self._get, records))
        if not self._optional:
            return self._layouts.whole.arrays(rows)
        columns = list(zip(*rows, strict=True))
        absent = {position: columns[position].count(UNSET) for position in self._optional}
        if not {0, len(rows)}.issuperset(absent.values()):
            return None
        return self._layouts.of([not absent.get(position) for position in range(len(columns))]).of_columns(columns)


class _Lists:
    """``inputs`` and ``instances`` by column, or the values of the only column."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.type = _struct("Columns", columns, lambda column: list[of_column(column)])  # type: ignore[misc]
        self._get = _getter(columns)
        self._layouts = _Layouts(columns)

    def read(self, told: Any) -> Arrays | None:
        lists = [told] if isinstance(told, list) else self._get(told)
        there = [values is not UNSET for values in lists]
        lengths = {len(values) for values in lists if values is not UNSET}
        if len(lengths) != 1 or 0 in lengths:
            return None
        return self._layouts.of(there).of_columns(lists)


class _Layouts:
    """Layouts by which columns are there."""

    def __init__(self, columns: Sequence[Column]) -> None:
        self.whole = Layout(columns, {column.name: position for position, column in enumerate(columns)})
        self._columns = columns
        self._some: dict[tuple[bool, ...], Layout] = {}

    def of(self, there: Sequence[bool]) -> Layout:
        if all(there):
            return self.whole
        key = tuple(there)
        if key not in self._some:
            positions = {column.name: i for i, column in enumerate(self._columns) if there[i]}
            columns = [column for column in self._columns if column.name in positions]
            _put(self._some, key, Layout(columns, positions))
        return self._some[key]


def _put(kept: dict[Any, Any], key: Any, value: Any) -> None:
    if len(kept) == _KEPT:
        kept.clear()
    kept[key] = value


def _either(records: Callable[[list[Any]], Arrays | None], lists: Callable[[Any], Arrays | None]) -> Any:
    return lambda told: records(told) if isinstance(told, list) else lists(told)


def _struct(name: str, columns: Sequence[Column], type_of: Callable[[Column], Any]) -> Any:
    """An object with the names of columns; fields are called by position, as names need not be Python's."""
    fields: list[Any] = []
    for position, column in enumerate(columns):
        told = type_of(column)
        fields.append((f"c{position}", told) if column.required else (f"c{position}", told | UnsetType, UNSET))
    names = {f"c{position}": column.name for position, column in enumerate(columns)}
    return msgspec.defstruct(name, fields, rename=names, kw_only=True, gc=False)


def _getter(columns: Sequence[Column]) -> Callable[[Any], Row]:
    """All fields of an object, as a tuple."""
    if len(columns) > 1:
        return attrgetter(*(f"c{position}" for position in range(len(columns))))
    return lambda told: (told.c0,)


def _there(columns: Any, positions: Mapping[str, int]) -> list[Column]:
    if any(column.required and column.name not in positions for column in columns):
        raise ValueError("a required column is missing")
    return [column for column in columns if column.name in positions]


def _type(column: Column | None) -> Any:
    """Of a value; anything where the signature has no such column."""
    return Any if column is None else of_column(column)
