"""What a plan says it needs and would find, against rollouts of drawn requests."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from math import log
from random import Random
from statistics import fmean

import pytest

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import LEVELS
from monitoring.detectable import POWER, detectable, foreseen, tilted
from monitoring.eprocess import SLOW, SLOWER, Claim, Line, Pair, Tally, opened, updated
from monitoring.latency_evidence import ENOUGH, enough_claim, parts
from monitoring.plan import StepPlan, plan
from monitoring.prediction_evidence import PredictionEvidence
from monitoring.rate_evidence import summed, unending, worse_claim
from monitoring.usual import Usual

POLICY = AnalysisPolicy()
USUAL = Usual(0.01, 0.002, ((0.5, 0.3), (0.05, 0.03)))
STEPS = plan(POLICY, (5, 20, 50, 100), USUAL, 20.0, 60.0).steps
REPLICATES = 100
IN_A_BLOCK = 200
DRAWN = Callable[[Random, int], Tally]
"""How so many requests of one arm score."""


def least(metric: str) -> float:
    found = next(one.least for one in detectable(POLICY, STEPS, USUAL) if one.metric == metric)
    assert found is not None
    return found


def found(weight: float, claim: Claim, stable: DRAWN, candidate: DRAWN, seed: int) -> bool:
    """Whether one rollout's evidence by this metric alone is enough to take it back."""
    chance = Random(seed)
    process, needed = opened(claim), -log(weight * POLICY.alpha_rollback)
    before = Tally(), Tally()
    for step in STEPS:
        for number in range(step.requests // IN_A_BLOCK):
            n1 = round((number + 1) * IN_A_BLOCK * step.weight / 100) - round(number * IN_A_BLOCK * step.weight / 100)
            block = Pair(number, stable(chance, IN_A_BLOCK - n1), candidate(chance, n1))
            process = updated(process, claim, block, *before)
            before = summed(before[0], block.stable), summed(before[1], block.candidate)
            if process.log_e >= needed:
                return True
    return False


def rate(share: float) -> DRAWN:
    return lambda chance, n: Tally(n, sum(chance.random() < share for _ in range(n)))


def ranks(mean: float) -> DRAWN:
    """Levels that are even for a mean of one half, and else as the plan has them: the density of each is tilted."""
    low, high = 0.0, 60.0
    for _ in range(60):
        tilt = (low + high) / 2
        low, high = (tilt, high) if sum(p * y for p, y in tilted(tilt)) < mean else (low, tilt)
    weights = [p for p, _ in tilted(low)]

    def drawn(chance: Random, n: int) -> Tally:
        levels = [0.0] * LEVELS
        for level in chance.choices(range(LEVELS), weights, k=n):
            levels[level] += 1
        return Tally(n, sum(k * (level + 0.5) / LEVELS for level, k in enumerate(levels)), tuple(levels))

    return drawn


@pytest.mark.parametrize(
    ("metric", "weight", "claim", "usual", "drawn"),
    [
        ("errors", POLICY.weight_errors, worse_claim(POLICY), 0.01, rate),
        ("refusals", POLICY.weight_refusals, worse_claim(POLICY), 0.002, rate),
        ("latency", POLICY.weight_latency * parts(POLICY)[0], Claim(Line(), SLOWER, 0.0), 0.5, ranks),
        ("latency tail", POLICY.weight_latency * parts(POLICY)[1], Claim(Line(), SLOW, 0.0), 0.05, rate),
    ],
)
def test_what_is_said_to_be_found_is_found_in_nine_of_ten_rollouts(
    metric: str, weight: float, claim: Claim, usual: float, drawn: Callable[[float], DRAWN]
) -> None:
    rollouts = range(REPLICATES)
    share = fmean(found(weight, unending(claim), drawn(usual), drawn(least(metric)), seed) for seed in rollouts)
    assert POWER - 0.07 <= share <= 1.0
    half = usual + (least(metric) - usual) / 2
    missed = fmean(found(weight, unending(claim), drawn(usual), drawn(half), seed) for seed in rollouts)
    assert missed < 0.6, "it is the smallest of its kind"


def test_moved_predictions_are_found_as_often_as_said() -> None:
    moved = least("predictions")

    def taken_back(chance: Random) -> bool:
        evidence = PredictionEvidence.start()
        needed = -log(POLICY.weight_predictions * POLICY.alpha_rollback)
        for step in STEPS:
            for number in range(step.requests // IN_A_BLOCK):
                n1 = round(IN_A_BLOCK * step.weight / 100)
                arms = (rate((1 - moved) / 2)(chance, IN_A_BLOCK - n1), rate((1 + moved) / 2)(chance, n1))
                shares = [(arm.requests - arm.errors, arm.errors) for arm in arms]
                evidence = evidence.after(POLICY.prediction_distance, number, (shares[0], shares[1]))
                if evidence.differs.log_e >= needed:
                    return True
        return False

    assert POWER - 0.07 <= fmean(taken_back(Random(seed)) for seed in range(REPLICATES)) <= 1.0


def test_an_equal_candidate_is_proved_fast_enough_about_when_planned() -> None:
    usual = Usual(0.0, 0.0, ((0.5, 0.45), (0.05, 0.045)))
    (step,) = plan(POLICY, (20, 100), usual, None, 0.0).steps
    assert step.metric == "latency"

    def needed(chance: Random) -> float:
        processes = {cut: opened(enough_claim(POLICY, cut)) for cut in ENOUGH}
        before = dict.fromkeys(ENOUGH, (Tally(), Tally()))
        requests = 0
        while any(process.proven is None for process in processes.values()) and requests < 20 * step.requests:
            requests += 100
            for cut, (stable, candidate) in zip(ENOUGH, usual.slow, strict=True):
                block = Pair(requests, rate(stable)(chance, 80), rate(candidate)(chance, 20))
                processes[cut] = updated(processes[cut], enough_claim(POLICY, cut), block, *before[cut])
                before[cut] = summed(before[cut][0], block.stable), summed(before[cut][1], block.candidate)
        return requests / step.requests

    assert 0.6 <= fmean(needed(Random(seed)) for seed in range(40)) <= 1.5


def test_more_requests_find_smaller_things() -> None:
    several = [
        [one.least or 1.0 for one in detectable(POLICY, plan(POLICY, (5, 20, 50, 100), USUAL, rate, 60.0).steps, USUAL)]
        for rate in (20.0, 200.0, 2000.0)
    ]
    for few, more in pairwise(several):
        assert all(after < before for before, after in zip(few, more, strict=True))


def test_what_would_not_be_found_is_said() -> None:
    few = (StepPlan(50, 4, 2, None),)
    assert foreseen(POLICY, few, USUAL) == (
        "Not found in that time, however bad it is: errors, refusals, latency, latency tail, predictions",
    )
    assert foreseen(POLICY, (), USUAL) == ()
    (sentence,) = foreseen(POLICY, STEPS, USUAL)
    assert "an error rate from" in sentence
    assert "(now 1 %)" in sentence
