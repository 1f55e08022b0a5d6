"""The loaded model in its process: what it is given, and what is made of its answers and its failures.

What travels as arrays reaches the model as MLflow would have parsed it; everything else is parsed by MLflow's own
scoring code. Two differences from it, both because a canary has to see them: where the model itself raises, and where
it answers NaN or an infinity, the status is 500, not 400 and 200. Traces go to the log, never to the caller.
"""

from __future__ import annotations

import logging
import time
import traceback
from collections.abc import Callable, Hashable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import scoring_server

from serving.runtime.batching import finite
from serving.runtime.devices import device_of, load
from serving.runtime.exchange import (
    Array,
    BadRequestError,
    MediaTypeError,
    ModelError,
    Predictions,
    Raw,
    Rows,
    ServingError,
    Written,
)
from serving.runtime.frames import Done, Job, Setup
from serving.runtime.native_answers import from_response, predictions_of, written
from serving.runtime.native_call import ModelCalls, layout_of
from serving.stacked_columns import StackedColumns

_logger = logging.getLogger(__name__)

_EXAMPLE = "serving_input_example.json"
"""Where MLflow keeps a request made of the model's input example."""

_HERE = ("", "cpu")
"""Devices of models whose rows go nowhere."""

_LONG_SECONDS = 1.0
"""A warm-up prediction that takes longer is the last: batches that large will hardly be made."""

_LONGEST_MESSAGE = 2000
"""Characters of an exception's text that a caller is told."""


class NativeModel:
    """One loaded model; predicts what a job asks for."""

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        model = load(Path(setup.folder), setup.cores, setup.device, setup.number)
        self.device = device_of(model)
        """Where it computes, such as ``cuda:0``; empty where that cannot be told."""
        self._calls = ModelCalls(model)
        self._placed = _writable if self.device in _HERE else _staged()
        self._schema = self._calls.model.metadata.get_input_schema()  # type: ignore[no-untyped-call]
        self._traced: set[tuple[str, str, int]] = set()

    def warm_up(self) -> int:
        """Predict on the model's input example; `RuntimeError` where the model cannot.

        Returns how many rows the largest batch may have where the model computes.
        """
        example = Path(self._setup.folder) / _EXAMPLE
        if not example.exists():
            _logger.info("the model has no input example: ready without a warm-up prediction")
            return self._setup.rows
        done = self.do(Job(0, Raw(example.read_bytes(), "application/json"), 1))
        if isinstance(done.answer, ServingError) and done.answer.status >= 500:
            raise RuntimeError(f"the model fails on its own input example: {done.answer}")
        if isinstance(done.answer, ServingError):
            _logger.warning("the model's own input example is refused: %s", done.answer)
            return self._setup.rows
        if self.device in _HERE or self._setup.example is None:
            return self._setup.rows
        return self._grow(self._setup.example)

    def _grow(self, example: Rows) -> int:
        """Predict on ever more rows: a GPU loads code for a size of batch when it first meets it, and may be full."""
        rows = 1
        while rows < self._setup.rows:
            size = min(2 * rows, self._setup.rows)
            done = self.do(Job(0, _repeated(example, size), 2))
            if isinstance(done.answer, ServingError):
                _logger.warning("a batch has %d rows at most on %s: %s", rows, self.device, done.answer)
                return rows
            if done.seconds > _LONG_SECONDS:
                break
            rows = size
        return self._setup.rows

    def do(self, job: Job) -> Done:
        began = time.perf_counter()
        try:
            answer = self._answer(job)
        except ServingError as error:
            return Done(job.number, error, time.perf_counter() - began)
        whole = finite(answer) if isinstance(answer, Predictions) else True
        return Done(job.number, answer, time.perf_counter() - began, whole)

    def _answer(self, job: Job) -> Predictions | Written:
        call = _Call(self._calls)
        try:
            if isinstance(job.ask, Raw):
                return self._raw(job.ask, call)
            return self._rows(job.ask, job.requests, call)
        except MlflowException as error:
            raise self._refusal(error, call, job.requests) from error
        except ServingError:
            raise
        except Exception as error:  # a model's own code may raise anything
            raise self._failure(error, job.requests) from error

    def _rows(self, rows: Rows, requests: int, call: _Call) -> Predictions | Written:
        call.layout = layout_of(rows.columns)
        answer = call.predict(self._given(rows), rows.params)
        predictions = predictions_of(answer)
        if predictions is None or (requests == 1 and predictions.count != rows.count):
            return written(answer, self._given(rows), self._setup.log)
        return predictions

    def _given(self, rows: Rows) -> Any:
        """What MLflow would have parsed such a request to."""
        if not self._setup.tensors:
            return _frame(rows.columns)
        tensors = {name: self._placed(name, array) for name, array in rows.columns.items()}
        return tensors[""] if self._setup.tensors == ("",) else tensors

    def _raw(self, raw: Raw, call: _Call) -> Written:
        result = scoring_server.invocations(raw.body, raw.content_type, call, self._schema)  # type: ignore[no-untyped-call]
        if result.status == 415:
            raise MediaTypeError(result.response)
        return from_response(result.response, call.given, self._setup.log)

    def _refusal(self, error: MlflowException, call: _Call, requests: int) -> ServingError:
        """A request that MLflow's code refused, or the model by one of MLflow's errors that blames the request."""
        if call.raised is not None and not isinstance(call.raised, MlflowException):
            return self._failure(call.raised, requests)
        if error.get_http_status_code() >= 500:  # type: ignore[no-untyped-call]
            return self._failure(error, requests)
        refusal = BadRequestError(error.message)
        refusal.status, refusal.code = error.get_http_status_code(), error.error_code  # type: ignore[no-untyped-call]
        return refusal

    def _failure(self, error: Exception, requests: int) -> ModelError:
        """What a caller is told of an exception of the model; its trace is logged once for each place that raises."""
        if requests == 1:
            self._log(error)
        text = str(error)[:_LONGEST_MESSAGE]
        return ModelError(f"The model raised {type(error).__name__}{': ' if text else ''}{text}")

    def _log(self, error: Exception) -> None:
        last = traceback.extract_tb(error.__traceback__)[-1]
        place = (type(error).__name__, last.filename, last.lineno or 0)
        known = place in self._traced
        self._traced.add(place)
        _logger.error("the model raised %r", error, exc_info=None if known else error)


def _writable(_name: str, array: Array) -> Array:
    return np.require(array, requirements="W")


def _staged() -> Callable[[str, Array], Array]:
    from serving.runtime.staging import Staging  # which imports PyTorch

    return Staging().placed


def _repeated(example: Rows, size: int) -> Rows:
    """So many rows, of the example over and over."""
    rows = np.arange(size) % example.count
    return Rows({name: array[rows] for name, array in example.columns.items()}, size, example.params)


def _frame(columns: Mapping[str, Array]) -> pd.DataFrame:
    """A frame with memory of its own, as pandas makes one of named columns; faster where all are numbers of a type."""
    if isinstance(columns, StackedColumns) and columns.stacking.groups == (columns.stacking.names,):
        (array,) = columns.arrays
        if array.dtype.kind in "biuf":
            return pd.DataFrame(array.T, columns=_index(columns.stacking.names).view(), copy=True)
    return pd.DataFrame(dict(columns))


@lru_cache(maxsize=64)
def _index(names: tuple[str, ...]) -> pd.Index:
    return pd.Index(names)


class _Call:
    """Stands before the model for one request, and remembers what went in and came out."""

    def __init__(self, calls: ModelCalls) -> None:
        self.metadata = calls.model.metadata
        self.given: Any = None
        self.raised: Exception | None = None
        self.layout: Hashable = None
        """Of a request that was parsed here; None where MLflow's own code parsed it."""
        self._calls = calls

    def predict(self, data: Any, params: Any = None) -> Any:
        self.given = data
        try:
            if self.layout is None:
                return self._calls.model.predict(data, params=params)
            return self._calls.predict(data, self.layout, params)
        except Exception as error:
            self.raised = error
            raise
