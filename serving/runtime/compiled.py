"""The compiled model: ONNX Runtime over a plan's feeds and results, without MLflow, pandas or the model's library.

It computes in the caller's thread, one thread by default: a prediction of one row takes tens of microseconds, which is
less than waking another thread costs, and several front processes share the cores instead.
"""

from __future__ import annotations

import hashlib
import os
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from serving.runtime.exchange import Array, ModelError, Predictions, Rows
from serving.runtime.plan import Compiled, Feed, Plan, Result
from serving.stacked_columns import StackedColumns, stack

MISSING = "\ue000missing\ue000"
"""Stands for a missing text in the compiled model, whose texts cannot be missing. Of private characters: no request
that means anything has it."""

_LEVEL_FATAL = 4
"""Of ONNX Runtime's own log, which goes to standard error: its errors are raised as well."""

Fill = Callable[[Mapping[str, Array], int], Array]
Read = Callable[[list[Any], int], Array]


class CompiledModel:
    """Predicts with the compiled model of a plan. May be forked: every process then has a model that works."""

    def __init__(self, folder: Path, plan: Plan, threads: int = 1) -> None:
        """`ValueError` where the plan has no compiled model, or the file is not the one that was proved."""
        if plan.compiled is None:
            raise ValueError(f"there is no compiled model: {plan.why}")
        self._compiled, self._threads = plan.compiled, threads
        self._path = folder / plan.compiled.file
        self._session: ort.InferenceSession | None = _session(self._path, plan.compiled, threads)
        if threads > 1:
            _close_before_forks(self)
        self._names = frozenset(name for feed in plan.compiled.feeds for name in feed.columns)
        self._fills = [(feed.name, _fill(feed, plan)) for feed in plan.compiled.feeds]
        self._sources = list(dict.fromkeys(result.source for result in plan.compiled.results))
        self._reads = [(result.name, _read(result, self._sources)) for result in plan.compiled.results]

    def covers(self, rows: Rows) -> bool:
        """Whether the compiled model can answer this request."""
        if rows.params:
            return False
        columns = rows.columns
        if isinstance(columns, StackedColumns):
            return columns.stacking.has(self._names)
        return self._names <= columns.keys()

    def predict(self, rows: Rows) -> Predictions:
        """Answers to rows that `covers` is true of; `ModelError` where the compiled model fails."""
        columns, count = rows.columns, rows.count
        try:
            session = self._session or self._opened()
            feeds = {name: fill(columns, count) for name, fill in self._fills}
            outputs = session.run(self._sources, feeds)
            answers = {name: read(outputs, count) for name, read in self._reads}
        except Exception as error:  # ONNX Runtime's own exceptions have no parent of theirs
            raise ModelError(f"the compiled model failed: {error}") from error
        return Predictions(answers, count, self._compiled.frame)

    def close(self) -> None:
        """Let the session go; the next prediction opens another one."""
        self._session = None

    def _opened(self) -> ort.InferenceSession:
        self._session = session = _session(self._path, self._compiled, self._threads)
        return session


def _close_before_forks(model: CompiledModel) -> None:
    """A session's threads do not survive a fork, and it waits for them when it is let go."""
    held = weakref.ref(model)

    def close() -> None:
        if kept := held():
            kept.close()

    os.register_at_fork(before=close)


def _session(path: Path, compiled: Compiled, threads: int) -> ort.InferenceSession:
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != compiled.digest:
        raise ValueError(f"{path} is not the file that was proved")
    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.enable_cpu_mem_arena = False
    options.log_severity_level = _LEVEL_FATAL
    return ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _fill(feed: Feed, plan: Plan) -> Fill:
    """How to make one input of the compiled model."""
    dtype = np.dtype(feed.dtype)
    if plan.tensors:
        return lambda columns, _: np.ascontiguousarray(columns[feed.columns[0]], dtype)
    fill = _matrix(feed, dtype)
    nullable = {column.name for column in plan.columns if column.nulls}
    return _without_nulls(fill) if dtype.kind == "O" and nullable.intersection(feed.columns) else fill


def _matrix(feed: Feed, dtype: np.dtype[Any]) -> Fill:
    """Columns side by side."""
    names, width = tuple(feed.columns), len(feed.columns)

    def fill(columns: Mapping[str, Array], count: int) -> Array:
        values = stack(columns, names, dtype)
        if count == 1:
            return values.reshape(1, width)
        return np.ascontiguousarray(values.reshape(width, count).T)

    return fill


def _without_nulls(fill: Fill) -> Fill:
    """ONNX knows no missing text."""

    def filled(columns: Mapping[str, Array], count: int) -> Array:
        values = fill(columns, count)
        texts = values.ravel().tolist()
        if None in texts:
            values.reshape(-1)[:] = [MISSING if text is None else text for text in texts]
        return values

    return filled


def _read(result: Result, sources: list[str]) -> Read:
    """How to make one column of the answer."""
    position, dtype, shape = sources.index(result.source), np.dtype(result.dtype), result.shape
    if result.labels is None:
        return lambda outputs, count: outputs[position].astype(dtype, copy=False).reshape(count, *shape)
    labels = np.empty(len(result.labels), dtype)
    labels[:] = result.labels
    return lambda outputs, count: labels.take(outputs[position]).reshape(count, *shape)
