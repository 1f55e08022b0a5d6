"""Requests that both revisions answered: the stable one its client, the candidate nobody.

Pure. In a shadow stage the candidate gets copies of requests. Both answers to one request make a pair, and pairs tell
far more than two arms do: what is odd about a request is odd for both. Pairs come in order of assignment, so what is
known of the first ones never depends on how later ones end. `monitoring.shadow_pairs` makes them.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

from monitoring.blocks import BlockSource


class Answer(NamedTuple):
    """How one revision answered."""

    error: bool
    """5xx, time-out, reset or refused connection."""
    refused: bool
    """4xx."""
    latency_ms: float


class Row(NamedTuple):
    """What both revisions predicted for one row of a request."""

    segment: str
    """The stable revision's decision; empty where its prediction is none."""
    changed: bool | None
    """Whether the candidate decided otherwise; None where there is no decision to compare."""
    difference: float | None
    """By how much the candidate's number is larger; None where one of them is no number."""


class Paired(NamedTuple):
    """One request and both answers to it."""

    stable: Answer
    candidate: Answer
    rows: tuple[Row, ...] = ()
    """Some of its rows, where both predicted."""


@dataclass(frozen=True, slots=True)
class ShadowBlock:
    """Pairs that were settled together. `id` counts from 1 within the rollout and never has gaps."""

    id: int
    rollout: str
    pairs: tuple[Paired, ...]
    """In order of assignment."""
    missing: int = 0
    """Requests among them without a pair: not copied, the copy not sent by Envoy, or a client that left."""


class ShadowSource(BlockSource, Protocol):
    """Where settled pairs come from too. Every method raises `BlockError`."""

    def pairs(self, rollout: str, after: int = 0) -> tuple[ShadowBlock, ...]:
        """The settled pairs of `rollout` in blocks with an id above `after`; asking again gives the same ones."""
        ...
