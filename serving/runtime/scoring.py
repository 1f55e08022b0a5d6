"""Predictions by MLflow's own scoring code, so that answers and errors are those of ``mlflow models serve``.

Two differences, both because a canary has to see them: where the model itself raises, and where it answers
NaN or an infinity, the status is 500, not 400 and 200. Stack traces go to the log, never to the caller.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from mlflow.exceptions import MlflowException
from mlflow.pyfunc import PyFuncModel, load_model, scoring_server

_logger = logging.getLogger(__name__)

_EXAMPLE = "serving_input_example.json"
"""Where MLflow keeps a request made of the model's input example."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a request is answered with, and what the prediction log is told where there was a prediction."""

    status: int
    body: bytes
    media_type: str = "application/json"
    inputs: Any = None
    outputs: Any = None


class Scorer:
    """One loaded model."""

    def __init__(self, folder: Path) -> None:
        self.model: PyFuncModel = load_model(str(folder))
        self.schema = self.model.metadata.get_input_schema()  # type: ignore[no-untyped-call]
        self._folder = folder

    def warm_up(self) -> None:
        """Predict on the model's input example; `RuntimeError` where the model cannot."""
        example = self._folder / _EXAMPLE
        if not example.exists():
            _logger.info("the model has no input example: ready without a warm-up prediction")
            return
        answer = self.score(example.read_bytes(), "application/json")
        if answer.status >= 500:
            raise RuntimeError(f"the model fails on its own input example: {answer.body.decode()}")
        if answer.status >= 400:
            _logger.warning("the model's own input example is refused: %s", answer.body.decode())

    def score(self, body: bytes, content_type: str) -> Answer:
        """Answer one request of MLflow's scoring protocol."""
        call = Call(self.model)
        try:
            result = scoring_server.invocations(body, content_type, call, self.schema)  # type: ignore[no-untyped-call]
        except MlflowException as error:
            return refusal(error, call)
        if not finite(call.outputs):
            return failure(500, "INTERNAL_ERROR", "The model answered NaN or an infinity.")
        return Answer(result.status, result.response.encode(), result.mimetype, call.inputs, call.outputs)


class Call:
    """Stands before the model for one request, and remembers what went in and came out."""

    def __init__(self, model: PyFuncModel) -> None:
        self.metadata = model.metadata
        self.inputs: Any = None
        self.outputs: Any = None
        self.began = False
        self._model = model

    def predict(self, data: Any, params: Any = None) -> Any:
        self.began = True
        self.inputs = data.copy() if hasattr(data, "copy") else data
        self.outputs = self._model.predict(data, params=params)
        return self.outputs


def refusal(error: MlflowException, call: Call) -> Answer:
    """The answer to a request that raised: its own fault, or that of the model."""
    trace = error.json_kwargs.get("stack_trace")
    if call.began and trace:
        _logger.error("the model raised:\n%s", trace)
        return failure(500, "INTERNAL_ERROR", error.message)
    told = {key: value for key, value in json.loads(error.serialize_as_json()).items() if key != "stack_trace"}  # type: ignore[no-untyped-call]
    return Answer(error.get_http_status_code(), json.dumps(told).encode())  # type: ignore[no-untyped-call]


def failure(status: int, code: str, message: str) -> Answer:
    """An error as MLflow's scoring server writes it."""
    return Answer(status, json.dumps({"error_code": code, "message": message}).encode())


def finite(value: Any) -> bool:
    """Whether there is no NaN and no infinity among a model's answers; missing values of other kinds are fine."""
    if hasattr(value, "select_dtypes"):
        return bool(np.isfinite(value.select_dtypes("floating").to_numpy()).all())
    if isinstance(value, Mapping):
        return all(finite(part) for part in value.values())
    if isinstance(value, list | tuple):
        return all(finite(part) for part in value)
    if isinstance(value, float):
        return math.isfinite(value)
    kind = getattr(getattr(value, "dtype", None), "kind", "")
    return kind not in ("f", "c") or bool(np.isfinite(np.asarray(value)).all())
