"""Generated requests of MLflow's scoring protocol: right ones, and ones with a single thing odd about them."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from serving.runtime.plan import Column

JSON, CSV = "application/json", "text/csv"
Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One request, and what is odd about it; empty where nothing is."""

    body: bytes
    content_type: str
    form: str
    oddity: str
    column: str


_OVERFLOW = "1e999 as a number"
"""Stands in a value's place until the body is text: Python has no such number to write."""

ODD_VALUES: dict[str, tuple[tuple[str, ...], Any]] = {
    "null in a number": (("double", "float"), None),
    "null in an integer": (("long", "integer"), None),
    "null in a string": (("string",), None),
    "fraction in an integer": (("long", "integer"), 1.5),
    "whole float in an integer": (("long", "integer"), 2.0),
    "integer out of range": (("long", "integer"), 2**70),
    "boolean in an integer": (("long", "integer"), True),
    "boolean in a number": (("double", "float"), True),
    "integer in a number": (("double", "float"), 3),
    "text in a number": (("double", "float"), "many"),
    "text in an integer": (("long", "integer"), "many"),
    "number as text in a number": (("double", "float"), "3.5"),
    "number as text in an integer": (("long", "integer"), "3"),
    "number in a string": (("string",), 5),
    "unknown word": (("string",), "never seen"),
    "empty string": (("string",), ""),
    "NaN": (("double", "float"), float("nan")),
    "infinity": (("double", "float"), float("inf")),
    "too large": (("double",), 1e300),
    "overflow": (("double", "float"), _OVERFLOW),
    "list in a number": (("double", "float"), [1.0]),
    "list in an integer": (("long", "integer"), [1]),
    "list in a string": (("string",), ["a"]),
}
"""What can be odd about a value: the kinds of columns where it can, and the value."""

ODD_SHAPES = ("missing column", "extra column", "duplicate column", "short row", "no rows", "other order")


def oddities(columns: tuple[Column, ...]) -> tuple[str, ...]:
    """Everything that can be odd about a request for these columns, and nothing at all."""
    kinds = {column.kind for column in columns}
    return ("", *(name for name, (where, _) in ODD_VALUES.items() if kinds & set(where)), *ODD_SHAPES)


def records(columns: tuple[Column, ...], words: Mapping[str, tuple[str, ...]]) -> st.SearchStrategy[list[Record]]:
    """One to four right rows; `words` are what is known of strings."""
    return st.lists(_record(columns, words), min_size=1, max_size=4)


def _record(columns: tuple[Column, ...], words: Mapping[str, tuple[str, ...]]) -> st.SearchStrategy[Record]:
    return st.fixed_dictionaries({column.name: _value(column, words) for column in columns})


def _value(column: Column, words: Mapping[str, tuple[str, ...]]) -> st.SearchStrategy[Any]:
    if column.kind in ("double", "float"):
        return st.floats(-1e3, 1e3, width=32)
    if column.kind in ("long", "integer"):
        return st.integers(-1_000, 1_000)
    if column.kind == "boolean":
        return st.booleans()
    return st.sampled_from(words.get(column.name, ("a", "b")))


def asked(rows: list[Record], columns: tuple[Column, ...], form: str, oddity: str, at: int) -> Asked:
    """The rows as a request; `at` says in which row and column it is odd."""
    changed = ""
    if oddity in ODD_VALUES:
        where, value = ODD_VALUES[oddity]
        fitting = [column.name for column in columns if column.kind in where]
        changed = fitting[at % len(fitting)]
        place = at % len(rows)
        rows = [*rows[:place], rows[place] | {changed: value}, *rows[place + 1 :]]
    names = [column.name for column in columns]
    table = Table(names, [[record[name] for name in names] for record in rows])
    if oddity in ODD_SHAPES:
        table = _misshapen(table, oddity, at)
    body = FORMS[form](table)
    text = body.replace(json.dumps(_OVERFLOW), "1e999").replace(_OVERFLOW, "1e999")
    return Asked(text.encode(), CSV if form == "csv" else JSON, form, oddity, changed)


@dataclass(frozen=True, slots=True)
class Table:
    names: list[str]
    rows: list[list[Any]]


def _misshapen(table: Table, oddity: str, at: int) -> Table:
    names, rows, place = table.names, table.rows, at % len(table.names)
    if oddity == "missing column":
        return Table(names[:place] + names[place + 1 :], [row[:place] + row[place + 1 :] for row in rows])
    if oddity == "extra column":
        return Table([*names, "one more"], [[*row, 1] for row in rows])
    if oddity == "duplicate column":
        return Table([*names, names[place]], [[*row, row[place]] for row in rows])
    if oddity == "short row":
        return Table(names, [*rows[:-1], rows[-1][:-1]])
    if oddity == "other order":
        return Table(names[::-1], [row[::-1] for row in rows])
    return Table(names, [])


def _split(table: Table) -> str:
    return json.dumps({"dataframe_split": {"columns": table.names, "data": table.rows}})


def _indexed(table: Table) -> str:
    index = list(range(len(table.rows)))
    return json.dumps({"dataframe_split": {"index": index, "columns": table.names, "data": table.rows}})


def _records(table: Table) -> list[str]:
    """JSON objects; written by hand, because a name may come twice."""
    pairs = [zip(table.names, row, strict=False) for row in table.rows]
    return ["{" + ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in row) + "}" for row in pairs]


def _columns(table: Table) -> str:
    columns = [
        f"{json.dumps(name)}:{json.dumps([row[i] for row in table.rows if i < len(row)])}"
        for i, name in enumerate(table.names)
    ]
    return '{"inputs": {' + ",".join(columns) + "}}"


def _csv(table: Table) -> str:
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(table.names)
    writer.writerows([["" if value is None else value for value in row] for row in table.rows])
    return text.getvalue()


FORMS: dict[str, Callable[[Table], str]] = {
    "dataframe_split": _split,
    "dataframe_split with index": _indexed,
    "dataframe_records": lambda table: '{"dataframe_records": [' + ",".join(_records(table)) + "]}",
    "instances": lambda table: '{"instances": [' + ",".join(_records(table)) + "]}",
    "inputs by column": _columns,
    "inputs by row": lambda table: '{"inputs": [' + ",".join(_records(table)) + "]}",
    "csv": _csv,
}
