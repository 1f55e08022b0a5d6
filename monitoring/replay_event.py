"""One request of a replay, as a line of JSON: what it was assigned to, and what came of it."""

from __future__ import annotations

import math
from typing import Any

import msgspec

from monitoring.blocks import Arm, Seen
from monitoring.entities import digest
from monitoring.filling import Record
from monitoring.ruler import Prediction

Status = int | str | None


class EventError(ValueError):
    """An event that makes no sense; the message names the field."""


class Event(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A request; times in seconds, from any beginning that is the same for all events."""

    id: str | int
    arm: Arm
    t: float
    """When it was assigned; never before the event before it."""
    weight: float = 0.0
    """The candidate's share that was in force, in percent; 0 before the canary."""
    unit: str | int | None = None
    """What the router assigns, where that is no single request: a user, a session."""
    host: str = ""
    """The replica that served it, where that is known."""
    done: float | None = None
    """When it ended; null where it had not."""
    status: Status = None
    """HTTP status, ``timeout`` or ``reset``; null where there was none yet."""
    latency_ms: float | None = None
    loss: float | None = None
    """How bad the answer was, from 0 to 1."""
    prediction: Any = None
    """A number or a string, or a list of them, one per row; or null."""

    def check(self) -> None:
        """`EventError` where values do not fit together."""
        if not math.isfinite(self.t):
            raise EventError("t: must be a number of seconds")
        if not 0 <= self.weight <= 100:
            raise EventError(f"weight: must be a percentage from 0 to 100, not {self.weight:g}")
        if self.done is not None and not self.done >= self.t:
            raise EventError(f"done: must not be before t, {self.t:g}, but is {self.done:g}")
        if isinstance(self.status, str) and self.status not in ("timeout", "reset"):
            raise EventError(f"status: must be an HTTP status, timeout or reset, not {self.status!r}")
        if isinstance(self.status, int) and not 100 <= self.status <= 599:
            raise EventError(f"status: must be an HTTP status from 100 to 599, not {self.status}")
        if self.loss is not None and not 0 <= self.loss <= 1:
            raise EventError(f"loss: must be from 0 to 1, not {self.loss:g}")
        if self.latency_ms is not None and not self.latency_ms >= 0:
            raise EventError(f"latency_ms: must be 0 or more, not {self.latency_ms:g}")

    @property
    def entity(self) -> str:
        """What the router assigned by chance, where that is not the request itself."""
        return "" if self.unit is None else digest("", str(self.unit))

    @property
    def ends(self) -> float | None:
        """When it ended; one that says how but not when did so after its latency, where that is told."""
        if self.done is not None or self.status is None:
            return self.done
        return self.t + (self.latency_ms or 0.0) / 1000.0

    def begun(self, rollout: str, step: int) -> Record:
        """What was known of it when it was assigned."""
        return Record(str(self.id), rollout, step, self.arm, self.t, entity=self.entity)

    def ended(self, rollout: str, step: int) -> Record:
        """What is known of it since it ended."""
        code = self.status if isinstance(self.status, int) else 0
        prediction, broken = predicted(self.prediction)
        return Record(
            str(self.id),
            rollout,
            step,
            self.arm,
            self.t,
            self.ends,
            error=code >= 500 or isinstance(self.status, str) or broken,
            refused=400 <= code < 500,
            latency_ms=self.latency_ms,
            prediction=prediction,
            loss=None if code >= 400 else self.loss,
            entity=self.entity,
        )

    def seen(self, ended: float) -> Seen:
        """What is remembered of it before the canary."""
        record = self.ended("", 0)
        return Seen(record.latency(math.inf), record.prediction, ended, record.error, record.refused, self.host)


def predicted(given: Any) -> tuple[Prediction | None, bool]:
    """The values of a prediction, and whether there is NaN or an infinity among them, which no answer may have."""
    values = given if isinstance(given, list) else [] if given is None else [given]
    for value in values:
        if value is not None and not isinstance(value, str | int | float):
            raise EventError(f"prediction: must be a number, a string, or a list of them, not {type(value).__name__}")
    broken = any(isinstance(value, float) and not math.isfinite(value) for value in values)
    plain = tuple(float(v) if isinstance(v, int) and not isinstance(v, bool) else v for v in values)
    return plain or None, broken
