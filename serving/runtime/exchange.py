"""What travels between the parts of the model server: parsed requests, predictions, and the ways to fail.

A request is parsed once, into arrays; predictions are arrays too, whichever path made them. Only what no schema
describes goes to MLflow's own code as it came and comes back as MLflow wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Rows:
    """A request whose values have the types of the plan."""

    columns: Mapping[str, Array]
    """Column or tensor name to array, in the order of the plan; all have `count` as their first dimension. Optional
    columns that the request left out are not there. Missing values are NaN, NaT or None."""
    count: int
    params: Mapping[str, Any] | None = None
    """Only what the request itself set."""


@dataclass(frozen=True, slots=True)
class Raw:
    """A request as it came, to be parsed by MLflow's own code beside the model."""

    body: bytes
    content_type: str


@dataclass(frozen=True, slots=True)
class Predictions:
    """Answers as arrays."""

    columns: Mapping[str, Array]
    """Output name to array, one row each; the only name is empty for an answer that is an array and no frame."""
    count: int
    frame: bool = False


@dataclass(frozen=True, slots=True)
class Written:
    """An answer that only MLflow's own encoder knows how to write."""

    predictions: bytes
    """The JSON value of ``predictions``."""
    inputs: Any = None
    """For the prediction log: a mapping of column name to list, or whatever the model was given."""
    outputs: Any = None
    """For the prediction log."""
    whole: bool = False
    """Whether `predictions` is the whole body of the answer: MLflow answers chat requests without ``predictions``."""


class ServingError(Exception):
    """The request is not answered with predictions."""

    status = 500
    """Of HTTP."""
    code = "INTERNAL_ERROR"
    """As MLflow's scoring server names it."""
    cause = "model"
    """In the metrics."""
    retry_after: float | None = None
    """Seconds after which trying again makes sense."""


class BadRequestError(ServingError):
    """The request is wrong: the message names the column, the row and what was expected."""

    status, code, cause = 400, "BAD_REQUEST", "request"


class TooLargeError(ServingError):
    """The body is over the limit."""

    status, code, cause = 413, "BAD_REQUEST", "too_large"


class MediaTypeError(ServingError):
    """The content type is none that the protocol knows."""

    status, code, cause = 415, "BAD_REQUEST", "media_type"


class ModelError(ServingError):
    """The model raised, or answered what it must not: NaN, an infinity, the wrong number of rows."""


class ModelDiedError(ServingError):
    """The process of the model ended, or was ended, during this prediction."""

    cause = "died"


class NotReadyError(ServingError):
    """No model is loaded at the moment."""

    status, code, cause, retry_after = 503, "TEMPORARILY_UNAVAILABLE", "not_ready", 1.0


class QueueFullError(ServingError):
    """More requests wait than may."""

    status, code, cause = 503, "TEMPORARILY_UNAVAILABLE", "queue_full"

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class DeadlineError(ServingError):
    """The request's time was over before there was a prediction."""

    status, code, cause = 504, "DEADLINE_EXCEEDED", "deadline"


class Stage(str, Enum):  # noqa: UP042
    """Where the time of a request goes. (A model's own Python may be 3.10, which has no StrEnum.)"""

    PARSE = "parse"
    """Body to arrays."""
    QUEUE = "queue"
    """Waiting for the model."""
    PREDICT = "predict"
    """The model."""
    WRITE = "write"
    """Arrays to body."""


class Event(str, Enum):  # noqa: UP042
    """What is counted besides requests and time."""

    WORKER_REPLACED = "worker_replaced"
    """A native model process ended and another one took its place."""
    PARITY_CHECKED = "parity_checked"
    """An answer of the compiled model was computed natively as well."""
    PARITY_MISMATCH = "parity_mismatch"
    """And was not the same."""
    NATIVE_FALLBACK = "native_fallback"
    """A request went to the native path although there is a compiled model."""
    LOG_DROPPED = "log_dropped"
    """A row was not logged."""
    LOG_REPLACED = "log_replaced"
    """The process that writes the prediction log ended and another one took its place."""


class Meter(Protocol):
    """Where the server's parts report figures. Called on the event loop; costs well under a microsecond."""

    def stage(self, stage: Stage, seconds: float) -> None: ...

    def batch(self, requests: int, rows: int) -> None:
        """The model was called once, for so many requests with so many rows together."""

    def queued(self, requests: int) -> None:
        """So many requests wait now."""

    def event(self, event: Event, count: int = 1) -> None: ...


@dataclass(frozen=True, slots=True)
class Health:
    """Whether predictions can be made now."""

    ready: bool
    trouble: str = ""
    """Why predictions are not, or not as well as they should be; empty where all is well."""
    device: str = ""
    """Where the model computes, such as ``cuda:0``; empty where that cannot be told."""


class Engine(Protocol):
    """Makes predictions. One event loop calls it."""

    async def start(self) -> None:
        """Load and warm up; returns once `predict` works. `RuntimeError` with the reason where it never will."""

    async def predict(self, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        """Predict until `deadline` (the event loop's time, seconds), or raise a `ServingError`.

        A caller that is cancelled is taken out of the queue.
        """

    def health(self) -> Health: ...

    async def close(self) -> None:
        """End what was started, and leave no process behind. Nothing is in flight any more."""
