"""Evidence about latency: the candidate is slower, or fast enough to be promoted.

Pure. A request is scored against the latencies of the stable revision from before the rollout: by its rank among them,
which sees a shift of everything, and by being beyond their upper quantiles, which sees a longer tail. What is tolerated
was taken off the candidate's latencies before they were scored, so the claims are against the line p1 = p0.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import CUTS, LEVELS, Latencies
from monitoring.bursts import as_unit
from monitoring.eprocess import (
    FAST_ENOUGH,
    GOOD_ENOUGH,
    SLOW,
    SLOWER,
    Claim,
    EProcess,
    Line,
    Pair,
    Tally,
    opened,
    updated,
)
from monitoring.excess import Excess
from monitoring.rate_evidence import summed, unending

TAIL = (1, 2, 3)
"""Positions in `CUTS` whose excess speaks against the candidate,"""
ENOUGH = (0, 2)
"""and those at which it has to be fast enough: the median and the 95th percentile."""
_TOLD = 1 + TAIL.index(CUTS.index(0.95))
"""Position of the 95th percentile in what earlier blocks said."""
_RANKED = unending(Claim(Line(), SLOWER, 0.0))
_BEYOND = unending(Claim(Line(), SLOW, 0.0))


@dataclass(frozen=True, slots=True)
class LatencyEvidence:
    """What is known of latency.

    Every tuple but `enough` has the rank first, then the tail's quantiles, then the policy's limit where it has one.
    """

    slower: tuple[EProcess, ...]
    enough: tuple[EProcess, ...]
    """That the candidate is fast enough, at each of `ENOUGH`."""
    stable: tuple[Tally, ...]
    """What earlier blocks said of the stable revision, for `slower`, then for `enough`."""
    candidate: tuple[Tally, ...]
    excess: Excess
    """Of requests beyond the 95th percentile, as they count against the candidate."""
    units: float = 0
    """Of the candidate, that were compared: requests, or windows of them."""

    @classmethod
    def start(cls, policy: AnalysisPolicy) -> LatencyEvidence:
        slower = (opened(_RANKED), *(opened(_BEYOND) for _ in parts(policy)[1:]))
        enough = tuple(opened(enough_claim(policy, cut)) for cut in ENOUGH)
        none = (Tally(),) * (len(slower) + len(enough))
        return cls(slower, enough, none, none, Excess.start())

    def after(
        self, policy: AnalysisPolicy, number: int, arms: tuple[Latencies, Latencies], *, as_one: bool = False
    ) -> LatencyEvidence:
        """With what block `number` says of both arms, each of which is a single unit where `as_one`."""
        limited = policy.latency_slo_ms is not None
        stable, candidate = (_tallies(arm, limited=limited) for arm in arms)
        pairs = [Pair(number, *now) for now in zip(stable, candidate, strict=True)]
        units = [as_unit(pair) for pair in pairs] if as_one else pairs
        claims = (_RANKED, *(_BEYOND for _ in self.slower[1:]), *(enough_claim(policy, cut) for cut in ENOUGH))
        processes = [
            updated(process, claim, unit, before, Tally(self.units))
            for process, claim, unit, before in zip(
                (*self.slower, *self.enough), claims, units, self.stable, strict=True
            )
        ]
        return LatencyEvidence(
            tuple(processes[: len(self.slower)]),
            tuple(processes[len(self.slower) :]),
            tuple(map(summed, self.stable, stable)),
            tuple(map(summed, self.candidate, candidate)),
            self.excess.after(units[_TOLD], self.stable[_TOLD], Tally(self.units)),
            self.units + units[0].candidate.requests,
        )

    def over(self) -> tuple[Tally, Tally] | None:
        """The same beyond the limit of the policy; None where it has none."""
        limited = len(self.slower) > 1 + len(TAIL)
        return (self.stable[1 + len(TAIL)], self.candidate[1 + len(TAIL)]) if limited else None

    def beyond(self) -> tuple[Tally, Tally]:
        """Requests of both arms beyond the 95th percentile, as they count against the candidate."""
        return self.stable[_TOLD], self.candidate[_TOLD]


def parts(policy: AnalysisPolicy) -> tuple[float, ...]:
    """Of what is staked on latency: half on the rank, the rest on the tail and the limit."""
    tail = len(TAIL) + (policy.latency_slo_ms is not None)
    return (0.5, *(0.5 / tail for _ in range(tail)))


def enough_claim(policy: AnalysisPolicy, cut: int) -> Claim:
    """What has to be proven at one of `ENOUGH` before the candidate may be promoted.

    In the tail some requests take long whatever the revision does, and a longer limit hardly makes them fewer. Without
    room for that, a candidate that is exactly as good could not be told from one at the margin.
    """
    threshold = log(1 / policy.alpha_promote)
    if CUTS[cut] > 0.5:
        return Claim(Line(offset=policy.latency_tail_points), GOOD_ENOUGH, threshold)
    return Claim(Line(), FAST_ENOUGH, threshold)


def _tallies(arm: Latencies, *, limited: bool) -> tuple[Tally, ...]:
    requests = sum(arm.ranks)
    score = sum(n * (position + 0.5) for position, n in enumerate(arm.ranks)) / LEVELS
    return (
        Tally(requests, score, arm.ranks),
        *(Tally(requests, arm.slow[cut]) for cut in TAIL),
        *([_over(arm, requests)] if limited else []),
        *(Tally(requests, arm.beyond[cut]) for cut in ENOUGH),
    )


def _over(arm: Latencies, requests: float) -> Tally:
    """A block that was folded without the limit says nothing."""
    return Tally() if arm.over is None else Tally(requests, arm.over)
