"""What the build learned of a model, written down beside it, so that the server never has to import MLflow.

A plan says what requests look like, which values the model was seen to refuse, whether several requests may be
predicted together, and whether there is a compiled model and what proves it. Plain data, read back as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

_T = TypeVar("_T")

FILE = "plan.json"
"""Name of the plan in its folder; the compiled model lies beside it."""

KINDS = {
    "boolean": "bool",
    "integer": "int32",
    "long": "int64",
    "float": "float32",
    "double": "float64",
    "string": "object",
    "binary": "object",
    "datetime": "datetime64[ns]",
}
"""MLflow's names of a column's type, and the NumPy type that such a column has here."""


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the signature, and what the model was seen to refuse in it."""

    name: str
    kind: str
    """One of `KINDS`."""
    required: bool = True
    nulls: bool = True
    """Whether the model takes a missing value here. (In integers and booleans nobody does.)"""
    infinite: bool = True
    """Whether the model takes an infinity here."""
    largest: float | None = None
    """The largest absolute value that the model takes, where it was seen to have a limit."""
    categories: tuple[str | int | float | bool, ...] | None = None
    """The only values that the model takes, where it was seen to refuse others."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of the signature."""

    name: str
    """Empty where the signature has one tensor without a name."""
    dtype: str
    shape: tuple[int, ...]
    """The first dimension is the rows; -1 is any size."""
    nulls: bool = True
    """Whether the model takes missing values here. (In integers and booleans nobody does.)"""
    infinite: bool = True
    """Whether the model takes infinities here."""
    largest: float | None = None
    """The largest absolute value that the model takes, where it was seen to have a limit."""


@dataclass(frozen=True, slots=True)
class Param:
    """A parameter that a request may set."""

    name: str
    kind: str
    default: Any
    shape: tuple[int, ...] | None = None
    """None for a scalar, (-1,) for a list."""


@dataclass(frozen=True, slots=True)
class Feed:
    """One input of the compiled model: columns side by side, or a tensor."""

    name: str
    columns: tuple[str, ...]
    """Names of columns of the plan; one name where it is a tensor."""
    dtype: str


@dataclass(frozen=True, slots=True)
class Result:
    """One output column as the model itself gives it."""

    name: str
    """Empty for an answer that is an array and no frame."""
    source: str
    """Name of the compiled model's output."""
    dtype: str
    labels: tuple[str | int | float | bool, ...] | None = None
    """What the compiled model's numbers 0, 1, ... stand for, where they are positions."""
    shape: tuple[int, ...] = ()
    """Of one row: () for a value, (3,) for three values."""


@dataclass(frozen=True, slots=True)
class Compiled:
    """The compiled model, and what was proved of it."""

    file: str
    """Name of the file beside the plan."""
    digest: str
    """SHA-256 of that file."""
    feeds: tuple[Feed, ...]
    results: tuple[Result, ...]
    frame: bool
    """Whether the model itself answers with a frame."""
    tolerance: float
    """How far a score may be from the model's own, relative to the larger of 1 and its size; labels are equal."""
    rows: int
    """On how many rows both were compared."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How one model is served."""

    flavor: str
    """MLflow's name, such as ``sklearn``; ``python_function`` for a class of somebody's own."""
    signature: bool
    columns: tuple[Column, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    """Where neither columns nor tensors are known, MLflow's own code parses every request, in the native path."""
    params: tuple[Param, ...] = ()
    outputs: tuple[Column | Tensor, ...] = ()
    """What the signature says of the answers."""
    batching: bool = False
    """Whether rows of several requests may be predicted together: the answers were seen not to depend on it."""
    compiled: Compiled | None = None
    why: str = ""
    """One line: what the compiled path rests on, or why there is none."""

    @property
    def typed(self) -> bool:
        """Whether requests can be parsed without MLflow."""
        return bool(self.columns or self.tensors)

    def write(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILE).write_text(json.dumps(asdict(self), indent=1))


def read(folder: Path) -> Plan:
    """The plan in `folder`; `FileNotFoundError` where there is none, `ValueError` where it is not one."""
    try:
        return _plan(json.loads((folder / FILE).read_text()))
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / FILE} is no plan of this version of the server: {error!r}") from error


def _plan(told: dict[str, Any]) -> Plan:
    parts = {
        "columns": tuple(_column(part) for part in told["columns"]),
        "tensors": tuple(_tensor(part) for part in told["tensors"]),
        "params": tuple(_frozen(Param, part) for part in told["params"]),
        "outputs": tuple(_column(part) if "kind" in part else _tensor(part) for part in told["outputs"]),
        "compiled": told["compiled"] and _compiled(told["compiled"]),
    }
    return Plan(**told | parts)


def _compiled(told: dict[str, Any]) -> Compiled:
    feeds = tuple(_frozen(Feed, part) for part in told["feeds"])
    results = tuple(_frozen(Result, part) for part in told["results"])
    return Compiled(**told | {"feeds": feeds, "results": results})


def _column(told: Mapping[str, Any]) -> Column:
    return _frozen(Column, told)


def _tensor(told: Mapping[str, Any]) -> Tensor:
    return _frozen(Tensor, told)


def _frozen(kind: type[_T], told: Mapping[str, Any]) -> _T:
    return kind(**{name: tuple(value) if isinstance(value, list) else value for name, value in told.items()})
