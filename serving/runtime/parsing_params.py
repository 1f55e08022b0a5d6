"""Parameters of a request, by MLflow's rules: what the signature does not name is ignored."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from serving.runtime.exchange import BadRequestError
from serving.runtime.parsing_values import Problems, WrongValueError, quoted
from serving.runtime.plan import Param


class ParamReader:
    """Reads the parameters that a signature names."""

    def __init__(self, params: Sequence[Param]) -> None:
        self._params = {param.name: param for param in params}

    def read(self, told: Any) -> dict[str, Any] | None:
        """Only those that the request sets; None where it sets none."""
        if not self._params or told is None:
            return None
        if not isinstance(told, dict):
            raise BadRequestError(f"params: expected an object, got {quoted(told)}")
        problems = Problems()
        found = {name: _value(self._params[name], told[name], problems) for name in self._params if name in told}
        problems.check()
        return found or None


def _value(param: Param, told: Any, problems: Problems) -> Any:
    where, read = f"param {quoted(param.name)}", _READ[param.kind]
    values = [told] if param.shape is None else told
    if not isinstance(values, list):
        problems.add(where, "a list", told)
        return None
    taken = []
    for value in values:
        try:
            taken.append(None if value is None else read(value))
        except WrongValueError as error:
            problems.add(where, str(error), value)
    return taken if param.shape is not None else taken[0] if taken else None


def _exactly(kind: type, expected: str) -> Callable[[Any], Any]:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise WrongValueError(expected)
        return value

    return read


def _real(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongValueError("a number")
    try:
        return float(value)
    except OverflowError:
        raise WrongValueError("a number that fits 64 bits") from None


def _moment(value: Any) -> Any:
    """A date, or a date and time."""
    try:
        moment = np.datetime64(value).item() if isinstance(value, str) else 0
    except ValueError:
        moment = 0
    if isinstance(moment, int):
        raise WrongValueError("a date, or a date and time, as ISO 8601")
    return moment


_whole = _exactly(int, "a whole number")

_READ: dict[str, Callable[[Any], Any]] = {
    "boolean": _exactly(bool, "true or false"),
    "integer": _whole,
    "long": _whole,
    "float": _real,
    "double": _real,
    "string": _exactly(str, "a string"),
    "datetime": _moment,
}
