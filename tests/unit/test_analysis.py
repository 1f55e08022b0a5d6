"""The error-rate analysis: verdicts as tables, and what holds for any blocks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from math import log

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter

from monitoring.analysis import Evidence, fold
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block
from monitoring.eprocess import Line
from monitoring.excess import FINE, Excess
from monitoring.judgement import Verdict, judge
from monitoring.rate_evidence import gate_claim

POLICY = AnalysisPolicy(require_latency=False)
STEPS = (5, 20, 50, 100)
NONE = ArmCount()
FRESH = Evidence.start(POLICY, STEPS)


def block(number: int, stable: tuple[int, int], candidate: tuple[int, int]) -> Block:
    """Arms as (requests, errors), at a step whose weight nobody knows, so that any split will do."""
    return Block(number, "r1", 9, float(number), float(number + 1), ArmCount(*stable), ArmCount(*candidate))


def blocks(count: int, stable: tuple[int, int], candidate: tuple[int, int], first: int = 1) -> list[Block]:
    return [block(number, stable, candidate) for number in range(first, first + count)]


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
        assert "3 of 3 requests failed (100.00%) of the candidate" in said.reason
        assert "0 of 57 requests failed (0.00%) of the stable revision" in said.reason

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
        assert later.errors == dead.errors
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
        assert 0.033 < said.margin95 <= 0.1

    def test_excluded_excess_shrinks_to_the_truth(self) -> None:
        found = [fold(POLICY, FRESH, blocks(n, (50, 0), (50, 0))).errors.excess.smallest() for n in (0, 1, 2, 10, 100)]
        assert found[0] is None
        known = [excess for excess in found if excess is not None]
        assert known == sorted(known, reverse=True)
        assert known[-1] == FINE[0]

    def test_an_excess_counts_only_with_every_larger_one(self) -> None:
        first, *rest = FRESH.errors.excess.processes
        assert Excess((replace(first, proven=3), *rest)).smallest() is None

    @pytest.mark.parametrize(
        ("steps", "weights"),
        [((5, 20, 50, 100), [20, 50, 100]), ((100,), [100]), ((10, 50), [50, 100]), ((1, 2, 100), [2, 100])],
    )
    def test_a_gate_per_weight_after_the_first(self, steps: tuple[int, ...], weights: list[int]) -> None:
        assert [gate.weight for gate in Evidence.start(POLICY, steps).errors.gates] == weights

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
            AnalysisPolicy(**{setting: value})  # type: ignore[arg-type]

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
        assert len(text) < 15_000
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
        passes = good_enough and not said.alarms
        assert said.verdict is (Verdict.FAIL if worse else Verdict.PASS if passes else Verdict.MORE)
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
