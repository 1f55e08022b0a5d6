"""Frames as they come in JSON, as plain Python columns: ``dataframe_split`` and ``dataframe_records``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from serving.runtime.exchange import BadRequestError
from serving.runtime.parsing_values import quoted

_NAMES_TOLD = 10

Choose = Callable[[Sequence[str]], Sequence[str]]
"""Of the names in a request, those whose values are wanted: a request may have more names than rows are worth."""


@dataclass(frozen=True, slots=True)
class Table:
    """A frame of a request, before anybody looked at its values."""

    columns: dict[str, Sequence[Any]]
    count: int


def of_split(told: Any) -> Table:
    """``dataframe_split``. Without names its columns are called by their positions, as in MLflow."""
    if not isinstance(told, dict):
        raise BadRequestError(f"dataframe_split: expected an object with 'columns' and 'data', got {quoted(told)}")
    if extra := [key for key in told if key not in ("columns", "data", "index")]:
        raise BadRequestError(f"dataframe_split: expected only 'columns', 'data' and 'index', got {listed(extra)} too")
    data = told.get("data")
    if not isinstance(data, list):
        raise BadRequestError(f"dataframe_split: expected 'data' to be a list of rows, got {quoted(data)}")
    index = told.get("index")
    if index is not None and not (isinstance(index, list) and len(index) == len(data)):
        raise BadRequestError(f"dataframe_split: expected 'index' to be a list of {len(data)} values, one for each row")
    names = told.get("columns")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str | int) for name in names)):
        raise BadRequestError("dataframe_split: expected 'columns' to be a list of names")
    if data and not any(isinstance(row, list) for row in data) and (names is None or len(names) == 1):
        data = [[value] for value in data]
    width = len(names) if names is not None else _width(data)
    check_widths(data, width)
    columns = list(zip(*data, strict=True)) if data else [()] * width
    return _table([str(name) for name in names or range(width)], columns, len(data))


def of_records(told: Any, choose: Choose, whole: bool = False, called: str = "dataframe_records") -> Table:
    """``dataframe_records``. What a record leaves out is missing there, or refused where records are to be `whole`."""
    if not isinstance(told, list):
        raise BadRequestError(f"{called}: expected a list of records, got {quoted(told)}")
    names: dict[str, None] = {}
    for row, record in enumerate(told):
        if not isinstance(record, dict):
            raise BadRequestError(f"{called}: row {row}: expected an object, got {quoted(record)}")
        names.update(dict.fromkeys(record))
    chosen = choose(list(names))
    if whole:
        _check_whole(told, chosen, called)
    return Table({name: [record.get(name) for record in told] for name in chosen}, len(told))


def _table(names: list[str], columns: Sequence[Sequence[Any]], count: int) -> Table:
    check_once(names)
    return Table(dict(zip(names, columns, strict=True)), count)


def check_once(names: Sequence[str]) -> None:
    """Refused where a name comes twice."""
    if len(set(names)) < len(names):
        twice = [name for name, times in Counter(names).items() if times > 1]
        raise BadRequestError(f"expected every column once, got {listed(twice)} more than once")


def check_widths(rows: Sequence[Any], width: int) -> None:
    """Refused where one of the rows is no list of so many values."""
    if set(map(type, rows)) <= {list} and set(map(len, rows)) <= {width}:
        return
    for row, values in enumerate(rows):
        if not isinstance(values, list):
            raise BadRequestError(f"row {row}: expected a list of {width} values, got {quoted(values)}")
        if len(values) != width:
            raise BadRequestError(f"row {row}: expected {width} values, one for each column, got {len(values)}")


def _width(rows: Sequence[Any]) -> int:
    return len(rows[0]) if rows and isinstance(rows[0], list) else 0


def _check_whole(records: list[dict[str, Any]], names: Sequence[str], called: str) -> None:
    for row, record in enumerate(records):
        if missing := [name for name in names if name not in record]:
            raise BadRequestError(f"{called}: row {row}: expected a value for {listed(missing)}, as in other rows")


def missing_inputs(names: Sequence[str]) -> str:
    """As MLflow says it."""
    more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
    return f"Model is missing inputs {list(names[:_NAMES_TOLD])}{more}."


def listed(names: Collection[str]) -> str:
    """The first of the names, and how many more there are."""
    more = f" and {len(names) - _NAMES_TOLD} more" if len(names) > _NAMES_TOLD else ""
    return ", ".join(map(quoted, islice(names, _NAMES_TOLD))) + more
