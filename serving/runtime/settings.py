"""How one model server is set up: by command line what it serves and where, by environment whom it serves and how.

Every name is listed here, so that a target knows what it can say.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from serving.prediction_log_entry import Origin, Privacy


class Batching(str, Enum):  # noqa: UP042
    """Whether rows of several requests are predicted together. (A model's own Python may be 3.10: no StrEnum.)"""

    AUTO = "auto"
    """Where the plan says that answers do not depend on it."""
    ON = "on"
    """Always: whoever sets it knows the model."""
    OFF = "off"
    """Never."""


class AccessLog(str, Enum):  # noqa: UP042
    """Which prediction requests are logged with a line each."""

    OFF = "off"
    """None."""
    ERRORS = "errors"
    """Those answered with 400 and above; not those whose clients went away."""
    ALL = "all"
    """All."""


class LogFormat(str, Enum):  # noqa: UP042
    """What a line of the server's own log looks like."""

    JSON = "json"
    """An object."""
    TEXT = "text"
    """For people."""


class Device(str, Enum):  # noqa: UP042
    """Where a model of PyTorch computes. What other libraries do with a GPU is theirs."""

    AUTO = "auto"
    """A compiled model on the CPU; the model itself on a GPU where there is one."""
    CPU = "cpu"
    """On the CPU."""
    GPU = "gpu"
    """The model itself on a GPU, even where there is a compiled one; where PyTorch sees none, on the CPU, degraded."""


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one model server."""

    model: Path
    """``--model``: the folder that holds ``MLmodel``; or, where the model is fetched, its ``model-manifest.json``."""
    plan: Path
    """``--plan``: the folder that holds ``plan.json``."""
    origin: Origin
    """MODEL_NAME, MODEL_VERSION, REVISION"""
    privacy: Privacy
    """PREDICTION_LOG_DROP and PREDICTION_LOG_HASH (column names with commas between), PREDICTION_LOG_KEY"""
    host: str = "127.0.0.1"
    """``--host``"""
    port: int = 8080
    """``--port``"""
    descriptor: int | None = None
    """``--fd``: a bound socket that was inherited, instead of host and port."""
    native: bool = False
    """``--native``: the model itself answers, even where there is a compiled one."""
    grpc_port: int | None = None
    """``--grpc-port``: where the Open Inference Protocol is spoken over gRPC; None for nowhere."""
    model_cache: str = ""
    """MODEL_CACHE: the folder, shared by the servers of a machine, to which a model is fetched that is not in the
    image; needed for such models only."""
    fetch_tries: int = 10
    """FETCH_TRIES: how often in a row its source is asked for the same bytes in vain, after growing pauses."""
    log: str = ""
    """PREDICTION_LOG: where predictions are logged, a path or URL; empty for nowhere."""
    log_seconds: float = 5.0
    """PREDICTION_LOG_SECONDS: how long a row may wait before it is written."""
    log_sample: float = 1.0
    """PREDICTION_LOG_SAMPLE: the share of requests that are logged."""
    workers: int = 1
    """WORKERS: processes that predict: fronts where the model is compiled, model processes where it is not."""
    threads: int = 1
    """THREADS: predictions at once in each model process; more than 1 only for models that are thread-safe."""
    device: Device = Device.AUTO
    """DEVICE: ``auto``, ``cpu`` or ``gpu``, for models of PyTorch"""
    cores: int = 1
    """CORES: computing threads of each prediction."""
    queue: int = 1000
    """QUEUE: requests that may wait for the model, in each front."""
    batching: Batching = Batching.AUTO
    """BATCHING: ``auto``, ``on`` or ``off``"""
    budget: float = 0.05
    """BATCH_BUDGET: seconds that predicting several requests together may take."""
    predict_timeout: float = 60.0
    """PREDICT_TIMEOUT: seconds after which the process of a stuck prediction is replaced."""
    request_timeout: float = 60.0
    """REQUEST_TIMEOUT: seconds that a request may take; a request may ask for less."""
    worker_memory: int = 0
    """WORKER_MEMORY: resident bytes after which a model process is replaced; 0 for no limit."""
    parity_share: float = 0.001
    """PARITY_SHARE: the share of compiled answers that the model itself computes again, off the hot path; of several
    front processes one does so, and the share is of its own answers."""
    drain: float = 30.0
    """DRAIN: seconds that requests in flight have to finish after SIGTERM."""
    linger: float = 1.0
    """LINGER: seconds after SIGTERM during which new requests are still answered, for callers that do not know yet."""
    body_limit: int = 16 * 1024 * 1024
    """BODY_LIMIT: bytes of the largest request."""
    header_limit: int = 64 * 1024
    """HEADER_LIMIT: bytes of the largest request line with headers."""
    header_seconds: float = 10.0
    """HEADER_SECONDS: how long the headers of a request may take to come."""
    body_seconds: float = 30.0
    """BODY_SECONDS: how long its body may take."""
    write_seconds: float = 30.0
    """WRITE_SECONDS: how long a client may take to read its answer."""
    access_log: AccessLog = AccessLog.ERRORS
    """ACCESS_LOG: ``off``, ``errors`` or ``all``"""
    log_format: LogFormat = LogFormat.JSON
    """LOG_FORMAT: ``json`` or ``text``"""

    @property
    def uncompiled(self) -> bool:
        """Whether the model itself answers, even where there is a compiled one."""
        return self.native or self.device is Device.GPU


_VARIABLES: Mapping[str, tuple[str, Callable[[str], Any]]] = {
    "MODEL_CACHE": ("model_cache", str),
    "FETCH_TRIES": ("fetch_tries", int),
    "PREDICTION_LOG": ("log", str),
    "PREDICTION_LOG_SECONDS": ("log_seconds", float),
    "PREDICTION_LOG_SAMPLE": ("log_sample", float),
    "WORKERS": ("workers", int),
    "THREADS": ("threads", int),
    "DEVICE": ("device", Device),
    "CORES": ("cores", int),
    "QUEUE": ("queue", int),
    "BATCHING": ("batching", Batching),
    "BATCH_BUDGET": ("budget", float),
    "PREDICT_TIMEOUT": ("predict_timeout", float),
    "REQUEST_TIMEOUT": ("request_timeout", float),
    "WORKER_MEMORY": ("worker_memory", int),
    "PARITY_SHARE": ("parity_share", float),
    "DRAIN": ("drain", float),
    "LINGER": ("linger", float),
    "BODY_LIMIT": ("body_limit", int),
    "HEADER_LIMIT": ("header_limit", int),
    "HEADER_SECONDS": ("header_seconds", float),
    "BODY_SECONDS": ("body_seconds", float),
    "WRITE_SECONDS": ("write_seconds", float),
    "ACCESS_LOG": ("access_log", AccessLog),
    "LOG_FORMAT": ("log_format", LogFormat),
}
"""Variable of the environment to field of `Settings` and its type."""

_AT_LEAST = {
    "fetch_tries": 1,
    "workers": 1,
    "threads": 1,
    "cores": 1,
    "queue": 1,
    "body_limit": 1,
    "header_limit": 1024,
}
"""Smaller numbers make no sense; of all others, negative ones do not."""

_SHARES = ("log_sample", "parity_share")


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment; ends the process with usage where they make no sense."""
    defaults = Settings.__dataclass_fields__
    parser = argparse.ArgumentParser(prog="python -m serving.runtime")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--plan", type=Path, required=True)
    parser.add_argument("--host", default=defaults["host"].default)
    parser.add_argument("--port", type=int, default=defaults["port"].default)
    parser.add_argument("--fd", type=int, dest="descriptor")
    parser.add_argument("--native", action="store_true")
    parser.add_argument("--grpc-port", type=int)
    given = parser.parse_args(arguments)
    try:
        return _with_environment(vars(given), environment)
    except ValueError as error:
        parser.error(str(error))


def _with_environment(given: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    get = environment.get
    return Settings(
        **given,
        origin=Origin(get("MODEL_NAME", "model"), int(get("MODEL_VERSION", "0")), get("REVISION", "")),
        privacy=Privacy(
            _names(get("PREDICTION_LOG_DROP", "")),
            _names(get("PREDICTION_LOG_HASH", "")),
            get("PREDICTION_LOG_KEY", "").encode(),
        ),
        **_said(environment),
    )


def _said(environment: Mapping[str, str]) -> dict[str, Any]:
    """The fields of which the environment says something."""
    said = {}
    for variable, (field, kind) in _VARIABLES.items():
        if variable not in environment:
            continue
        try:
            said[field] = _sensible(field, kind(environment[variable]))
        except ValueError as error:
            raise ValueError(f"{variable}: {error}") from error
    return said


def _sensible(field: str, value: Any) -> Any:
    if isinstance(value, (int, float)):
        if not value >= _AT_LEAST.get(field, 0):
            raise ValueError(f"{value} is too small")
        if field in _SHARES and value > 1:
            raise ValueError(f"{value} is no share: 0 to 1")
    return value


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())
