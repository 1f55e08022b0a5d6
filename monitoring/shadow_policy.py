"""What a team wants of a shadow stage.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf


class ShadowMode(StrEnum):
    """When a candidate gets copies of requests."""

    AUTO = "auto"
    """Before a canary that would take longer than `long_canary_seconds` at the present traffic."""
    OFF = "off"
    """Never."""
    BEFORE = "before"
    """Before every canary."""
    INSTEAD = "instead"
    """Instead of a canary, where the copies prove the candidate good enough; else before it."""


@dataclass(frozen=True, slots=True)
class ShadowPolicy:
    """How long a candidate gets copies of requests, and what is tolerated of its answers."""

    mode: ShadowMode = ShadowMode.AUTO
    """`off`, `before` the canary, `instead` of it, or `auto`: before a canary that would take long."""
    requests: int = 500
    """The stage is over after so many requests that both revisions answered."""
    max_seconds: float = 1800.0
    """Or after this long, however few there were."""
    long_canary_seconds: float = 3600.0
    """For `auto`: a canary that takes longer than this at the present traffic is a long one."""
    latency_tolerance: float = 1.0
    """Rollback: the candidate may be slower by this; on shared cores the copy is computed while the request is."""
    most_changed: float | None = None
    """Rollback: share of the decisions that may be other ones; none: it is only reported."""

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"requests must be at least 1, not {self.requests}")
        if not 0 <= self.latency_tolerance < inf:
            raise ValueError(f"latency_tolerance must be a number from 0 on, not {self.latency_tolerance}")
        if self.most_changed is not None and not 0 < self.most_changed < 1:
            raise ValueError(f"most_changed must be above 0 and below 1, not {self.most_changed}")
