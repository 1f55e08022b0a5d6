"""Rows as the server has them, and the model's own answers to them, as its native process would send them.

Everything that is tried on a model at build time goes through `Native`, so what is learned holds at run time.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from serving.runtime.exchange import Array, Predictions, Rows
from serving.runtime.native_answers import predictions_of
from serving.runtime.plan import KINDS, Plan, Result


class AnswerError(Exception):
    """The model's answer is no array with a row for every row that it was given."""


class Native:
    """The model as MLflow loads it."""

    def __init__(self, pyfunc: Any, plan: Plan) -> None:
        self.pyfunc = pyfunc
        self._tensors = bool(plan.tensors)

    def predict(self, rows: Rows) -> Predictions:
        """Any exception of the model's own code, or `AnswerError`."""
        answer = predictions_of(self.pyfunc.predict(self._given(rows)))
        if answer is None:
            raise AnswerError("its answer is no array or frame")
        if answer.count != rows.count:
            raise AnswerError(f"it answered {rows.count} rows with {answer.count}")
        return Predictions({name: plain(values) for name, values in answer.columns.items()}, answer.count, answer.frame)

    def _given(self, rows: Rows) -> Any:
        if not self._tensors:
            return pd.DataFrame(dict(rows.columns))
        return rows.columns[""] if "" in rows.columns else dict(rows.columns)


def plain(values: Array) -> Array:
    """Text always as objects."""
    return values.astype(object) if values.dtype.kind == "U" else values


def results_of(answer: Predictions) -> tuple[Result, ...]:
    """What the columns of an answer are, without where they come from."""
    return tuple(Result(name, "", str(values.dtype), shape=values.shape[1:]) for name, values in answer.columns.items())


def rows_of(example: Any, plan: Plan) -> Rows | None:
    """A model's input example as rows; None where it does not fit the plan."""
    try:
        columns = _tensors_of(example, plan) if plan.tensors else _columns_of(example, plan)
    except (TypeError, ValueError, KeyError, OverflowError):
        return None
    counts = {len(values) for values in columns.values()}
    return Rows(columns, counts.pop()) if len(counts) == 1 and 0 not in counts else None


def _columns_of(example: Any, plan: Plan) -> dict[str, Array]:
    if isinstance(example, Mapping):
        example = pd.DataFrame([example] if all(np.isscalar(part) for part in example.values()) else dict(example))
    frame = pd.DataFrame(example)
    return {
        column.name: column_array(frame[column.name].tolist(), column.kind)
        for column in plan.columns
        if column.required or column.name in frame
    }


def column_array(values: Sequence[Any], kind: str) -> Array:
    """Values as an array of the plan's type; missing ones are NaN, NaT or None."""
    dtype = KINDS[kind]
    if dtype != "object":
        return np.asarray(pd.Series(values).to_numpy(), dtype=dtype)
    array = np.empty(len(values), object)
    array[:] = [None if value is None or value is pd.NA or value != value else value for value in values]
    return array


def _tensors_of(example: Any, plan: Plan) -> dict[str, Array]:
    given = example if isinstance(example, Mapping) else {plan.tensors[0].name: example}
    return {tensor.name: np.ascontiguousarray(given[tensor.name], dtype=tensor.dtype) for tensor in plan.tensors}


def take(rows: Rows, positions: Any) -> Rows:
    """Rows at positions, in their order."""
    columns = {name: values[positions] for name, values in rows.columns.items()}
    return Rows(columns, len(next(iter(columns.values()))))


def joined(parts: Iterable[Rows]) -> Rows:
    """Rows of all the parts, one after the other."""
    listed = [part for part in parts if part.count]
    columns = {name: np.concatenate([part.columns[name] for part in listed]) for name in listed[0].columns}
    return Rows(columns, sum(part.count for part in listed))


def changed(rows: Rows, columns: Mapping[str, Any]) -> Rows:
    """The same rows with one value in each of these columns."""
    new = dict(rows.columns)
    for name, value in columns.items():
        new[name] = rows.columns[name].copy()
        new[name][:] = value
    return Rows(new, rows.count)
