"""Blocks of concurrent requests of both arms, and where they come from.

Pure. A block holds requests that were assigned close together in time, so that both arms met the same
conditions; it is closed by count or time only, never by outcomes, and settled once every request in it is
decided. Only blocks are compared, never sums over blocks: that is what keeps the analysis right while
traffic, error rates and weights change. `monitoring.folder` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple, Protocol

from monitoring.label_policy import LabelPolicy


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
    refused: int = 0
    """4xx: the revision did not take the request. Clients ask both arms alike, so it compares as errors do."""


LEVELS = 32
"""Levels of the rank of a latency among those of the stable revision's reference, from fastest to slowest."""
CUTS = (0.50, 0.90, 0.95, 0.99)
"""Quantiles of the reference beyond which a request counts as slow."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """How slow the requests of one arm were in one block, against the reference of the rollout."""

    ranks: tuple[int, ...]
    """Requests per level; the candidate's latencies were divided by 1 + `Scale.latency_tolerance` before."""
    slow: tuple[int, ...]
    """Requests beyond each of `CUTS`, after the same division."""
    beyond: tuple[int, ...]
    """Requests beyond each of `CUTS`, the candidate's latencies divided by 1 + `Scale.latency_margin` instead."""
    over: int | None = None
    """Requests beyond `Scale.latency_slo_ms`, after the same division as `slow`; None where there is none."""


@dataclass(frozen=True, slots=True)
class Losses:
    """How bad the answers of one arm were in one block, by their own word."""

    requests: int = 0
    """That said it."""
    total: float = 0.0
    """Sum of what they said, from 0 to 1 each."""


@dataclass(frozen=True, slots=True)
class Familiar:
    """Entities of one arm that were counted before and answered well, and have asked again in the last minute."""

    entities: int = 0
    failing: int = 0
    """Whose last request failed or was refused."""


Shares = tuple[float, ...]
"""What one arm predicted in one block: its requests per category of the reference, a request of many rows in parts."""


@dataclass(frozen=True, slots=True)
class Block:
    """A settled block of one rollout. `id` counts from 1 within the rollout and never has gaps."""

    id: int
    rollout: str
    step: int
    opened: float
    """When its first request was assigned, in seconds since the epoch."""
    closed: float
    """When its last request was assigned."""
    stable: ArmCount
    candidate: ArmCount
    latency: tuple[Latencies, Latencies] | None = None
    """Of the stable revision and the candidate; None where the block says nothing of latency."""
    predictions: tuple[Shares, Shares] | None = None
    """Of the stable revision and the candidate; None where the block says nothing of predictions."""
    losses: tuple[Losses, Losses] | None = None
    """Of the stable revision and the candidate; None where no answer said anything."""
    bursts: float | None = None
    """How many times as much as by chance the stable revision's failures varied before the rollout; said once, where it
    is more than that, by a block without requests."""
    familiar: tuple[Familiar, Familiar] | None = None
    """What becomes of entities that do not count any more, on the stable revision and on the candidate; said now and
    then, by a block without requests."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How latencies are scored; part of what is frozen when a rollout begins."""

    latency_tolerance: float = 0.10
    """The candidate may be slower by this before it counts against it."""
    latency_margin: float = 0.25
    """And by this before it counts against its promotion."""
    latency_slack_ms: float = 0.0
    """Milliseconds that nobody notices: the candidate may be slower by these besides."""
    latency_slo_ms: float | None = None
    """Milliseconds that a request should take at most."""


class Seen(NamedTuple):
    """One of the last requests of a stable revision, short enough to be kept by the thousand."""

    latency_ms: float
    prediction: tuple[str | float | bool | None, ...] | None = None
    at: float = 0.0
    """When it ended, in seconds since the epoch; 0 where that was not kept."""
    error: bool = False
    refused: bool = False
    host: str = ""
    """The replica that served it."""


class BlockError(Exception):
    """Blocks could not be read or kept; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class BlockSource(Protocol):
    """Where settled blocks come from. Every method raises `BlockError`."""

    def prepare(self, rollout: str, model: str, scale: Scale, labels: LabelPolicy = LabelPolicy()) -> None:
        """Freeze the reference of `rollout` from what the stable revision did so far; later calls do nothing.

        Its answers wait for labels as `labels` says.
        """
        ...

    def blocks(self, rollout: str, after: int = 0) -> tuple[Block, ...]:
        """The settled blocks of `rollout` with an id above `after`, in order; asking again gives the same ones."""
        ...

    def rate(self, model: str) -> float | None:
        """Scoring requests per second over the last minute; None where that is not known."""
        ...

    def seen(self, model: str) -> tuple[Seen, ...]:
        """Some of the last requests of the model's stable revision, in the order in which they ended."""
        ...

    def forget(self, rollout: str) -> None:
        """Drop everything about `rollout`, also what is still to come; an unknown one is fine."""
        ...
