"""How the stable revision usually does, as far as plans need it.

Pure. A candidate that is just as good does the same; what it needs to be promoted follows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Arm, Seen
from monitoring.bursts import spread_of
from monitoring.latency_evidence import ENOUGH
from monitoring.ruler import LEAST, History, Ruler


@dataclass(frozen=True, slots=True)
class Usual:
    """Rates of the stable revision's requests."""

    errors: float
    refused: float = 0.0
    slow: tuple[tuple[float, float], ...] = ()
    """Where a candidate has to be fast enough: how many requests are beyond, and how many would be if they were those
    of a candidate, whose latencies are less what is tolerated. Empty where nothing is known."""
    bursts: float = 1.0
    """How many times as much as by chance failures vary; see `monitoring.bursts`."""


def usual(policy: AnalysisPolicy, seen: Sequence[Seen], otherwise: Usual) -> Usual:
    """By the last requests that were `seen`; `otherwise` where they are too few."""
    if len(seen) < LEAST:
        return otherwise
    rates = (sum(one.error for one in seen) / len(seen), sum(one.refused for one in seen) / len(seen))
    ruler = Ruler.from_history(History((one.latency_ms, None) for one in seen), policy.scale)
    slow = () if ruler is None else tuple(_beyond(ruler, cut, seen) for cut in ENOUGH)
    return Usual(*rates, slow=slow, bursts=spread_of(seen).ratio)


def _beyond(ruler: Ruler, cut: int, seen: Sequence[Seen]) -> tuple[float, float]:
    passed = [[ruler.score(arm, one.latency_ms)[2] > cut for one in seen] for arm in Arm]
    return sum(passed[0]) / len(seen), sum(passed[1]) / len(seen)
