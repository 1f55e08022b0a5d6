"""What a converter is given and what it hands back; one converter per MLflow flavour.

A converter only claims. Whether its model answers as the native one does is for `proof` to say, so a converter may be
wrong without harm, and where it knows that it cannot be right it says so with `NotConvertible`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serving.runtime.exchange import Rows
from serving.runtime.plan import Feed, Plan, Result


class NotConvertible(Exception):
    """There is no compiled form of this model; the message says why, in one line that starts in lower case."""


class NotProved(Exception):
    """The compiled form differs, or there was too little time to see that it does not; one line."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model as MLflow loads it, and what is known of it so far."""

    folder: Path
    pyfunc: Any
    """`mlflow.pyfunc.PyFuncModel`."""
    native: Any
    """The flavour's own object (a scikit-learn estimator, a booster, a module); None where there is none."""
    plan: Plan
    """Columns or tensors are there: models that are not typed are not converted. `compiled` is still None."""
    base: Rows
    """Some rows on which the model is known to predict."""
    results: tuple[Result, ...]
    """What the model answered to `base`, `source` still empty: names, NumPy types (text is ``object``), shapes."""
    frame: bool
    """Whether that answer was a frame."""


@dataclass(frozen=True, slots=True)
class Edge:
    """Values of one input at which a model's answer may change: thresholds of trees, categories."""

    name: str
    """Of a column or tensor."""
    values: tuple[Any, ...]
    """The proof also takes the next values on both sides of a number, and values beside a text."""
    position: int = 0
    """Which value of a tensor's row, counted flat; 0 for a column."""


@dataclass(frozen=True, slots=True)
class Conversion:
    """A compiled model that is still to be proved."""

    model: bytes
    """An ONNX ModelProto."""
    feeds: tuple[Feed, ...]
    results: tuple[Result, ...]
    """`Loaded.results` with `source`, and `labels` where the compiled model gives positions."""
    tolerance: float = 0.0
    """How far a score may be off, relative to the larger of 1 and its size; labels and integers are always equal."""
    edges: tuple[Edge, ...] = ()
    frame: bool = False


Converter = Callable[[Loaded], Conversion]
"""Raises `NotConvertible`. Any other exception is reported as one, with its type and first line."""
