"""How the evidence came about, kept for pictures: some sixty moments of a rollout, however long it was.

Pure. Once there are too many, every second one goes and only every second one comes, so the moments stay evenly spread
over the blocks and what is kept depends on the blocks alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

MOST = 48
"""Moments that are kept, before every second one goes."""
METRICS = ("errors", "refusals", "latency", "predictions", "loss", "labels")
"""Order in which a moment has its metrics."""


@dataclass(frozen=True, slots=True)
class Point:
    """One moment. Evidence is told as log evidence over log threshold: 1 is proven, 0 is none."""

    requests: int
    """Of the candidate, with a known outcome."""
    together: float
    """That the candidate is worse, by all metrics together."""
    worse: tuple[float, ...]
    """The same by each of `METRICS` alone."""
    enough: tuple[float | None, ...]
    """That it is good enough for all traffic, by each of `METRICS`; None where there is no such evidence."""

    @classmethod
    def of(cls, requests: int, together: float, worse: Mapping[str, float], enough: Mapping[str, float]) -> Point:
        return cls(
            requests,
            round(together, 3),
            tuple(round(worse.get(metric, 0.0), 3) for metric in METRICS),
            tuple(round(enough[metric], 3) if metric in enough else None for metric in METRICS),
        )


@dataclass(frozen=True, slots=True)
class Trail:
    """The moments that are kept, and the latest one."""

    kept: tuple[Point, ...] = ()
    latest: Point | None = None
    every: int = 1
    """Blocks from one kept moment to the next."""
    left: int = 0
    """Blocks until the next one is kept."""

    def after(self, point: Point, *, last: bool) -> Trail:
        """With one more moment; the `last` one of a rollout is kept whatever comes."""
        if self.left and not last:
            return Trail(self.kept, point, self.every, self.left - 1)
        kept = (*self.kept, point)
        if len(kept) <= MOST:
            return Trail(kept, point, self.every, self.every - 1)
        return Trail(kept[::2], point, 2 * self.every, 2 * self.every - 1)

    def points(self) -> tuple[Point, ...]:
        """Every moment that is known, in order."""
        newest = () if self.latest is None or self.latest in self.kept[-1:] else (self.latest,)
        return (*self.kept, *newest)
