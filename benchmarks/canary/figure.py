"""One measured figure beside its target, and how likely a miss by that much would be by chance.

A target is *met* where the figure is within it. That is no test: a figure whose true value lies exactly at its target
is beyond it half of the time. So every figure also says how likely one as bad or worse is where the truth is at the
target; where that is next to nothing the target is missed, and not by chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import erf, sqrt
from typing import Any

import numpy as np
from scipy.stats import binom

NEVER = 10**9
"""Stands for what a bad candidate cost that was not found, so that no mean can hide it."""
BY_ACCIDENT = 1e-4
"""A miss that is less likely than this by chance is one."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What was measured for one target."""

    target: str
    """Its name, `G1` to `G19`."""
    what: str
    value: float
    error: float
    """Standard error of `value`; 0 where nothing is random."""
    runs: int
    """Replicates."""
    seed: int
    limit: float
    at_least: bool = False
    """The value has to be `limit` or more, not `limit` or less."""
    chance: float = 1.0
    """Of a value as bad or worse, where the truth is at the target."""

    @property
    def met(self) -> bool:
        return self.value >= self.limit if self.at_least else self.value <= self.limit

    @property
    def missed(self) -> bool:
        """By more than chance would have it."""
        return not self.met and self.chance < BY_ACCIDENT

    def told(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "target": self.target,
            "what": self.what,
            "value": _rounded(self.value),
            "standard_error": _rounded(self.error),
            "replicates": self.runs,
            "seed": self.seed,
            "limit": f"{'at least' if self.at_least else 'at most'} {self.limit:g}",
            "met": self.met,
            "missed_beyond_chance": self.missed,
        }


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def share(target: str, what: str, hits: int, runs: int, seed: int, limit: float, truth: float | None = None) -> Figure:
    """How many of `runs` went wrong. `truth` is what is promised, where `limit` has room for chance in it already."""
    value, promised = hits / runs, limit if truth is None else truth
    error = sqrt(max(value, 1 / runs) * (1 - value) / runs)
    chance = float(binom.sf(hits - 1, runs, promised))
    return Figure(target, what, value, error, runs, seed, limit, chance=chance)


def share_at_least(target: str, what: str, hits: int, runs: int, seed: int, limit: float) -> Figure:
    """How many of `runs` went right."""
    value = hits / runs
    error = sqrt(max(1 - value, 1 / runs) * value / runs)
    chance = float(binom.cdf(hits, runs, limit))
    return Figure(target, what, value, error, runs, seed, limit, at_least=True, chance=chance)


def mean(target: str, what: str, values: Sequence[float], seed: int, limit: float) -> Figure:
    value, error = float(np.mean(values)), float(np.std(values, ddof=1) / sqrt(len(values)))
    return Figure(target, what, value, error, len(values), seed, limit, chance=_above(value, error, limit))


def percentile95(target: str, what: str, values: Sequence[float], seed: int, limit: float) -> Figure:
    """Its standard error is half the distance of the order statistics one standard deviation away on each side."""
    runs = len(values)
    value = float(np.percentile(values, 95, method="higher"))
    away = sqrt(0.05 * 0.95 / runs)
    low, high = np.percentile(values, [100 * max(0.95 - away, 0.0), 100 * min(0.95 + away, 1.0)])
    beyond = sum(one > limit for one in values)
    chance = float(binom.sf(beyond - 1, runs, 0.05))
    return Figure(target, what, value, float(high - low) / 2, runs, seed, limit, chance=chance)


def ratio(target: str, what: str, values: Sequence[float], others: Sequence[float], seed: int, limit: float) -> Figure:
    """Of two means; of the same streams where there are as many of both."""
    a, b = np.asarray(values, dtype=float), np.asarray(others, dtype=float)
    value = float(a.mean() / b.mean())
    relative = (a.std(ddof=1) / a.mean()) ** 2 / len(a) + (b.std(ddof=1) / b.mean()) ** 2 / len(b)
    if len(a) == len(b):
        relative -= 2 * float(np.cov(a, b)[0, 1]) / (a.mean() * b.mean()) / len(a)
    error = value * sqrt(max(float(relative), 0.0))
    return Figure(target, what, value, error, len(a), seed, limit, chance=_above(value, error, limit))


def exact(target: str, what: str, value: float, runs: int, seed: int, limit: float) -> Figure:
    """Nothing about it is random; or, as with a time, what is random has little to do with the target."""
    return Figure(target, what, value, 0.0, runs, seed, limit, chance=1.0 if value <= limit else 0.0)


def _above(value: float, error: float, limit: float) -> float:
    if not error:
        return 1.0 if value <= limit else 0.0
    return (1 - erf((value - limit) / error / sqrt(2))) / 2
