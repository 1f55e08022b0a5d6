"""What msgspec is told of a column's or tensor's values, so that its decoder refuses what the plan refuses.

A decoder may be narrower than the truth, never wider: whatever it does not take is read again value by value.
"""

from __future__ import annotations

import math
import sys
from contextlib import suppress
from typing import Annotated, Any, Literal

import numpy as np
from msgspec import Meta

from serving.runtime import parsing_values
from serving.runtime.parsing_values import MOMENT, WrongValueError, array_of
from serving.runtime.plan import KINDS, Column, Tensor

_SPECIAL = {"string": str, "datetime": Annotated[str, Meta(pattern=rf"^(?:{MOMENT})\Z")], "binary": bytes}

_LITERAL = frozenset({"string", "integer", "long"})
"""Kinds whose categories a decoder can check."""


def of_column(column: Column) -> Any:
    """The type of one value of a column."""
    found: Any = _SPECIAL.get(column.kind) or _plain(np.dtype(KINDS[column.kind]), column.largest)
    if column.kind in _LITERAL and (values := _categories(column)):
        found = Literal[values]
    return found | None if column.nulls and column.kind in ("float", "double", "string", "datetime") else found


def of_tensor(tensor: Tensor, dimensions: int) -> Any:
    """The type of nested lists of so many dimensions."""
    dtype = np.dtype(tensor.dtype)
    found = _plain(dtype, tensor.largest)
    found = found | None if tensor.nulls and dtype.kind == "f" else found
    for _ in range(dimensions):
        found = list[found]  # type: ignore[valid-type]
    return found


def known(column: Column) -> frozenset[Any] | None:
    """The only values of a column, where its type does not already see to that."""
    values = _categories(column)
    if column.categories is None or (column.kind in _LITERAL and values):
        return None
    return frozenset((*values, None) if column.nulls else values)


def _categories(column: Column) -> tuple[Any, ...]:
    """As they stand in an array; those that cannot stand there are left out."""
    taken, domain = [], parsing_values.of_column(column)
    for value in column.categories or ():
        with suppress(WrongValueError):
            taken.append(array_of([domain.read(value)], domain.dtype).tolist()[0])
    return tuple(taken)


def _plain(dtype: np.dtype[Any], largest: float | None) -> Any:
    if dtype.kind == "b":
        return bool
    if dtype.kind == "f":
        limit = min(float(np.finfo(dtype).max), math.inf if largest is None else largest)
        return float if limit == sys.float_info.max else Annotated[float, Meta(ge=-limit, le=limit)]
    least, most = int(np.iinfo(dtype).min), int(np.iinfo(dtype).max)
    if largest is not None and largest < most:
        least, most = max(least, -math.floor(largest)), math.floor(largest)
    return _whole(least, most)


def _whole(least: int, most: int) -> Any:
    """NumPy itself refuses what does not fit 64 bits."""
    if most < 2**63 - 1:
        return Annotated[int, Meta(ge=least, le=most)]
    return int if least else Annotated[int, Meta(ge=0)]
