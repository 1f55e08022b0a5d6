"""Requests of both arms folded into blocks of concurrent requests.

Pure. A block holds requests that were assigned close together in time, so that both arms met the same
conditions; it is closed by count or time only, never by outcomes, and settled once every request in it is
decided. Only blocks are compared, never sums over blocks: that is what keeps the analysis right while
traffic, error rates and weights change.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Arm(StrEnum):
    """Which revision a request was assigned to."""

    STABLE = "stable"
    """The revision that holds the traffic."""
    CANDIDATE = "candidate"
    """The revision being tried."""


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Requests of one arm in one block."""

    requests: int = 0
    errors: int = 0
    """5xx, time-out, reset or refused connection."""


@dataclass(frozen=True, slots=True)
class Block:
    """A settled block of one rollout. `id` counts from 1 within the rollout and never has gaps."""

    id: int
    rollout: str
    step: int
    opened: float
    """When its first request was assigned, in seconds since the epoch."""
    closed: float
    stable: ArmCount
    candidate: ArmCount
