"""Evidence about two error rates that may be read after every block, as often as one likes.

Pure. The one primitive under every verdict: an e-process, the capital of a gambler who bets against a
hypothesis. Where the hypothesis holds, no strategy multiplies the capital by 1/alpha, at any time, with more
probability than alpha (Ville); so a capital that did is evidence, and looking again costs nothing. That is
what tests of a fixed sample and thresholds on a window cannot offer.

The hypothesis is one side of a `Line` p1 = slope * p0 + offset, where p0 and p1 are the mean scores of the
stable and the candidate revision's requests: error rates, where the score is 1 for a failed request and 0 else.
Scores between 0 and 1 are as good; a request with score y then has the factor (1 - y)(1 - q)/(1 - p*) + y q/p*.
In each block the gambler names a point (q0, q1) on the other side and bets on it as a likelihood ratio against
(p0*, p1*), the point of the hypothesis that is nearest to (q0, q1) in Kullback-Leibler divergence weighted by the
arms' realised shares n0/n, n1/n. Why this is fair:

- An arm of n_a independent requests with true rate p_a has the expected ratio g_a^n_a, with
  g_a = (1 - p_a)(1 - q_a)/(1 - p_a*) + p_a q_a/p_a*.
- g1^n1 g0^n0 <= ((n1 g1 + n0 g0)/n)^n, the geometric against the arithmetic mean.
- The last bracket is 1 at (p0*, p1*), linear in (p0, p1), and its slope there is the negative slope of the
  divergence that (p0*, p1*) minimises over a convex set; so it is at most 1 everywhere in the hypothesis.

Nothing is asked of p0 and p1 but that they are the same for all requests of one block and arm. They may
drift freely from block to block, and so may the weight; a split other than the one asked for does no harm,
and a block without requests of one arm has the factor 1. What is asked, and what blocks have to be formed
for: q0, q1 come from past blocks only, and a block is closed without regard to outcomes. Within a block,
failures must not come more regularly than independent ones would, as from a client that fails in every
block exactly once: the bound is not exact then, though simulated levels stayed within it.

One point (q0, q1) is no strategy: the capital is spread over `Bets`, alternatives at fixed distances from the
stable revision's past rate, and evidence is the sum of what became of each (the method of mixtures). A part
may be held back and staked bit by bit as requests come in, so that a candidate that fails late is caught by
money that has not been lost on its good days.

Sources: R. Turner, A. Ly, P. Gruenwald, Generic E-variables for exact sequential k-sample tests
(arXiv:2106.02693); V. Vovk, R. Wang, E-values: calibration, combination and applications (arXiv:1912.06116);
G. Shafer, Testing by betting (2021); S. Shekhar, A. Ramdas, Nonparametric two-sample testing by betting
(arXiv:2112.09162).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Protocol

STAKE_EVERY = 50
"""Requests of the candidate between two stakes from the reserve."""
PRECISION = 1e-12
"""Relative error at which the search for the nearest point of a hypothesis ends."""


@dataclass(frozen=True, slots=True)
class Tally:
    """How the requests of one arm scored."""

    requests: float = 0
    errors: float = 0.0
    """Sum of the scores; where they are 0 or 1, how many were bad."""
    levels: tuple[float, ...] = ()
    """Requests per level, (position + 0.5) / number of levels, where scores are not only 0 and 1."""


class Counted(Protocol):
    """Anything that has what a `Tally` of scores of 0 and 1 has."""

    @property
    def requests(self) -> float: ...

    @property
    def errors(self) -> float: ...


class Compared(Protocol):
    """The requests of both arms in one block."""

    @property
    def id(self) -> int: ...

    @property
    def stable(self) -> Counted: ...

    @property
    def candidate(self) -> Counted: ...


@dataclass(frozen=True, slots=True)
class Pair:
    """How both arms scored in block `id`."""

    id: int
    stable: Tally
    candidate: Tally


@dataclass(frozen=True, slots=True)
class Prior:
    """Requests of the stable revision imagined before the first block, easily outweighed."""

    errors: float
    requests: float


RARE, MIDDLE = Prior(0.5, 50.0), Prior(25.0, 50.0)
"""A rate of 1 %, as of errors; and a mean of one half, as of ranks."""


@dataclass(frozen=True, slots=True)
class Line:
    """The border of a hypothesis: the candidate's error rate p1 = slope * p0 + offset; slope > 0, 0 <= offset < 1."""

    slope: float = 1.0
    offset: float = 0.0

    def at(self, p0: float) -> float:
        return self.slope * p0 + self.offset

    def where(self, p1: float) -> float:
        """The p0 at which the line reaches `p1`; below 0 where it starts above it."""
        return (p1 - self.offset) / self.slope


@dataclass(frozen=True, slots=True)
class Bets:
    """Where the capital goes: one alternative per shift, each with its part of the stake."""

    shifts: tuple[float, ...]
    """Distance of the candidate's error rate from the stable revision's, in log odds."""
    parts: tuple[float, ...]
    """Part of the stake per shift; they sum to 1."""
    above: bool
    """The alternatives lie above the line (the candidate is worse), not below it."""
    reserve: float = 0.0
    """Part of the capital that is held back at first and staked later."""
    prior: Prior = RARE


RESERVE = 0.3
"""Held back of every stake on 'worse'."""

WORSE = Bets(
    shifts=(0.4, 0.7, 1.1, 1.6, 2.3, 3.2, 4.6, 7.0),
    parts=(0.10, 0.10, 0.12, 0.13, 0.13, 0.12, 0.14, 0.16),
    above=True,
    reserve=RESERVE,
)
"""Bets that the candidate fails more: from 1.5 times the odds of an error to a dead one."""

SLOW = Bets(shifts=(0.35, 0.8, 1.4, 2.2, 4.0), parts=(0.2,) * 5, above=True, reserve=RESERVE)
"""Bets that more of the candidate's requests are beyond a latency that few of the stable revision's are."""

SLOWER = Bets(shifts=(0.3, 0.7, 1.3, 2.2, 3.5), parts=(0.2,) * 5, above=True, reserve=RESERVE, prior=MIDDLE)
"""Bets that the candidate's requests rank higher among the stable revision's latencies."""

GOOD_ENOUGH = Bets(
    shifts=(-3.0, -1.5, -0.7, -0.25, 0.0),
    parts=(0.10, 0.10, 0.15, 0.15, 0.50),
    above=False,
)
"""Bets that the candidate stays below a line: half on 'no different', the rest on 'better'."""

FAST_ENOUGH = Bets(
    shifts=(-1.6, -1.1, -0.8, -0.55, -0.35, -0.2),
    parts=(0.10, 0.15, 0.20, 0.25, 0.20, 0.10),
    above=False,
)
"""Bets that fewer requests are beyond a latency, once the candidate's are divided by what is tolerated."""

BELOW = Bets(
    shifts=(-3.0, -1.5, -0.7, -0.25, 0.0, 0.5, 1.2, 2.2),
    parts=(0.05, 0.07, 0.10, 0.13, 0.35, 0.10, 0.10, 0.10),
    above=False,
)
"""Bets that the candidate stays below a line, though it may well be somewhat worse than the stable revision."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What an e-process collects evidence for; its opposite, line included, is the hypothesis bet against."""

    line: Line
    bets: Bets
    log_threshold: float
    """Log of the evidence that proves the claim: log(1/alpha)."""


@dataclass(frozen=True, slots=True)
class EProcess:
    """The evidence for one claim. Once proven it stays proven, and as it was at that moment."""

    log_capital: tuple[float, ...]
    """What each bet has become, in the order of the claim's shifts."""
    log_e: float = 0.0
    """Log of the evidence: of all bets together and the reserve."""
    proven: int | None = None
    """Id of the block that proved the claim."""


def opened(claim: Claim) -> EProcess:
    staked = 1 - claim.bets.reserve
    return EProcess(tuple(log(staked * part) for part in claim.bets.parts))


def updated(process: EProcess, claim: Claim, block: Compared, stable: Counted, candidate: Counted) -> EProcess:
    """The e-process after `block`; `stable` and `candidate` count the blocks before it."""
    if process.proven is not None:
        return process
    factors = log_factors(claim, stable_rate(stable, claim.bets.prior), block)
    return staked(process, claim, block, factors, candidate.requests)


def staked(
    process: EProcess, claim: Claim, block: Compared, factors: Sequence[float], candidate_requests: float
) -> EProcess:
    """The e-process once `block` multiplied its bets by `factors` (logs), and the stakes due by it were made."""
    after = candidate_requests + block.candidate.requests
    capital = tuple(was + factor for was, factor in zip(process.log_capital, factors, strict=True))
    capital = _with_new_stakes(capital, claim.bets, candidate_requests, after)
    log_e = log_sum((*capital, log(held_back(claim.bets, after)))) if claim.bets.reserve else log_sum(capital)
    return EProcess(capital, log_e, block.id if log_e >= claim.log_threshold else None)


def stable_rate(past: Counted, prior: Prior = RARE) -> float:
    """The stable revision's mean score as the gambler sees it, never 0 or 1."""
    return (past.errors + prior.errors) / (past.requests + prior.requests)


def shifted(rate: float, shift: float) -> float:
    """The rate whose log odds are those of `rate` plus `shift`."""
    odds = rate / (1 - rate) * exp(shift)
    return odds / (1 + odds)


def log_factors(claim: Claim, q0: float, block: Compared) -> list[float]:
    """Log of what `block` multiplies each bet by: 0 where the alternative is itself within the hypothesis."""
    if not block.stable.requests or not block.candidate.requests:
        return [0.0] * len(claim.bets.shifts)
    border = claim.line.at(q0)
    alternatives = (shifted(q0, shift) for shift in claim.bets.shifts)
    return [
        log_factor(claim.line, q0, q1, block.stable, block.candidate)
        if (q1 > border if claim.bets.above else q1 < border)
        else 0.0
        for q1 in alternatives
    ]


def log_factor(line: Line, q0: float, q1: float, stable: Counted, candidate: Counted) -> float:
    """Log likelihood ratio of (q0, q1) to the nearest point of `line`; both arms have requests."""
    share = candidate.requests / (stable.requests + candidate.requests)
    p0 = nearest(line, q0, q1, share)
    return _log_ratio(stable, q0, p0) + _log_ratio(candidate, q1, line.at(p0))


def _log_ratio(arm: Counted, q: float, p: float) -> float:
    if isinstance(arm, Tally) and arm.levels:
        return _log_ratio_of_levels(arm.levels, q / p, (1 - q) / (1 - p))
    return arm.errors * log(q / p) + (arm.requests - arm.errors) * log((1 - q) / (1 - p))


def _log_ratio_of_levels(levels: Sequence[float], bad: float, good: float) -> float:
    """Each level's requests have the factor that lies as far between `good` and `bad` as its score between 0 and 1."""
    step = (bad - good) / len(levels)
    return sum(n * log(good + (position + 0.5) * step) for position, n in enumerate(levels) if n)


def nearest(line: Line, q0: float, q1: float, share: float) -> float:
    """The p0 that minimises share * KL(q1 || line.at(p0)) + (1 - share) * KL(q0 || p0), for 0 < share < 1.

    The sum is strictly convex and its minimum lies between q0 and the p0 at which the line reaches q1. Newton's
    method finds it in four or five rounds from a start that is exact for the line p1 = p0; a step that would
    leave the bracket halves it instead.
    """
    near = min(q0, line.where(1.0))
    far = max(line.where(q1), 0.0)
    low, high = min(near, far), max(near, far)
    p0 = near + share * (far - near)
    for _ in range(100):
        slope, curvature = _derivatives(line, q0, q1, share, p0)
        low, high = (low, p0) if slope > 0 else (p0, high)
        step = slope / curvature
        if abs(step) <= PRECISION * p0:
            break
        p0 = p0 - step if low < p0 - step < high else (low + high) / 2
    return p0


def _derivatives(line: Line, q0: float, q1: float, share: float, p0: float) -> tuple[float, float]:
    """First and second derivative, by p0, of the divergence that `nearest` minimises."""
    p1 = line.at(p0)
    spread0, spread1 = p0 * (1 - p0), p1 * (1 - p1)
    slope0, slope1 = (p0 - q0) / spread0, (p1 - q1) / spread1
    slope = (1 - share) * slope0 + share * line.slope * slope1
    curvature0, curvature1 = (1 - slope0 * (1 - 2 * p0)) / spread0, (1 - slope1 * (1 - 2 * p1)) / spread1
    return slope, (1 - share) * curvature0 + share * line.slope**2 * curvature1


def held_back(bets: Bets, requests: float) -> float:
    """What is left of the reserve after so many requests of the candidate.

    The k-th stake is reserve / (k (k + 1)), so that 1 / (k + 1) of the reserve is left after it.
    """
    return bets.reserve / (requests // STAKE_EVERY + 1)


def _with_new_stakes(log_capital: tuple[float, ...], bets: Bets, before: float, after: float) -> tuple[float, ...]:
    """The capital with what became due between two counts of the candidate's requests."""
    stake = held_back(bets, before) - held_back(bets, after)
    if stake <= 0:
        return log_capital
    return tuple(log_sum((was, log(stake * part))) for was, part in zip(log_capital, bets.parts, strict=True))


def log_sum(logs: Sequence[float]) -> float:
    """log(sum(exp(x))) without overflow."""
    top = max(logs)
    return top + log(sum(exp(x - top) for x in logs))
