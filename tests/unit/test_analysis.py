"""The error-rate analysis: known values, fairness by exact enumeration, and what holds for any blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import comb, exp, log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from monitoring.analysis import (
    EXCESS_CLAIMS,
    EXCESSES,
    AnalysisPolicy,
    Evidence,
    Verdict,
    fold,
    gate_claim,
    judge,
    smallest_excluded,
    worse_claim,
)
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

POLICY = AnalysisPolicy()
STEPS = (5, 20, 50, 100)
FRESH = Evidence.start(POLICY, STEPS)


def block(number: int, stable: tuple[int, int], candidate: tuple[int, int]) -> Block:
    """Arms as (requests, errors)."""
    return Block(number, "r1", 0, float(number), float(number + 1), ArmCount(*stable), ArmCount(*candidate))


def blocks(count: int, stable: tuple[int, int], candidate: tuple[int, int], first: int = 1) -> list[Block]:
    return [block(number, stable, candidate) for number in range(first, first + count)]


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


NONE = ArmCount()


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
        [worse_claim(POLICY), gate_claim(POLICY, 20), gate_claim(POLICY, 100), EXCESS_CLAIMS[0]],
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


class TestVerdicts:
    def test_no_block_no_verdict(self) -> None:
        said = judge(POLICY, FRESH, 20)
        assert said.verdict is Verdict.MORE
        assert said.reason == "No requests of both revisions to compare yet"
        assert (said.progress, said.margin95) == (0.0, None)

    def test_a_dead_candidate_fails_after_a_few_requests(self) -> None:
        evidence = fold(POLICY, FRESH, blocks(4, (19, 0), (1, 1)))
        said = judge(POLICY, evidence, 20)
        assert said.verdict is Verdict.FAIL
        assert said.log_e_worse >= said.log_threshold_worse == pytest.approx(log(100))
        assert "4 of 4 requests failed (100.00%) of the candidate" in said.reason
        assert "0 of 76 requests failed (0.00%) of the stable revision" in said.reason

    def test_one_failure_is_not_enough(self) -> None:
        evidence = fold(POLICY, FRESH, [*blocks(3, (19, 0), (1, 0)), block(4, (19, 0), (1, 1))])
        assert judge(POLICY, evidence, 20).verdict is Verdict.MORE

    def test_an_outage_of_both_is_nobodys_fault(self) -> None:
        evidence = fold(POLICY, FRESH, [*blocks(50, (18, 0), (2, 0)), *blocks(200, (18, 18), (2, 2), first=51)])
        assert judge(POLICY, evidence, 100).verdict is not Verdict.FAIL

    def test_each_weight_asks_for_more_than_the_one_before(self) -> None:
        passed_after = []
        for weight in (20, 50, 100):
            evidence = FRESH
            while judge(POLICY, evidence, weight).verdict is Verdict.MORE:
                evidence = fold(POLICY, evidence, [block(evidence.block + 1, (18, 0), (2, 0))])
            assert judge(POLICY, evidence, weight).verdict is Verdict.PASS
            passed_after.append(evidence.candidate.requests)
        assert passed_after == sorted(passed_after)
        assert 20 <= passed_after[0] <= 60
        assert 600 <= passed_after[2] <= 1_000  # ln 20 / 0.005 is the least without a single error

    def test_failing_comes_before_passing(self) -> None:
        good = fold(POLICY, FRESH, blocks(100, (18, 0), (2, 0)))
        assert judge(POLICY, good, 20).verdict is Verdict.PASS
        then_dead = fold(POLICY, good, blocks(10, (18, 0), (2, 2), first=101))
        assert judge(POLICY, then_dead, 20).verdict is Verdict.FAIL

    def test_what_is_proven_stays_proven(self) -> None:
        dead = fold(POLICY, FRESH, blocks(4, (19, 0), (1, 1)))
        later = fold(POLICY, dead, blocks(3_000, (19, 1), (1, 0), first=5))
        assert later.worse == dead.worse
        assert judge(POLICY, later, 20).verdict is Verdict.FAIL

    def test_a_weight_between_the_steps_is_judged_by_the_next_one(self) -> None:
        evidence = fold(POLICY, FRESH, blocks(20, (18, 0), (2, 0)))
        assert judge(POLICY, evidence, 35) == judge(POLICY, evidence, 50)
        assert judge(POLICY, evidence, 5) == judge(POLICY, evidence, 20)

    def test_progress_rises_from_nothing_to_all(self) -> None:
        evidence, seen = FRESH, [0.0]
        while seen[-1] < 1:
            evidence = fold(POLICY, evidence, [block(evidence.block + 1, (18, 0), (2, 0))])
            seen.append(judge(POLICY, evidence, 20).progress)
        assert seen == sorted(seen)
        assert all(0 <= progress < 1 for progress in seen[:-1])

    def test_a_worse_candidate_is_described_as_far_as_it_is_known(self) -> None:
        evidence = fold(POLICY, FRESH, blocks(40, (90, 1), (90, 4)))  # 1.1 % and 4.4 %
        said = judge(POLICY, evidence, 100)
        assert said.verdict is Verdict.FAIL
        assert said.margin95 is not None
        assert 0.033 < said.margin95 <= 0.06

    def test_excluded_excess_shrinks_to_the_truth(self) -> None:
        found = [smallest_excluded(fold(POLICY, FRESH, blocks(n, (50, 0), (50, 0)))) for n in (0, 1, 2, 10, 100)]
        assert found[0] is None
        known = [excess for excess in found if excess is not None]
        assert known == sorted(known, reverse=True)
        assert known[-1] == EXCESSES[0]

    def test_an_excess_counts_only_with_every_larger_one(self) -> None:
        proven = replace(FRESH.excesses[0], proven=3)
        assert smallest_excluded(replace(FRESH, excesses=(proven, *FRESH.excesses[1:]))) is None

    @pytest.mark.parametrize(
        ("steps", "weights"),
        [((5, 20, 50, 100), [20, 50, 100]), ((100,), [100]), ((10, 50), [50, 100]), ((1, 2, 100), [2, 100])],
    )
    def test_a_gate_per_weight_after_the_first(self, steps: tuple[int, ...], weights: list[int]) -> None:
        assert [gate.weight for gate in Evidence.start(POLICY, steps).gates] == weights

    @pytest.mark.parametrize(
        ("weight", "line"),
        [(2, Line(offset=0.5)), (10, Line(offset=0.25)), (50, Line(offset=0.05)), (100, Line(1.5, 0.005))],
    )
    def test_lines_of_the_gates(self, weight: int, line: Line) -> None:
        assert gate_claim(POLICY, weight).line == line

    @pytest.mark.parametrize(
        ("setting", "value"),
        [
            ("alpha_rollback", 0.0),
            ("alpha_promote", 1.0),
            ("exposure", 2.5),
            ("margin_ratio", -0.1),
            ("margin_points", 1.0),
            ("margin_points", -0.01),
            ("margin_ratio", float("nan")),
        ],
    )
    def test_impossible_policies_are_refused_by_name(self, setting: str, value: float) -> None:
        with pytest.raises(ValueError, match=setting):
            AnalysisPolicy(**{setting: value})

    def test_a_margin_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="an equal candidate would never pass"):
            AnalysisPolicy(margin_ratio=0.0, margin_points=0.0)


counts = st.integers(0, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n)))
streams = st.lists(st.tuples(counts, counts), max_size=12).map(
    lambda rows: [block(number, *row) for number, row in enumerate(rows, start=1)]
)


def of_one_arm(rows: Sequence[Block], stable: bool) -> list[Block]:
    return [
        replace(row, stable=row.stable if stable else NONE, candidate=NONE if stable else row.candidate) for row in rows
    ]


class TestAnyBlocks:
    @given(streams, st.data())
    def test_how_the_blocks_are_handed_over_does_not_matter(self, stream: list[Block], data: st.DataObject) -> None:
        cut = data.draw(st.integers(0, len(stream)))
        whole = fold(POLICY, FRESH, stream)
        assert fold(POLICY, fold(POLICY, FRESH, stream[:cut]), stream[cut:]) == whole
        assert fold(POLICY, fold(POLICY, FRESH, stream[:cut]), stream) == whole
        assert fold(POLICY, whole, stream) == whole

    @given(streams)
    @settings(max_examples=50)
    def test_evidence_survives_json_to_the_last_bit(self, stream: list[Block]) -> None:
        evidence = fold(POLICY, FRESH, stream)
        adapter = TypeAdapter(Evidence)
        text = adapter.dump_json(evidence)
        assert adapter.validate_json(text) == evidence
        assert len(text) < 10_000
        assert json.loads(json.dumps(asdict(evidence), allow_nan=False)) == json.loads(text)

    @given(streams, st.booleans(), st.sampled_from([20, 50, 100]))
    def test_one_arm_alone_never_gives_a_verdict(self, stream: list[Block], stable: bool, weight: int) -> None:
        evidence = fold(POLICY, FRESH, of_one_arm(stream, stable))
        said = judge(POLICY, evidence, weight)
        assert said.verdict is Verdict.MORE
        assert said.margin95 is None
        assert said.progress == pytest.approx(0.0, abs=1e-12)

    @given(streams, st.sampled_from([20, 50, 100]))
    def test_the_numbers_fit_the_verdict(self, stream: list[Block], weight: int) -> None:
        said = judge(POLICY, fold(POLICY, FRESH, stream), weight)
        worse = said.log_e_worse >= said.log_threshold_worse
        good_enough = said.log_e_ok >= said.log_threshold_ok
        assert said.verdict is (Verdict.FAIL if worse else Verdict.PASS if good_enough else Verdict.MORE)
        assert 0 <= said.progress <= 1
        assert (said.progress == 1) is good_enough
        assert said.stable.requests == sum(row.stable.requests for row in stream)
        assert said.candidate.errors == sum(row.candidate.errors for row in stream)

    @given(counts, counts)
    def test_huge_and_hopeless_blocks_stay_finite(self, stable: tuple[int, int], candidate: tuple[int, int]) -> None:
        big = [
            block(1, (10_000_000, 10_000_000), (10_000_000, 0)),
            block(2, (10_000_000, 0), (10_000_000, 10_000_000)),
            block(3, stable, candidate),
        ]
        for order in (big, [replace(row, id=4 - row.id) for row in reversed(big)]):
            json.dumps(asdict(fold(POLICY, FRESH, order)), allow_nan=False)
