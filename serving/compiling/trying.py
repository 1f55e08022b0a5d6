"""Predictions that may fail and must not take long: how a model is probed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

from serving.compiling.rows import Native, take
from serving.runtime.batching import finite
from serving.runtime.exchange import Predictions, Rows

WAITING = 4
"""So many times as long as it may take, a trial goes on where the process was kept from working, or the model waits."""


class TimeIsUpError(Exception):
    """The rest is not tried."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Tries one model for so long as this process works at it.

    A machine that is busy with other things makes no model slow: what is found out of a model, and whether it is
    compiled, must not depend on what else runs while it is looked at.
    """

    native: Native
    seconds: float
    """A prediction that has begun is waited for."""
    _began: tuple[float, float] = field(default_factory=lambda: (time.monotonic(), time.process_time()))

    def takes(self, rows: Rows) -> bool:
        return self.answer(rows) is not None

    def answer(self, rows: Rows) -> Predictions | None:
        """None where the model raises, or answers what the server would not send."""
        passed, worked = time.monotonic() - self._began[0], time.process_time() - self._began[1]
        if min(passed, worked) > self.seconds or passed > WAITING * self.seconds:
            raise TimeIsUpError
        try:
            answer = self.native.predict(rows)
        except Exception:  # noqa: BLE001 - whatever a model's own code raises is a refusal
            return None
        return answer if finite(answer) else None


def singles(rows: Rows) -> Iterator[Rows]:
    """One row at a time."""
    return (take(rows, slice(position, position + 1)) for position in range(rows.count))
