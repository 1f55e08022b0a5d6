"""The primitive under every verdict: known values, and fairness by enumeration of every outcome."""

from __future__ import annotations

from dataclasses import replace
from math import comb, exp, log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring import excess
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block
from monitoring.eprocess import (
    BELOW,
    GOOD_ENOUGH,
    WORSE,
    Bets,
    Claim,
    EProcess,
    Line,
    held_back,
    log_factor,
    log_factors,
    nearest,
    opened,
    shifted,
    stable_rate,
    updated,
)
from monitoring.rate_evidence import gate_claim, worse_claim

POLICY = AnalysisPolicy()
NONE = ArmCount()


def block(number: int, stable: tuple[int, int], candidate: tuple[int, int]) -> Block:
    """Arms as (requests, errors)."""
    return Block(number, "r1", 0, float(number), float(number + 1), ArmCount(*stable), ArmCount(*candidate))


class TestThePrimitive:
    @pytest.mark.parametrize(
        ("requests", "errors", "rate"),
        [(0, 0, 0.01), (50, 0, 0.005), (100, 2, 2.5 / 150), (950, 9, 0.0095), (10, 10, 10.5 / 60)],
    )
    def test_stable_rate_starts_at_one_percent_and_follows_the_counts(
        self, requests: int, errors: int, rate: float
    ) -> None:
        assert stable_rate(ArmCount(requests, errors)) == pytest.approx(rate)

    @pytest.mark.parametrize(
        ("rate", "shift", "expected"), [(0.5, log(3), 0.75), (0.01, log(99), 0.5), (0.2, 0.0, 0.2), (0.5, -log(4), 0.2)]
    )
    def test_shift_is_in_log_odds(self, rate: float, shift: float, expected: float) -> None:
        assert shifted(rate, shift) == pytest.approx(expected)

    @pytest.mark.parametrize(
        ("line", "q0", "q1", "share", "expected"),
        [
            (Line(), 0.01, 0.10, 0.25, 0.0325),  # p1 = p0: the mean by shares
            (Line(), 0.3, 0.1, 0.5, 0.2),
            # 0.5 * (0.1 - q0)/0.09 + 0.5 * 1.5 * (0.2 - 0.3)/0.16 = 0 at q0 = 0.015625
            (Line(1.5, 0.05), 0.015625, 0.3, 0.5, 0.1),
            # below the line: 0.75 * (0.1 - q0)/0.09 + 0.25 * (0.35 - 0.05)/0.2275 = 0
            (Line(1.0, 0.25), 0.1 + 0.09 / 0.75 * 0.25 * 0.30 / 0.2275, 0.05, 0.25, 0.1),
        ],
    )
    def test_nearest_point(self, line: Line, q0: float, q1: float, share: float, expected: float) -> None:
        assert nearest(line, q0, q1, share) == pytest.approx(expected, rel=1e-12)

    @given(
        q0=st.floats(1e-6, 1 - 1e-6),
        q1=st.floats(1e-6, 1 - 1e-6),
        share=st.floats(0.001, 0.999),
        slope=st.floats(1, 3),
        offset=st.floats(0, 0.6),
    )
    def test_no_other_point_of_the_line_is_nearer(
        self, q0: float, q1: float, share: float, slope: float, offset: float
    ) -> None:
        line = Line(slope, offset)
        p0 = nearest(line, q0, q1, share)
        found = divergence(line, q0, q1, share, p0)
        for factor in (0.9, 0.999, 1.001, 1.1):
            other = p0 * factor
            if other < 1 and line.at(other) < 1:
                assert found <= divergence(line, q0, q1, share, other) + 1e-12

    def test_factor_of_one_request_each(self) -> None:
        # (0.1, 0.5) against (0.3, 0.3): stable answers, candidate fails
        factor = log_factor(Line(), 0.1, 0.5, ArmCount(1, 0), ArmCount(1, 1))
        assert exp(factor) == pytest.approx(0.9 / 0.7 * 0.5 / 0.3)

    def test_an_alternative_within_the_hypothesis_is_no_bet(self) -> None:
        tolerant = Claim(Line(offset=0.02), WORSE, log(100))  # at 1 % stable errors, up to 3 % is tolerated
        factors = log_factors(tolerant, 0.01, block(1, (10, 1), (10, 3)))
        inside = [shifted(0.01, shift) <= 0.03 for shift in WORSE.shifts]
        assert [factor == 0 for factor in factors] == inside
        assert inside == [True] * 2 + [True] + [False] * 5

    @pytest.mark.parametrize(("stable", "candidate"), [((0, 0), (9, 9)), ((9, 9), (0, 0)), ((0, 0), (0, 0))])
    def test_one_arm_alone_says_nothing(self, stable: tuple[int, int], candidate: tuple[int, int]) -> None:
        after = updated(opened(worse_claim(POLICY)), worse_claim(POLICY), block(1, stable, candidate), NONE, NONE)
        assert after.log_e == pytest.approx(0.0)

    @pytest.mark.parametrize("bets", [WORSE, GOOD_ENOUGH, BELOW], ids=["worse", "good enough", "below"])
    def test_the_capital_is_one_at_the_start(self, bets: Bets) -> None:
        capital = opened(Claim(Line(), bets, log(20))).log_capital
        assert sum(map(exp, capital)) + bets.reserve == pytest.approx(1.0)

    @pytest.mark.parametrize(
        ("requests", "left"), [(0, 0.3), (49, 0.3), (50, 0.15), (99, 0.15), (100, 0.1), (149, 0.1), (950, 0.015)]
    )
    def test_reserve_is_staked_every_fifty_requests(self, requests: int, left: float) -> None:
        assert held_back(WORSE, requests) == pytest.approx(left)

    def test_stakes_move_capital_and_make_none(self) -> None:
        claim = worse_claim(POLICY)
        after = updated(opened(claim), claim, block(1, (0, 0), (170, 9)), NONE, NONE)  # no stable request: factor 1
        staked = 0.7 + 0.3 - 0.3 / 4  # three stakes at once
        assert [exp(capital) for capital in after.log_capital] == pytest.approx([staked * part for part in WORSE.parts])

    def test_evidence_of_one_block_by_hand(self) -> None:
        claim = worse_claim(POLICY)
        after = updated(opened(claim), claim, block(1, (1, 0), (1, 1)), NONE, NONE)
        expected = 0.3
        for shift, part in zip(WORSE.shifts, WORSE.parts, strict=True):
            odds = 0.01 / 0.99 * exp(shift)
            q1 = odds / (1 + odds)
            p = (0.01 + q1) / 2
            expected += 0.7 * part * (0.99 / (1 - p)) * (q1 / p)
        assert exp(after.log_e) == pytest.approx(expected)


def divergence(line: Line, q0: float, q1: float, share: float, p0: float) -> float:
    def kl(q: float, p: float) -> float:
        return q * log(q / p) + (1 - q) * log((1 - q) / (1 - p))

    return share * kl(q1, line.at(p0)) + (1 - share) * kl(q0, p0)


LINES = [
    Line(),
    Line(1.2, 0.002),
    Line(1.5, 0.005),
    Line(1.5),
    Line(offset=0.001),
    Line(offset=0.125),
    Line(offset=0.5),
]
PASTS = [NONE, ArmCount(50, 0), ArmCount(3_000, 30), ArmCount(100_000, 20), ArmCount(200, 190)]
SIZES = [(1, 1), (9, 1), (19, 1), (2, 12), (6, 6)]
STABLE_RATES = (0.0, 1e-4, 0.001, 0.01, 0.03, 0.1, 0.3, 0.6, 0.9, 1.0)


def chance(requests: int, errors: int, rate: float) -> float:
    return comb(requests, errors) * rate**errors * (1 - rate) ** (requests - errors)


def nulls(claim: Claim) -> list[tuple[float, float]]:
    """Rates (p0, p1) at the border of the hypothesis and within it."""
    pairs = []
    for p0 in STABLE_RATES:
        border = claim.line.at(p0)
        end = 0.0 if claim.bets.above else 1.0
        if border <= 1 or claim.bets.above:
            border = min(border, 1.0)
            pairs += [(p0, border + part * (end - border)) for part in (0.0, 0.01, 0.3, 1.0)]
    return pairs


class TestFairness:
    """By enumeration of every outcome: under the hypothesis no bet has an expected factor above 1."""

    @pytest.mark.parametrize("line", LINES)
    @pytest.mark.parametrize("bets", [WORSE, GOOD_ENOUGH, BELOW], ids=["worse", "good enough", "below"])
    @pytest.mark.parametrize("sizes", SIZES)
    def test_no_bet_gains_under_the_hypothesis(self, line: Line, bets: Bets, sizes: tuple[int, int]) -> None:
        claim = Claim(line, bets, log(100))
        n0, n1 = sizes
        outcomes = [(x0, x1) for x0 in range(n0 + 1) for x1 in range(n1 + 1)]
        for past in PASTS:
            factors = [
                [exp(factor) for factor in log_factors(claim, stable_rate(past), block(1, (n0, x0), (n1, x1)))]
                for x0, x1 in outcomes
            ]
            for p0, p1 in nulls(claim):
                weights = [chance(n0, x0, p0) * chance(n1, x1, p1) for x0, x1 in outcomes]
                for bet in zip(*factors, strict=True):
                    assert sum(w * factor for w, factor in zip(weights, bet, strict=True)) <= 1 + 1e-9

    @pytest.mark.parametrize(
        "claim",
        [worse_claim(POLICY), gate_claim(POLICY, 20), gate_claim(POLICY, 100), excess.claim(0.001)],
        ids=["worse", "gate 20", "gate 100", "excess"],
    )
    def test_evidence_gains_nothing_whatever_came_before(self, claim: Claim) -> None:
        """The whole step, stakes from the reserve and all: 45 earlier requests of the candidate make one due."""
        process, stable, candidate = EProcess(opened(claim).log_capital), NONE, NONE
        for past in [block(1, (30, 1), (10, 1)), block(2, (40, 0), (25, 0)), block(3, (60, 5), (10, 1))]:
            process = replace(updated(process, claim, past, stable, candidate), proven=None)
            stable = ArmCount(stable.requests + past.stable.requests, stable.errors + past.stable.errors)
            candidate = ArmCount(candidate.requests + past.candidate.requests, 0)
        for p0, p1 in nulls(claim):
            expected = sum(
                chance(12, x0, p0)
                * chance(6, x1, p1)
                * exp(updated(process, claim, block(4, (12, x0), (6, x1)), stable, candidate).log_e)
                for x0 in range(13)
                for x1 in range(7)
            )
            assert expected <= exp(process.log_e) * (1 + 1e-9)

    def test_the_border_is_where_betting_is_just_fair(self) -> None:
        """At the bet's own nearest point the expectation is 1, so the enumeration above has no slack to hide in."""
        q0, q1 = 0.01, 0.05
        p0 = nearest(Line(1.5, 0.005), q0, q1, 0.25)
        total = sum(
            chance(6, x0, p0)
            * chance(2, x1, 1.5 * p0 + 0.005)
            * exp(log_factor(Line(1.5, 0.005), q0, q1, ArmCount(6, x0), ArmCount(2, x1)))
            for x0 in range(7)
            for x1 in range(3)
        )
        assert total == pytest.approx(1.0, abs=1e-12)
