"""What is watched beside the candidate: the split, and the stable revision's own health; and what is said of both."""

from __future__ import annotations

from dataclasses import replace

import pytest

from monitoring.analysis import Evidence, fold
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import CUTS, LEVELS, ArmCount, Block, Latencies
from monitoring.judgement import Verdict, judge
from monitoring.split_evidence import SplitEvidence
from monitoring.stable_health import StableHealth

POLICY = AnalysisPolicy(require_latency=False)
FRESH = Evidence.start(POLICY, (10, 50, 100))


def block(number: int, stable: ArmCount, candidate: ArmCount, step: int = 0) -> Block:
    return Block(number, "r", step, float(number), number + 1.0, stable, candidate)


def blocks(count: int, stable: ArmCount, candidate: ArmCount, first: int = 1, step: int = 0) -> list[Block]:
    return [block(number, stable, candidate, step) for number in range(first, first + count)]


class TestSplit:
    def test_what_is_asked_is_no_alarm_and_a_third_more_is(self) -> None:
        right = fold(POLICY, FRESH, blocks(500, ArmCount(9), ArmCount(1)))
        wrong = fold(POLICY, FRESH, blocks(500, ArmCount(87), ArmCount(13)))
        assert judge(POLICY, right, 50).alarms == ()
        (alarm,) = judge(POLICY, wrong, 50).alarms
        assert alarm == "the split is not what was asked: the candidate gets 13.0% of the requests instead of 10 %"

    def test_it_holds_up_and_takes_nothing_back(self) -> None:
        wrong = fold(POLICY, FRESH, blocks(500, ArmCount(87), ArmCount(13)))
        said = judge(POLICY, wrong, 50)
        assert (said.verdict, said.progress) == (Verdict.MORE, 1.0)
        assert said.reason.startswith("Held up: the split")

    def test_a_step_is_judged_by_itself(self) -> None:
        evidence = SplitEvidence()
        for told in blocks(300, ArmCount(80), ArmCount(20)):
            evidence = evidence.after(10, told)
        assert evidence.off
        assert not evidence.after(50, block(301, ArmCount(5), ArmCount(5), step=1)).off

    def test_a_weight_that_nobody_knows_is_not_judged(self) -> None:
        evidence = fold(POLICY, FRESH, blocks(100, ArmCount(50), ArmCount(50), step=9))
        assert judge(POLICY, evidence, 50).alarms == ()


class TestHealth:
    def test_trouble_of_the_stable_revision_holds_up_until_it_is_over(self) -> None:
        bad = fold(POLICY, FRESH, blocks(20, ArmCount(9, 6), ArmCount(1)))
        (alarm,) = judge(POLICY, bad, 50).alarms
        assert alarm == "the stable revision itself fails on more than 20% of its requests"
        assert judge(POLICY, bad, 50).verdict is Verdict.MORE
        mended = fold(POLICY, bad, blocks(60, ArmCount(9), ArmCount(1), first=21))
        assert judge(POLICY, mended, 50).alarms == ()

    @pytest.mark.parametrize("errors", [0, 1])
    def test_the_usual_errors_are_no_trouble(self, errors: int) -> None:
        health = StableHealth()
        for _ in range(5_000):
            health = health.after(0.2, ArmCount(9, errors))
        assert not health.alarm


def timed(number: int, slow: int) -> Block:
    """Nineteen stable requests, evenly fast and slow, and ten of the candidate of which `slow` are the slowest."""
    stable = Latencies((1,) * 19 + (0,) * (LEVELS - 19), (9, 2, 1, 0), (9, 2, 1, 0))
    ranks = (10 - slow,) + (0,) * (LEVELS - 2) + (slow,)
    return replace(
        block(number, ArmCount(), ArmCount(), step=9),
        latency=(stable, Latencies(ranks, (slow,) * len(CUTS), (slow,) * len(CUTS))),
    )


class TestLatency:
    def test_a_slow_candidate_is_taken_back_by_its_latencies_alone(self) -> None:
        evidence = fold(POLICY, FRESH, [timed(number, 10) for number in range(1, 6)])
        said = judge(POLICY, evidence, 50)
        assert said.verdict is Verdict.FAIL
        assert "slower than the stable revision by more than 10% and 2 ms" in said.reason
        assert "100.0% of the candidate's requests" in said.reason

    def test_a_promotion_asks_for_proof_of_both_the_middle_and_the_tail(self) -> None:
        policy = AnalysisPolicy()
        counted = fold(policy, Evidence.start(policy, (10, 50, 100)), blocks(3_000, ArmCount(9), ArmCount(1)))
        assert judge(policy, counted, 50).verdict is Verdict.PASS
        before = judge(policy, counted, 100)
        assert (before.verdict, before.progress) == (Verdict.MORE, 0.0)
        assert "not slower than the stable revision by more than 25% and 2 ms" in before.reason
        fast = fold(policy, counted, [timed(number, 0) for number in range(3_001, 3_101)])
        assert judge(policy, fast, 100).verdict is Verdict.PASS


def test_every_metric_is_read_with_its_weight() -> None:
    readings = judge(POLICY, fold(POLICY, FRESH, blocks(50, ArmCount(9, 0, 1), ArmCount(1))), 100).metrics
    assert {reading.name: reading.weight for reading in readings} == {
        "errors": 0.3,
        "refusals": 0.1,
        "latency": 0.4,
        "predictions": 0.2,
    }
    refusals = next(reading for reading in readings if reading.name == "refusals")
    assert (refusals.stable.errors, refusals.stable.requests) == (50, 450)


class TestPredictions:
    def test_a_small_difference_is_told_and_held_against_nobody(self) -> None:
        told = [
            replace(one, predictions=((20.0, 60.0), (8.0, 12.0))) for one in blocks(200, ArmCount(80), ArmCount(20))
        ]
        policy = replace(POLICY, prediction_distance=0.3)
        evidence = fold(policy, Evidence.start(policy, (20, 50, 100)), told)
        said = judge(policy, evidence, 50)
        assert said.verdict is Verdict.PASS
        (remark,) = said.remarks
        assert remark.startswith("some predictions are others than the stable revision's (1,000,000 to 1, 100 to 1")

    def test_none_is_told_where_there_is_none(self) -> None:
        told = [
            replace(one, predictions=((20.0, 60.0), (5.0, 15.0))) for one in blocks(200, ArmCount(80), ArmCount(20))
        ]
        assert judge(POLICY, fold(POLICY, FRESH, told), 50).remarks == ()


class TestLimit:
    def test_what_takes_longer_than_it_should_counts_beside_the_stable_revision(self) -> None:
        policy = replace(POLICY, latency_slo_ms=500.0)
        same = Latencies((5,) * LEVELS, (80, 16, 8, 2), (80, 16, 8, 2), 1)
        for over, verdict in ((1, Verdict.PASS), (9, Verdict.FAIL)):
            arms = (same, replace(same, over=over))
            told = [replace(one, latency=arms) for one in blocks(100, ArmCount(160), ArmCount(160))]
            said = judge(policy, fold(policy, Evidence.start(policy, (50, 100)), told), 100)
            assert said.verdict is verdict
        assert said.reason.startswith("Worse: slower than the stable revision")
        assert said.reason.partition(" (")[0].endswith(", 5.6% and 0.6% longer than 500 ms")
        assert len(fold(policy, Evidence.start(policy, (50, 100)), told).latency.slower) == 5

    def test_without_a_limit_it_is_not_looked_at(self) -> None:
        latencies = Latencies((5,) * LEVELS, (80, 16, 8, 2), (80, 16, 8, 2), 9)
        arms = (replace(latencies, over=1), latencies)
        told = [replace(one, latency=arms) for one in blocks(100, ArmCount(160), ArmCount(160))]
        said = judge(POLICY, fold(POLICY, Evidence.start(POLICY, (50, 100)), told), 100)
        assert said.verdict is Verdict.PASS
        assert "longer than" not in said.reason


def test_every_metric_but_predictions_tells_by_how_much_it_can_be_worse() -> None:
    latencies = Latencies((5,) * LEVELS, (80, 16, 8, 2), (80, 16, 8, 2))
    told = [replace(one, latency=(latencies,) * 2) for one in blocks(200, ArmCount(160), ArmCount(160))]
    said = judge(POLICY, fold(POLICY, Evidence.start(POLICY, (50, 100)), told), 100)
    margins = {reading.name: reading.margin95 for reading in said.metrics}
    assert margins == {"errors": 0.001, "refusals": 0.005, "latency": 0.01, "predictions": None}
