"""By enumeration of every outcome, no simulation: under its hypothesis no evidence is expected to grow.

`tests/unit/test_eprocess.py` does so for errors; here are ranks, predictions, the split, and an adversary who chooses
rates and weights by what has happened.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import product
from math import comb, exp, isclose, prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.analysis import Evidence, fold, log_e_worse
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block, Latencies
from monitoring.eprocess import SLOWER, Claim, Line, Tally, log_factor, shifted, stable_rate
from monitoring.prediction_evidence import PredictionEvidence
from monitoring.rate_evidence import gate_claim
from monitoring.split_evidence import SplitEvidence

LEVELS = 4
ROUNDING = 1e-9


def distributions(dice: random.Random, count: int, cells: int) -> list[list[float]]:
    """Over `cells` values; some of them with nothing in some cells."""
    found = []
    for _ in range(count):
        weights = [dice.random() ** 3 * (dice.random() < 0.8) + 1e-12 for _ in range(cells)]
        found.append([weight / sum(weights) for weight in weights])
    return found


def outcomes(chances: Sequence[float], requests: int) -> Iterator[tuple[float, tuple[int, ...]]]:
    """Probability and values of every way in which `requests` independent requests can end."""
    for values in product(range(len(chances)), repeat=requests):
        yield prod(chances[value] for value in values), values


def tally(values: Sequence[int]) -> Tally:
    levels = tuple(float(values.count(level)) for level in range(LEVELS))
    score = sum(n * (level + 0.5) for level, n in enumerate(levels)) / LEVELS
    return Tally(len(values), score, levels)


def mean(chances: Sequence[float]) -> float:
    return sum(chance * (level + 0.5) / LEVELS for level, chance in enumerate(chances))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("n0", "n1"), [(3, 1), (2, 2), (1, 3)])
def test_ranks_gain_nothing_where_the_candidate_ranks_no_higher(seed: int, n0: int, n1: int) -> None:
    dice = random.Random(seed)
    for p0, p1 in product(distributions(dice, 4, LEVELS), repeat=2):
        low, high = sorted((p0, p1), key=mean)
        for past in (Tally(), Tally(400, 150.0), Tally(400, 390.0)):
            q0 = stable_rate(past, SLOWER.prior)
            for shift in SLOWER.shifts:
                expected = sum(
                    c0 * c1 * exp(log_factor(Line(), q0, shifted(q0, shift), tally(x0), tally(x1)))
                    for c0, x0 in outcomes(high, n0)
                    for c1, x1 in outcomes(low, n1)
                )
                assert expected <= 1 + ROUNDING


def distance(p0: Sequence[float], p1: Sequence[float]) -> float:
    return sum(max(0.0, b - a) for a, b in zip(p0, p1, strict=True))


def shares(values: Sequence[int], rows: int) -> tuple[float, ...]:
    """Of requests with `rows` rows each."""
    return tuple(values.count(category) / rows for category in range(3))


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_predictions_gain_nothing_within_the_tolerated_distance(seed: int, rows: int) -> None:
    dice, tolerated = random.Random(seed), 0.1
    evidence = PredictionEvidence.start()
    for number in range(3):
        arms = (tuple(dice.random() * 9 for _ in range(3)), tuple(dice.random() * 5 for _ in range(3)))
        evidence = evidence.after(tolerated, number, arms)
    for p0, other in product(distributions(dice, 4, 3), repeat=2):
        far = distance(p0, other)
        part = min(1.0, tolerated / far) if far else 0.0
        p1 = [a + part * (b - a) for a, b in zip(p0, other, strict=True)]
        expected = sum(
            c0 * c1 * exp(evidence.after(tolerated, 4, (shares(x0, rows), shares(x1, rows))).differs.log_e)
            for c0, x0 in outcomes(p0, 2 * rows)
            for c1, x1 in outcomes(p1, rows)
        )
        assert expected <= exp(evidence.differs.log_e) * (1 + ROUNDING)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_that_predictions_differ_at_all_gains_nothing_where_they_do_not(seed: int, rows: int) -> None:
    dice = random.Random(seed)
    evidence = PredictionEvidence.start()
    for number in range(3):
        arms = (tuple(dice.random() * 9 for _ in range(3)), tuple(dice.random() * 5 for _ in range(3)))
        evidence = evidence.after(0.1, number, arms)
    for p in distributions(dice, 12, 3):
        expected = sum(
            c0 * c1 * exp(evidence.after(0.1, 4, (shares(x0, rows), shares(x1, rows))).log_e_at_all)
            for c0, x0 in outcomes(p, 2 * rows)
            for c1, x1 in outcomes(p, rows)
        )
        assert expected <= exp(evidence.log_e_at_all) * (1 + ROUNDING)


@pytest.mark.parametrize("weight", [1, 10, 50, 95])
def test_the_split_gains_nothing_where_it_is_as_asked(weight: int) -> None:
    before = SplitEvidence(2, stable=17, candidate=5, log_e=0.7)
    share = weight / 100
    expected = sum(
        comb(8, n1) * share**n1 * (1 - share) ** (8 - n1) * exp(before.after(weight, at_step_2(8 - n1, n1)).log_e)
        for n1 in range(9)
    )
    assert isclose(expected, exp(0.7))


def at_step_2(stable: int, candidate: int) -> Block:
    return Block(1, "r", 2, 0.0, 1.0, ArmCount(stable), ArmCount(candidate))


@given(st.integers(0, 10**9), st.integers(0, 10**9))
@settings(max_examples=15, deadline=None)
def test_an_adversary_who_knows_the_past_gains_nothing(first: int, second: int) -> None:
    """It chooses, by all that has happened, how often both arms fail, are refused and are slow, and their requests."""
    policy = AnalysisPolicy(latency_slo_ms=500.0)

    def expected(evidence: Evidence, past: tuple[object, ...], depth: int) -> float:
        if depth == 0:
            return exp(log_e_worse(policy, evidence))
        dice = random.Random(f"{first} {second} {past}")
        n0, n1, rate = dice.choice((1, 2)), dice.choice((1, 2)), dice.random() ** dice.choice((1, 4))
        candidate_rate = rate * dice.choice((1.0, 1.0, 0.5))
        total = 0.0
        for x0, x1 in product(range(n0 + 1), range(n1 + 1)):
            chance = binomial(n0, x0, rate) * binomial(n1, x1, candidate_rate)
            if chance:
                block = of_counts(evidence.block + 1, (n0, x0), (n1, x1))
                total += chance * expected(fold(policy, evidence, (block,)), (*past, x0, x1), depth - 1)
        return total

    start = Evidence.start(policy, (50, 100))
    assert expected(start, (), 3) <= 1 + ROUNDING


def of_counts(number: int, stable: tuple[int, int], candidate: tuple[int, int]) -> Block:
    """What fails is refused and slow as well, so that every metric but predictions has its say."""
    arms = [ArmCount(requests, bad, bad) for requests, bad in (stable, candidate)]
    timed = [Latencies(ranks(*arm), (arm[1],) * 4, (arm[1],) * 4, arm[1]) for arm in (stable, candidate)]
    return Block(number, "r", 9, 0.0, 1.0, arms[0], arms[1], latency=(timed[0], timed[1]))


def ranks(requests: int, bad: int) -> tuple[int, ...]:
    return (0,) * 8 + (requests - bad,) + (0,) * 22 + (bad,)


def binomial(requests: int, bad: int, rate: float) -> float:
    return comb(requests, bad) * rate**bad * (1 - rate) ** (requests - bad)


@pytest.mark.parametrize("weight", [20, 50, 100])
def test_a_gate_gains_nothing_at_its_line_whatever_the_weights(weight: int) -> None:
    claim: Claim = gate_claim(AnalysisPolicy(), weight)
    for n0, n1 in ((1, 1), (5, 1), (1, 5)):
        for p0 in (0.0, 0.001, 0.02, 0.3):
            p1 = min(1.0, claim.line.at(p0))
            for q0 in (0.001, 0.02, 0.4):
                for shift in claim.bets.shifts:
                    q1 = shifted(q0, shift)
                    if q1 >= claim.line.at(q0):
                        continue
                    expected = sum(
                        binomial(n0, x0, p0)
                        * binomial(n1, x1, p1)
                        * exp(log_factor(claim.line, q0, q1, ArmCount(n0, x0), ArmCount(n1, x1)))
                        for x0 in range(n0 + 1)
                        for x1 in range(n1 + 1)
                    )
                    assert expected <= 1 + ROUNDING
