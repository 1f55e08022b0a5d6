"""The product and the rules of others on the very same canaries: twenty requests a second, a weight of 5 %, an hour.

The weight is held, because how a product raises it is another question than how it decides. Ours judges by all its
metrics and may also end a canary by calling it good enough, which ends its cost; the others know errors, and Flagger
and Kayenta latencies as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.canary.requests import canary
from benchmarks.canary.rules import RULES, Seen
from benchmarks.canary.world import Stream, World, drawn

OURS = "mlflow-promote"
NAMES = (OURS, *RULES)
WEIGHT = 5.0
MOST = 20 * 3600 + 600
"""Requests of an hour, and some more, so that the last minute is whole."""
GOOD = {
    "equal": World(),
    "equal, while errors of both rise tenfold": World(rising=10.0),
}
BAD = {
    "errors x5": World(fails=(0.01, 0.05)),
    "dead": World(fails=(0.01, 1.0)),
    "latency x1.5": World(slower=1.5),
}
SEED = 20


@dataclass(frozen=True, slots=True)
class Cost:
    """What one candidate cost until it was taken back, or in the whole hour where it was not."""

    back: bool
    failures: int
    """Of the candidate's requests."""
    requests: int
    """Of the candidate."""
    minutes: float


def costs(world: World, run: int) -> dict[str, Cost]:
    """Of one canary, by rule."""
    stream = drawn(10_000 * SEED + run, world, MOST)
    seen = Seen.of(stream, WEIGHT)
    found = {name: _cost(seen, rule(seen)) for name, rule in RULES.items()}
    return {OURS: _ours(stream), **found}


def _ours(stream: Stream) -> Cost:
    ended = canary(stream, WEIGHT)
    back = ended.verdict == "fail"
    return Cost(back, ended.candidate_failures, ended.candidate_requests, ended.seconds / 60)


def _cost(seen: Seen, until: float | None) -> Cost:
    inside = seen.candidate & (seen.minute < (np.inf if until is None else until))
    minutes = float(seen.minute[-1]) if until is None else until
    return Cost(until is not None, int(seen.failed[inside].sum()), int(inside.sum()), minutes)


def summary(found: Sequence[Mapping[str, Cost]]) -> dict[str, Any]:
    """Means over canaries of one world, and their standard errors, by rule."""
    return {name: _means([costs[name] for costs in found]) for name in NAMES}


def _means(several: Sequence[Cost]) -> dict[str, float]:
    told: dict[str, float] = {"canaries": len(several)}
    columns = {
        "taken_back": [float(one.back) for one in several],
        "failed_requests": [float(one.failures) for one in several],
        "candidate_requests": [float(one.requests) for one in several],
        "minutes": [one.minutes for one in several],
    }
    for name, values in columns.items():
        told[name] = float(f"{np.mean(values):.4g}")
        told[f"{name}_error"] = float(f"{np.std(values, ddof=1) / np.sqrt(len(values)):.2g}")
    return told
