"""Predictions that may fail and must not take long: how a model is probed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from serving.compiling.rows import Native, take
from serving.runtime.batching import finite
from serving.runtime.exchange import Predictions, Rows


class TimeIsUpError(Exception):
    """The rest is not tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Tries one model until a time."""

    native: Native
    end: float
    """Of `time.monotonic`. A prediction that has begun is waited for."""

    def takes(self, rows: Rows) -> bool:
        return self.answer(rows) is not None

    def answer(self, rows: Rows) -> Predictions | None:
        """None where the model raises, or answers what the server would not send."""
        if time.monotonic() > self.end:
            raise TimeIsUpError
        try:
            answer = self.native.predict(rows)
        except Exception:  # noqa: BLE001 - whatever a model's own code raises is a refusal
            return None
        return answer if finite(answer) else None


def singles(rows: Rows) -> Iterator[Rows]:
    """One row at a time."""
    return (take(rows, slice(position, position + 1)) for position in range(rows.count))
