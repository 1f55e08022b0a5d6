"""Log lines as JSON, each with the request and the trace that it belongs to; or as text, for people."""

from __future__ import annotations

import json
import logging
import sys
import time
from contextvars import ContextVar
from typing import Any, NamedTuple

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName", "color_message"}
"""What every record has; the rest was given as `extra`."""


class Request(NamedTuple):
    """What the lines of one request have in common."""

    request_id: str
    traceparent: str | None
    """W3C trace context, as it came."""


request: ContextVar[Request | None] = ContextVar("request", default=None)
"""The request that the running task answers."""


class JsonFormatter(logging.Formatter):
    """A record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        told: dict[str, Any] = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        told |= {name: value for name, value in vars(record).items() if name not in _OWN}
        told |= _of_request(request.get())
        if record.exc_info:
            told["exception"] = self.formatException(record.exc_info)
        return json.dumps(told, default=str, ensure_ascii=False)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(record.created))}.{int(record.msecs):03d}Z"


def configure(as_json: bool) -> None:
    """Every logger of this process writes to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else logging.Formatter(_TEXT))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)


def trace_of(traceparent: str | None) -> tuple[str, str] | None:
    """Trace id and span id of a W3C ``traceparent``; None where it is none."""
    parts = (traceparent or "").split("-")
    if len(parts) < 4 or [len(part) for part in parts[:4]] != [2, 32, 16, 2]:
        return None
    try:
        _, trace, span, _ = (int(part, 16) for part in parts[:4])
    except ValueError:
        return None
    return (f"{trace:032x}", f"{span:016x}") if trace and span else None


def _of_request(told: Request | None) -> dict[str, str]:
    if told is None:
        return {}
    trace = trace_of(told.traceparent)
    ids = {"request_id": told.request_id}
    return ids if trace is None else ids | {"trace_id": trace[0], "span_id": trace[1]}
