"""What a plan would not find: how bad a candidate has to be so that it is likely to be taken back before it is live.

Pure. By each metric alone, over the requests that the steps of a plan bring: evidence that the candidate is worse grows
by its bets, which are known, so growth and spread per request follow from how bad the candidate is. The smallest thing
is sought whose evidence, less what chance may take off in one of ten rollouts, is enough. Stakes that are made later
and several metrics that speak together only make it smaller; the bake, which comes after the plan, is not counted.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import exp, log, sqrt

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import CUTS, LEVELS
from monitoring.eprocess import (
    MIDDLE,
    SLOW,
    SLOWER,
    WORSE,
    Bets,
    Line,
    Tally,
    nearest,
    shifted,
    stable_rate,
)
from monitoring.latency_evidence import TAIL, parts
from monitoring.plan import StepPlan, percent
from monitoring.prediction_evidence import BETS, JUMPS
from monitoring.usual import Usual

POWER = 0.9
"""Chance of finding it."""
_SPREADS = 1.2816
"""Standard deviations below the mean at which a normal variable is with a chance of 1 - `POWER`."""
_STEEPEST = 60.0
"""Tilt of the levels at which nearly every request is in the slowest one."""
_LEARNING = 1.2
"""How much more evidence about predictions is needed, because which of them moved has to be learnt first."""
_ROUNDS = 30
"""Of halving, which is far more exact than the estimate."""

Scores = Sequence[tuple[float, float]]
"""How requests of one arm score: chances and scores."""


@dataclass(frozen=True, slots=True)
class Detectable:
    """The smallest thing that is likely to be found by one metric."""

    metric: str
    usual: float
    """What it is with the stable revision, or, of predictions, what is tolerated."""
    least: float | None
    """What it has to be with the candidate; None where nothing of the kind would be found."""
    sentence: str


@dataclass(frozen=True, slots=True)
class _Bet:
    """One alternative, and the log of how much it has to grow until it takes the rollout back by itself."""

    line: Line
    q0: float
    q1: float
    needed: float


def detectable(policy: AnalysisPolicy, steps: Sequence[StepPlan], usual: Usual) -> tuple[Detectable, ...]:
    """What the requests of `steps` would find; a metric without weight finds nothing and is left out."""
    if not any(step.candidate_requests for step in steps):
        return ()
    return tuple(_found(policy, [step for step in steps if step.candidate_requests], usual))


def _found(policy: AnalysisPolicy, steps: Sequence[StepPlan], usual: Usual) -> Iterator[Detectable]:
    if policy.weight_errors:
        yield _share(policy, steps, usual.errors, ("errors", policy.weight_errors), "an error rate from {} on")
    if policy.weight_refusals:
        yield _share(policy, steps, usual.refused, ("refusals", policy.weight_refusals), "{} refused requests")
    if policy.weight_latency:
        yield from _latency(policy, steps)
    if policy.weight_predictions:
        yield _predictions(policy, steps)


def _share(
    policy: AnalysisPolicy, steps: Sequence[StepPlan], usual: float, named: tuple[str, float], words: str
) -> Detectable:
    """A share of bad requests, by the `named` metric with its weight."""
    metric, weight = named
    seen = sum(step.requests - step.candidate_requests for step in steps)
    bets = tuple(_at_shifts(policy, weight, WORSE, stable_rate(Tally(seen, seen * usual))))
    least = _smallest(lambda rate: _finds(steps, bets, _rate(usual), _rate(rate)), usual, 1.0)
    return Detectable(metric, usual, least, _said(least, words, f"now {percent(usual)}"))


def _latency(policy: AnalysisPolicy, steps: Sequence[StepPlan]) -> Iterator[Detectable]:
    """By rank, and by the share of requests beyond the 95th percentile."""
    ranks = tuple(_at_shifts(policy, policy.weight_latency * parts(policy)[0], SLOWER, MIDDLE.errors / MIDDLE.requests))
    tilt = _smallest(lambda tilt: _finds(steps, ranks, tilted(0.0), tilted(tilt)), 0.0, _STEEPEST)
    rank = None if tilt is None else sum(chance * score for chance, score in tilted(tilt))
    said = _said(
        rank, "requests that, less what is tolerated, are slower than {} of the stable version's", "on average 50 %"
    )
    yield Detectable("latency", 0.5, rank, said)
    usual, part = 1 - CUTS[2], parts(policy)[1 + TAIL.index(2)]
    bets = tuple(_at_shifts(policy, policy.weight_latency * part, SLOW, usual))
    tail = _smallest(lambda rate: _finds(steps, bets, _rate(usual), _rate(rate)), usual, 1.0)
    said = _said(tail, "{} of them slower than 95 % usually are", f"usual are {percent(usual)}")
    yield Detectable("latency tail", usual, tail, said)


def _predictions(policy: AnalysisPolicy, steps: Sequence[StepPlan]) -> Detectable:
    """Where the stable revision has half of its predictions, less half of what moved: the hardest to see."""
    line, usual = Line(offset=policy.prediction_distance), policy.prediction_distance

    def finds(moved: float) -> bool:
        q0 = (1 - moved) / 2
        border, now = line.at(q0), q0 + moved
        alternatives = (*(border + jump * (1 - border) for jump in JUMPS), now)
        needed = _needed(policy, policy.weight_predictions, BETS)
        bets = [_Bet(line, q0, q1, _LEARNING * more) for q1, more in zip(alternatives, needed, strict=True)]
        return _finds(steps, bets, _rate(q0), _rate(now))

    least = _smallest(finds, usual, 0.99)
    said = _said(least, "{} of the predictions being different ones", f"{percent(usual)} are tolerated")
    return Detectable("predictions", usual, least, said)


def _said(least: float | None, words: str, usual: str) -> str:
    return f"{words.format(percent(least))} ({usual})" if least is not None else f"nothing, however bad ({usual})"


def _at_shifts(policy: AnalysisPolicy, weight: float, bets: Bets, q0: float) -> Iterator[_Bet]:
    for shift, needed in zip(bets.shifts, _needed(policy, weight, bets), strict=True):
        yield _Bet(Line(), q0, shifted(q0, shift), needed)


def _needed(policy: AnalysisPolicy, weight: float, bets: Bets) -> Iterator[float]:
    staked = weight * (1 - bets.reserve)
    return (log(1 / policy.alpha_rollback) - log(staked * part) for part in bets.parts)


def _finds(steps: Sequence[StepPlan], bets: Iterable[_Bet], stable: Scores, candidate: Scores) -> bool:
    return any(_grows_enough(steps, bet, stable, candidate) for bet in bets)


def _grows_enough(steps: Sequence[StepPlan], bet: _Bet, stable: Scores, candidate: Scores) -> bool:
    """With a chance of `POWER`, by the normal approximation."""
    mean = variance = 0.0
    for step in steps:
        p0 = nearest(bet.line, bet.q0, bet.q1, step.candidate_requests / step.requests)
        arms = (
            (step.requests - step.candidate_requests, stable, bet.q0, p0),
            (step.candidate_requests, candidate, bet.q1, bet.line.at(p0)),
        )
        for requests, scores, q, p in arms:
            one_mean, one_variance = _log_ratio(scores, q, p)
            mean, variance = mean + requests * one_mean, variance + requests * one_variance
    return mean - _SPREADS * sqrt(variance) >= bet.needed


def _log_ratio(scores: Scores, q: float, p: float) -> tuple[float, float]:
    """Mean and variance of the log of what one request multiplies a bet by."""
    found = [(chance, log((1 - y) * (1 - q) / (1 - p) + y * q / p)) for chance, y in scores if chance]
    mean = sum(chance * value for chance, value in found)
    return mean, sum(chance * (value - mean) ** 2 for chance, value in found)


def _rate(rate: float) -> Scores:
    return ((1 - rate, 0.0), (rate, 1.0))


def tilted(tilt: float) -> Scores:
    """Ranks of requests that are slower the larger `tilt` is; with 0 they are those of the stable revision."""
    scores = [(position + 0.5) / LEVELS for position in range(LEVELS)]
    weights = [exp(tilt * (score - 1)) for score in scores]
    return tuple((weight / sum(weights), score) for weight, score in zip(weights, scores, strict=True))


def _smallest(finds: Callable[[float], bool], low: float, high: float) -> float | None:
    """Where `finds` begins to hold between `low` and `high`; None where it does nowhere."""
    if not finds(high):
        return None
    for _ in range(_ROUNDS):
        middle = (low + high) / 2
        low, high = (low, middle) if finds(middle) else (middle, high)
    return high


def foreseen(policy: AnalysisPolicy, steps: Sequence[StepPlan], usual: Usual) -> tuple[str, ...]:
    """The same as sentences for whoever is about to start a rollout."""
    found = detectable(policy, steps, usual)
    if not found:
        return ()
    seen = "; ".join(one.sentence for one in found if one.least is not None)
    unseen = ", ".join(one.metric for one in found if one.least is None)
    said = [f"Found in that time in 9 of 10 rollouts, and anything smaller more seldom: {seen}"] if seen else []
    return (*said, *([f"Not found in that time, however bad it is: {unseen}"] if unseen else []))
