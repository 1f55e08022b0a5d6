"""Which values one column or tensor takes, value by value: the meaning of a signature, in plain Python.

Everything else that reads requests is a faster way to the same arrays. What is refused is told by where it stands, what
was expected and what was there.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.runtime.exchange import Array, BadRequestError
from serving.runtime.plan import KINDS, Column, Tensor

_TOLD = 5
"""So many problems of a request are told; the others are counted."""

_COUNTED = 100
"""So many are looked for: a large body of nothing but problems shall not take long."""

_CATEGORIES_TOLD = 10

_CUT = 50
"""Characters of a value that are told."""

NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
"""How JSON writes a number."""

MOMENT = (
    r"(?:16(?:7[89]|[89][0-9])|1[789][0-9]{2}|2[01][0-9]{2}|22(?:[0-5][0-9]|6[01]))-[0-9]{2}-[0-9]{2}"
    r"(?:[T ][0-9]{2}(?::[0-9]{2}(?::[0-9]{2}(?:\.[0-9]{1,9})?)?)?)?"
)
"""A date, or a date and a time, in the years that nanoseconds in 64 bits can hold."""

_MOMENT = re.compile(MOMENT)

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")


Read = Callable[[Any], Any]
"""What stands in an array for a value of a request; `WrongValueError` where it is none."""


class Infinite(float):
    """An infinity that the request spelled as one. Any other infinity is a number that overflowed."""


class Problems:
    """What is wrong with a request: the first few in words, the others as a number."""

    def __init__(self) -> None:
        self._told: list[str] = []
        self._count = 0

    def add(self, where: str, expected: str, got: Any) -> None:
        self._count += 1
        if self._count <= _TOLD:
            self._told.append(f"{where}: expected {expected}, got {quoted(got)}")
        if self._count == _COUNTED:
            self.check()

    def check(self) -> None:
        """`BadRequestError` where there are any."""
        if self._count:
            least = "at least " if self._count == _COUNTED else ""
            more = f"; and {least}{self._count - _TOLD} more" if self._count > _TOLD else ""
            raise BadRequestError("; ".join(self._told) + more)


class WrongValueError(ValueError):
    """A value that the column does not take; its text is what was expected."""


@dataclass(frozen=True, slots=True)
class Domain:
    """The values that one column or tensor takes."""

    name: str
    dtype: np.dtype[Any]
    read: Read
    free: bool
    """Whether it takes all finite values of its type."""
    where: Callable[[int], str]
    """How the place of a value is told, by its number."""

    def array(self, values: Iterable[Any], problems: Problems) -> Array:
        """One dimension of them; empty where something is wrong."""
        read, taken, wrong = self.read, [], False
        for position, value in enumerate(values):
            try:
                taken.append(read(value))
            except WrongValueError as error:
                problems.add(self.where(position), str(error), value)
                wrong = True
        return np.empty(0, self.dtype) if wrong else array_of(taken, self.dtype)


def array_of(values: list[Any], dtype: np.dtype[Any]) -> Array:
    array = np.empty(len(values), dtype)
    array[:] = values
    return array


def of_column(column: Column, text: bool = False) -> Domain:
    """`text`: whether binary values come as text and not in base64, as in MLflow's ``inputs`` and ``instances``."""
    dtype = np.dtype(KINDS[column.kind])
    special: dict[str, Read] = {"string": _string, "datetime": _moment, "binary": _ascii if text else _binary}
    read = special.get(column.kind) or _plain(dtype)
    if dtype.kind in "if":
        read = _bounded(read, column.infinite, column.largest)
    if column.categories is not None:
        read = _one_of(read, column.categories, dtype)
    missing = _MISSING.get(column.kind, _NEVER) if column.nulls else _NEVER
    free = dtype.kind in "biuf" and column.largest is None and column.categories is None
    return Domain(column.name, dtype, _nullable(read, missing), free, _in_column(column.name))


def of_tensor(tensor: Tensor, width: int) -> Domain:
    """`width`: how many values a row has."""
    dtype = np.dtype(tensor.dtype)
    read = _bounded(_plain(dtype), tensor.infinite, tensor.largest)
    missing = np.nan if dtype.kind == "f" and tensor.nulls else _NEVER
    name = f"tensor {quoted(tensor.name)}" if tensor.name else "the tensor"

    def where(position: int) -> str:
        return f"{name}, row {position // width}" + (f", value {position % width}" if width > 1 else "")

    return Domain(tensor.name, dtype, _nullable(read, missing), tensor.largest is None, where)


def _in_column(name: str) -> Callable[[int], str]:
    return lambda row: f"column {quoted(name)}, row {row}"


def quoted(value: Any) -> str:
    """As JSON has it, cut short."""
    if isinstance(value, str):
        cut = len(value) > _CUT
        text = value[:_CUT].encode("utf-8", "replace").decode()  # half a character cannot be answered with
        return json.dumps(text, ensure_ascii=False) + ("..." if cut else "")
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if value is None or isinstance(value, bool):
        return json.dumps(value)
    return str(value)[:_CUT]


_NEVER = object()
"""Stands for no missing value at all."""

_MISSING = {"float": math.nan, "double": math.nan, "string": None, "datetime": np.datetime64("NaT", "ns")}


def _nullable(read: Read, missing: Any) -> Read:
    def nullable(value: Any) -> Any:
        if value is None or value != value:
            if missing is _NEVER:
                return _refuse(read)
            return missing
        return read(value)

    return nullable


def _refuse(read: Read) -> Any:
    """Let it say what it expects."""
    try:
        read(_NEVER)
    except WrongValueError as error:
        raise WrongValueError(f"{error}, not null") from None


def _plain(dtype: np.dtype[Any]) -> Read:
    if dtype.kind == "b":
        return _boolean
    if dtype.kind == "f":
        return _real(float(np.finfo(dtype).max))
    bounds = np.iinfo(dtype)
    return _whole(int(bounds.min), int(bounds.max))


def _boolean(value: Any) -> bool:
    if value is True or value is False:
        return bool(value)
    raise WrongValueError("true or false")


def _whole(least: int, most: int) -> Callable[[Any], int]:
    def whole(value: Any) -> int:
        number = _number(value)
        if number is None or (isinstance(number, float) and not number.is_integer()):
            raise WrongValueError("a whole number")
        if not least <= number <= most:
            raise WrongValueError(f"a whole number from {least} to {most}")
        return int(number)

    return whole


def _real(most: float) -> Callable[[Any], float]:
    def real(value: Any) -> float:
        number = _number(value)
        if number is None:
            raise WrongValueError("a number")
        if isinstance(number, Infinite):
            return float(number)
        if not -most <= number <= most:
            raise WrongValueError(f"a number from {-most:.6g} to {most:.6g}")
        return float(number)

    return real


def _number(value: Any) -> int | float | None:
    """The number that it is, or that it spells as JSON does; None for anything else."""
    if isinstance(value, str) and NUMBER.fullmatch(value):
        value = _spelled(value)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _spelled(text: str) -> int | float | None:
    try:
        return int(text) if text.lstrip("-").isdigit() else float(text)
    except ValueError:  # Python reads no integers of thousands of digits
        return None


def _string(value: Any) -> str:
    value = _text(value)
    if isinstance(value, str):
        if value.isascii() or not _SURROGATE.search(value):
            return value
        raise WrongValueError("a string of whole Unicode characters")
    raise WrongValueError("a string")


def _text(value: Any) -> Any:
    """Bytes, which only arrays have, as the text that they are."""
    try:
        return value.decode() if isinstance(value, bytes) else value
    except UnicodeDecodeError:
        return None


_SURROGATE = re.compile("[\ud800-\udfff]")


def _moment(value: Any) -> np.datetime64:
    """Of text, or of nanoseconds since 1970."""
    value = _text(value)
    try:
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            return np.datetime64(value, "ns")
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63:
            return np.datetime64(value, "ns")
    except ValueError:
        pass
    raise WrongValueError("a date and time without a zone such as 2024-05-31T12:30:00, or nanoseconds since 1970")


def _binary(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        text = value.replace("\n", "").replace("\r", "")
        if _BASE64.fullmatch(text):
            return binascii.a2b_base64(text)
    raise WrongValueError("base64")


def _ascii(value: Any) -> bytes:
    if isinstance(value, str) and value.isascii() and not value.endswith("\0"):
        return value.encode()
    raise WrongValueError("a string of ASCII characters")


def _bounded(read: Read, infinite: bool, largest: float | None) -> Read:
    if infinite and largest is None:
        return read

    def bounded(value: Any) -> Any:
        found = read(value)
        if isinstance(found, float) and math.isinf(found):
            if not infinite:
                raise WrongValueError("a finite number")
        elif largest is not None and abs(found) > largest:
            raise WrongValueError(f"a number from {-largest:.6g} to {largest:.6g}")
        return found

    return bounded


def _one_of(read: Read, categories: tuple[Any, ...], dtype: np.dtype[Any]) -> Read:
    same = rounded if dtype == np.float32 else _itself
    known = frozenset(map(same, categories))
    told = ", ".join(quoted(category) for category in categories[:_CATEGORIES_TOLD])
    rest = f" and {len(categories) - _CATEGORIES_TOLD} more" if len(categories) > _CATEGORIES_TOLD else ""

    def one_of(value: Any) -> Any:
        found = read(value)
        if same(found) not in known:
            raise WrongValueError(f"one of {told}{rest}")
        return found

    return one_of


def rounded(value: float) -> float:
    """What is left of it in 32 bits."""
    return float(np.float32(value))


def _itself(value: Any) -> Any:
    return value
