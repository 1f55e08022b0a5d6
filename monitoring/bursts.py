"""Whether failures come in bursts, as from a replica that stumbles, and what is compared then: windows of time.

Pure. The proof behind the analysis takes the requests of a block to be independent, given what both arms met. A replica
that collects garbage or restarts fails on all of its requests for a while, and on nobody else's: one event, that looks
like many. So the stable revision's failures are counted by windows of some seconds, and from one window to the next
they may differ by no more than chance has it. Neighbouring windows are compared, not all with their mean, because a
rate that rises and falls slowly meets both arms alike and is no burst.

Where they differ by more, a window is one unit of each arm: its score is the mean of the window's requests, which may
depend on each other as they like. What is taken for its evidence is that of all its requests shared by their number,
which is never more than the mean's (the geometric against the arithmetic mean), so what was proved for units holds.
The price is that a window says hardly more than one request did; it is paid only where it has to be.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import sqrt

from monitoring.blocks import ArmCount, Block, Latencies, Seen
from monitoring.eprocess import Pair, Tally

SECONDS = 10.0
"""Length of the windows by which requests before the rollout are counted."""
LEAST = 20
"""Pairs of windows without which nothing is said."""
_SPREADS = 4.0
"""Standard deviations by which the spread may be overestimated by chance; it is looked at after every window."""


@dataclass(frozen=True, slots=True)
class Spread:
    """How much failures differ from one window to the next."""

    pairs: int = 0
    """Neighbouring windows with requests."""
    requests: float = 0
    errors: float = 0
    differences: float = 0.0
    """Squared differences of neighbouring rates, each over 1/n + 1/m of its windows."""
    last: tuple[float, float] | None = None
    """Requests and errors of the last window."""

    def after(self, requests: float, errors: float) -> Spread:
        """With one more window, where it has requests."""
        if not requests:
            return self
        now = replace(
            self, requests=self.requests + requests, errors=self.errors + errors, last=(float(requests), float(errors))
        )
        if self.last is None:
            return now
        n, x = self.last
        difference = (errors / requests - x / n) ** 2 / (1 / requests + 1 / n)
        return replace(now, pairs=self.pairs + 1, differences=self.differences + difference)

    def apart(self) -> Spread:
        """What comes next is no neighbour of what was last."""
        return replace(self, last=None)

    @property
    def ratio(self) -> float:
        """Variance over that of independent failures, less what chance may have added; 1 where nothing is known."""
        share = self.errors / self.requests if self.requests else 0.0
        if self.pairs < LEAST or not 0 < share < 1:
            return 1.0
        found = self.differences / self.pairs / (share * (1 - share))
        return found - _SPREADS * sqrt((3 + self.pairs / self.errors) / self.pairs)


@dataclass(frozen=True, slots=True)
class Bursts:
    """What is known of bursts in a rollout, and the windows that are being put together."""

    spread: Spread = field(default_factory=Spread)
    """Of the stable revision's failures, during the rollout."""
    ratio: float | None = None
    """How much they vary, once that is more than the policy takes for chance."""
    window: Block | None = None
    """Blocks of the present window, as one."""
    timed: Block | None = None
    """The same of blocks with latencies, which come by themselves; only where there are bursts."""

    def told(self, limit: float, ratio: float) -> Bursts:
        """With what was seen of the stable revision; bursts that were found once stay."""
        return replace(self, ratio=ratio) if self.ratio is None and ratio > limit else self

    def after(self, limit: float, seconds: float, block: Block) -> tuple[Bursts, Block | None]:
        """With a block that has outcomes, and the window that it ended."""
        window, over = _grown(self.window, block, seconds)
        if over is None:
            return replace(self, window=window), None
        spread = self.spread.after(over.stable.requests, over.stable.errors)
        return replace(self, window=window, spread=spread).told(limit, spread.ratio), over

    def after_timed(self, seconds: float, block: Block) -> tuple[Bursts, Block | None]:
        """The same with a block that has latencies."""
        timed, over = _grown(self.timed, block, seconds)
        return replace(self, timed=timed), over


def _grown(window: Block | None, block: Block, seconds: float) -> tuple[Block, Block | None]:
    """The window with `block` in it, and the one that was over before it."""
    if window is None:
        return block, None
    if block.step != window.step or block.opened >= window.opened + seconds:
        return block, window
    return _together(window, block), None


def _together(one: Block, other: Block) -> Block:
    latency = None
    if one.latency and other.latency:
        latency = (_sum(one.latency[0], other.latency[0]), _sum(one.latency[1], other.latency[1]))
    arms = (_counted(one.stable, other.stable), _counted(one.candidate, other.candidate))
    return Block(other.id, one.rollout, one.step, one.opened, other.closed, *arms, latency=latency)


def _sum(one: Latencies, other: Latencies) -> Latencies:
    ranks, slow, beyond = (
        tuple(a + b for a, b in zip(*part, strict=True))
        for part in ((one.ranks, other.ranks), (one.slow, other.slow), (one.beyond, other.beyond))
    )
    over = None if one.over is None or other.over is None else one.over + other.over
    return Latencies(ranks, slow, beyond, over)


def _counted(one: ArmCount, other: ArmCount) -> ArmCount:
    return ArmCount(one.requests + other.requests, one.errors + other.errors, one.refused + other.refused)


def as_unit(pair: Pair) -> Pair:
    """All requests of each arm as a single one, whose score is their mean."""
    return Pair(pair.id, _unit(pair.stable), _unit(pair.candidate))


def _unit(arm: Tally) -> Tally:
    if not arm.requests:
        return arm
    return Tally(1, arm.errors / arm.requests, tuple(level / arm.requests for level in arm.levels))


def spread_of(seen: Iterable[Seen]) -> Spread:
    """Of requests before a rollout, by replica and window; those that do not say when they ended say nothing."""
    spread = Spread()
    told = sorted((one.host, int(one.at // SECONDS), one.error) for one in seen if one.at)
    for _, of_host in groupby(told, key=lambda one: one[0]):
        spread = spread.apart()
        for _, window in groupby(of_host, key=lambda one: one[1]):
            errors = [error for _, _, error in window]
            spread = spread.after(len(errors), sum(errors))
    return spread
