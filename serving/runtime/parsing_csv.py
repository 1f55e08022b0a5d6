"""Requests in CSV: a line of names, then a line for each row, with what pandas takes for numbers and missing values.

Columns of nothing but plain numbers are read as a whole, others cell by cell.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator, Sequence
from operator import itemgetter
from typing import Any

import numpy as np

from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.parsing_tables import Choose, check_once, check_widths
from serving.runtime.parsing_values import Infinite, quoted
from serving.runtime.plan import Column

_MISSING_NUMBERS = frozenset({"NaN", "-NaN", "nan", "-nan", "-1.#IND", "1.#IND", "-1.#QNAN", "1.#QNAN"})

_MISSING = _MISSING_NUMBERS | {"", "#N/A", "#N/A N/A", "#NA", "<NA>", "N/A", "NA", "NULL", "None", "n/a", "null"}
"""What pandas reads as a missing value."""

_TRUE = frozenset({"true", "True", "TRUE", "1", "1.0"})
_FALSE = frozenset({"false", "False", "FALSE", "0", "0.0"})

_INFINITE = {sign + word: Infinite(sign + "inf") for sign in ("", "+", "-") for word in ("inf", "infinity")}

_DIGITS = re.compile("[0-9+.eE-]*")
"""Of these characters alone, Python takes only what pandas takes for a number."""


def columns(body: bytes, choose: Choose) -> dict[str, Sequence[str]]:
    """The cells of those columns that are wanted."""
    try:
        text = body.decode().removeprefix("\ufeff")
        lines = [line for line in csv.reader(io.StringIO(text, newline="")) if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise BadRequestError(f"The body is not CSV in UTF-8: {error}") from error
    if not lines:
        raise BadRequestError("The body is empty: expected CSV whose first line names the columns.")
    names, *rows = lines
    check_once([name for name in names if name])
    check_widths(rows, len(names))
    positions = {name: position for position, name in enumerate(names)}
    return {name: list(map(itemgetter(positions[name]), rows)) for name in choose([name for name in names if name])}


def spoken(cells: Sequence[str], column: Column) -> Array | Iterator[Any]:
    """What cells mean in a column of this kind, as JSON would have had it, or as an array of numbers."""
    if column.kind == "binary":
        raise BadRequestError(f"column {quoted(column.name)}: CSV cannot carry binary values: expected JSON")
    if column.kind in ("string", "datetime"):
        return map(_there, cells)
    if column.kind == "boolean":
        return map(_boolean, cells)
    numbers = _numbers(cells, int if column.kind in ("long", "integer") else float)
    return map(_number, cells) if numbers is None else numbers


def _numbers(cells: Sequence[str], read: type[int] | type[float]) -> Array | None:
    """All of them; None where one is no plain number of this type."""
    try:
        array = np.array(list(map(read, cells)), read) if _DIGITS.fullmatch("".join(cells)) else None
    except (ValueError, OverflowError):
        return None
    return array if array is not None and np.isfinite(array).all() else None


def _number(cell: str) -> Any:
    """The number that a cell spells; its text where it spells none."""
    text = cell.strip()
    if text.lower() in _INFINITE:
        return _INFINITE[text.lower()]
    for read in (int, float):
        try:
            return read(text) if text and _DIGITS.fullmatch(text) else _there(text)
        except ValueError:
            continue
    return text


def _boolean(cell: str) -> Any:
    return True if cell in _TRUE else False if cell in _FALSE else _there(cell)


def _there(cell: str) -> str | None:
    return None if cell in _MISSING else cell
