"""What a team wants of the replay gate: logged requests, answered by a candidate before anybody's own.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True, slots=True)
class ReplayGatePolicy:
    """How many logged requests a candidate has to answer, and what is tolerated of its answers."""

    requests: int = 500
    """The last so many requests of the stable version in the prediction log; 0: nothing is replayed."""
    max_seconds: float = 60.0
    """No more are sent after this long."""
    request_seconds: float = 10.0
    """A request that takes longer has failed."""
    most_failed: int = 0
    """So many requests may fail on the candidate alone, each time that it is asked."""
    latency_tolerance: float = 1.0
    """The candidate may be slower than the stable version by this (1: twice as slow)."""
    most_changed: float | None = None
    """Share of the decisions that may be other ones; none: it is only reported."""
    rows: int = 5
    """So many requests that failed are kept in the evidence."""
    values: bool = True
    """Whether they are kept with their values, and with the words of the error, or by id alone."""

    def __post_init__(self) -> None:
        if not 0 <= self.latency_tolerance < inf:
            raise ValueError(f"latency_tolerance must be a number from 0 on, not {self.latency_tolerance}")
        if self.most_changed is not None and not 0 < self.most_changed < 1:
            raise ValueError(f"most_changed must be above 0 and below 1, not {self.most_changed}")
