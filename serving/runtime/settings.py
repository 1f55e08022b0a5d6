"""How one model server is set up: by command line where it listens, by environment whom it serves.

Every name is listed here, so that a target knows what it can say.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from serving.prediction_log import Origin, Privacy


@dataclass(frozen=True, slots=True)
class Settings:
    """Settings of one model server."""

    model: Path
    """``--model``: the folder that holds ``MLmodel``."""
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
    late: bool = False
    """``--late``: listen only once the model is ready, for servers that share one socket."""
    log: str = ""
    """PREDICTION_LOG: where predictions are logged, a path or URL; empty for nowhere."""
    log_seconds: float = 5.0
    """PREDICTION_LOG_SECONDS: how long a row may wait before it is written."""
    workers: int = 1
    """WORKERS: processes that share the port."""
    drain: float = 30.0
    """DRAIN: seconds that requests in flight have to finish after SIGTERM."""
    linger: float = 1.0
    """LINGER: seconds after SIGTERM during which new requests are still answered, for callers that do not know yet."""
    body_limit: int = 16 * 1024 * 1024
    """BODY_LIMIT: bytes of the largest request."""


def parse(arguments: Sequence[str], environment: Mapping[str, str]) -> Settings:
    """Settings from a command line and an environment; ends the process with usage where they make no sense."""
    parser = argparse.ArgumentParser(prog="python -m serving.runtime")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--host", default=Settings.__dataclass_fields__["host"].default)
    parser.add_argument("--port", type=int, default=Settings.__dataclass_fields__["port"].default)
    parser.add_argument("--fd", type=int)
    parser.add_argument("--late", action="store_true")
    given = parser.parse_args(arguments)
    try:
        return _with_environment(given, environment)
    except ValueError as error:
        parser.error(str(error))


def _with_environment(given: argparse.Namespace, environment: Mapping[str, str]) -> Settings:
    get = environment.get
    return Settings(
        model=given.model,
        host=given.host,
        port=given.port,
        descriptor=given.fd,
        late=given.late,
        origin=Origin(get("MODEL_NAME", "model"), int(get("MODEL_VERSION", "0")), get("REVISION", "")),
        log=get("PREDICTION_LOG", ""),
        log_seconds=float(get("PREDICTION_LOG_SECONDS", "5")),
        privacy=Privacy(
            _names(get("PREDICTION_LOG_DROP", "")),
            _names(get("PREDICTION_LOG_HASH", "")),
            get("PREDICTION_LOG_KEY", "").encode(),
        ),
        workers=int(get("WORKERS", "1")),
        drain=float(get("DRAIN", "30")),
        linger=float(get("LINGER", "1")),
        body_limit=int(get("BODY_LIMIT", str(16 * 1024 * 1024))),
    )


def _names(text: str) -> frozenset[str]:
    return frozenset(name.strip() for name in text.split(",") if name.strip())
