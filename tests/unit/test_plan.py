"""How many requests a rollout is said to need."""

from __future__ import annotations

from math import log

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Seen
from monitoring.eprocess import Line
from monitoring.plan import Plan, StepPlan, growth, plan
from monitoring.rate_evidence import gate_claim
from monitoring.ruler import LEAST
from monitoring.usual import Usual, usual

POLICY = AnalysisPolicy()
STEPS = (5, 20, 50, 100)


LATENCIES = ((0.5, 0.3), (0.05, 0.03))
"""Shares of requests beyond the median and the 95th percentile, before and after the margin."""


def planned(
    base: float = 0.01,
    rate: float | None = None,
    policy: AnalysisPolicy = POLICY,
    slow: tuple[tuple[float, float], ...] = LATENCIES,
    refused: float = 0.0,
) -> Plan:
    return plan(policy, STEPS, Usual(base, refused, slow), rate, 60.0)


class TestGrowth:
    def test_with_hardly_any_candidate_requests_it_is_the_divergence_from_the_margin(self) -> None:
        known = 0.01 * log(0.01 / 0.02) + 0.99 * log(0.99 / 0.98)
        assert growth(Line(1.5, 0.005), 0.01, 1e-6) == pytest.approx(known, rel=1e-3)

    def test_the_stable_arm_has_to_be_learnt_too(self) -> None:
        shares = (0.05, 0.2, 0.5, 0.8)
        rates = [growth(Line(1.5, 0.005), 0.01, share) for share in shares]
        assert rates == sorted(rates, reverse=True)

    def test_without_errors_it_is_the_rule_of_three(self) -> None:
        # log(1/0.05) / 0.005 = 600 clean requests exclude half a percent
        assert log(20) / growth(Line(offset=0.005), 0.0, 0.05) == pytest.approx(log(20) / 0.005, rel=0.01)

    @pytest.mark.parametrize("rate", [0.0, 1.0])
    def test_never_and_always_have_a_finite_answer(self, rate: float) -> None:
        assert 0 < growth(Line(offset=0.05), rate, 0.5) < 1_000


class TestPlan:
    def test_one_step_by_hand(self) -> None:
        found = plan(POLICY, (5, 100), Usual(0.01), None, 60.0)
        needed = 1.2 * log(20) / growth(gate_claim(POLICY, 100).line, 0.01, 0.05)
        assert found.candidate_requests == pytest.approx(needed, abs=1)
        assert found.requests == pytest.approx(20 * needed, abs=20)
        assert found.seconds is None

    @pytest.mark.parametrize(
        ("base", "least", "most"), [(0.0, 600, 900), (0.001, 900, 1_400), (0.01, 1_600, 2_600), (0.05, 800, 1_500)]
    )
    def test_candidate_requests_of_the_default_policy(self, base: float, least: int, most: int) -> None:
        assert least <= planned(base).candidate_requests <= most

    def test_steps_are_all_but_the_last(self) -> None:
        assert [step.weight for step in planned().steps] == [5, 20, 50]

    def test_sums_are_the_sums_of_the_steps(self) -> None:
        found = planned(rate=3.2)
        assert found.requests == sum(step.requests for step in found.steps)
        assert found.candidate_requests == sum(step.candidate_requests for step in found.steps)
        assert found.seconds == pytest.approx(sum(step.seconds or 0 for step in found.steps))

    def test_what_one_step_brought_the_next_need_not_bring_again(self) -> None:
        alone = plan(POLICY, (50, 100), Usual(0.01), None, 60.0).candidate_requests
        assert planned().steps[-1].candidate_requests < alone

    def test_fast_traffic_waits_for_the_least_time_of_a_step(self) -> None:
        found = planned(rate=200.0)
        assert found.steps == (
            StepPlan(5, 12_000, 600, 60.0),
            StepPlan(20, 12_000, 2_400, 60.0),
            StepPlan(50, 12_000, 6_000, 60.0),
        )

    def test_slow_traffic_takes_its_requests_time(self) -> None:
        found = planned(rate=0.5)
        assert found.seconds == pytest.approx(planned().requests / 0.5, rel=0.01)

    @pytest.mark.parametrize("rate", [None, 0.0])
    def test_without_traffic_no_time_is_promised(self, rate: float | None) -> None:
        found = planned(rate=rate)
        assert found.seconds is None
        assert "at" in found.sentence
        assert "/s" not in found.sentence

    @pytest.mark.parametrize(("base", "passable"), [(0.0, 0.005), (0.01, 0.02), (0.9, 1.0)])
    def test_what_may_be_promoted(self, base: float, passable: float) -> None:
        assert planned(base).passable == pytest.approx(passable)

    def test_a_wider_margin_is_cheaper(self) -> None:
        wide = AnalysisPolicy(margin_points=0.01)
        assert planned(policy=wide).requests < planned().requests

    def test_all_at_once_compares_nothing(self) -> None:
        found = plan(POLICY, (100,), Usual(0.01), 3.0, 60.0)
        assert (found.steps, found.requests) == ((), 0)
        assert "nothing is compared" in found.sentence

    def test_what_is_refused_more_often_than_it_fails_decides(self) -> None:
        found = planned(0.0001, refused=0.02)
        assert {step.metric for step in found.steps} == {"refusals"}
        assert found.requests == planned(0.02).requests
        assert "for refusals" in found.sentence

    def test_latencies_that_differ_much_need_most_requests(self) -> None:
        found = planned(0.001, slow=((0.5, 0.46), (0.05, 0.049)))
        assert [step.metric for step in found.steps] == ["errors", "errors", "latency"]
        assert found.requests > 1.5 * planned(0.001).requests
        assert "at 50 % for latency" in found.sentence

    def test_latencies_by_which_no_candidate_passes_are_told(self) -> None:
        found = planned(slow=((0.5, 0.4), (0.05, 0.08)))
        assert ["latency_tail_points" in warning for warning in found.warnings] == [True]
        assert not planned().warnings
        relaxed = AnalysisPolicy(require_latency=False)
        assert not planned(policy=relaxed, slow=((0.5, 0.4), (0.05, 0.08))).warnings

    def test_latencies_that_are_not_known_are_told(self) -> None:
        assert ["not known" in warning for warning in planned(slow=()).warnings] == [True]

    def test_a_step_that_is_hardly_decided_in_its_time_is_told(self) -> None:
        slow = plan(POLICY, STEPS, Usual(0.01, slow=LATENCIES), 0.5, 60.0, 3600.0)
        assert ["step at 50 %" in warning and "step_max" in warning for warning in slow.warnings] == [True]
        assert not plan(POLICY, STEPS, Usual(0.01, slow=LATENCIES), 50.0, 60.0, 3600.0).warnings

    def test_bursts_are_told_with_the_time_that_windows_take(self) -> None:
        found = plan(POLICY, STEPS, Usual(0.01, slow=LATENCIES, bursts=4.0), 50.0, 60.0)
        assert ["bursts" in warning and " h with traffic" in warning for warning in found.warnings] == [True]

    @given(
        base=st.floats(0, 1),
        rate=st.none() | st.floats(0.001, 10_000),
        steps=st.sets(st.integers(1, 99), max_size=5).map(lambda weights: (*sorted(weights), 100)),
    )
    def test_every_plan_is_finite_and_possible(self, base: float, rate: float | None, steps: tuple[int, ...]) -> None:
        found = plan(POLICY, steps, Usual(base), rate, 60.0)
        assert len(found.steps) == len(steps) - 1
        for step in found.steps:
            assert 0 <= step.candidate_requests <= step.requests
            assert step.seconds is None or step.seconds >= 60


@pytest.mark.parametrize(
    ("base", "rate", "sentence"),
    [
        (
            0.01,
            3.2,
            "About 5,000 requests (26 min at 3.2/s): 680 at 5 %, 380 at 20 %, 3,900 at 50 %; "
            "error rates up to 2 % (now 1 %) may be promoted",
        ),
        (
            0.001,
            None,
            "About 2,900 requests: 560 at 5 %, 240 at 20 %, 2,100 at 50 %; "
            "error rates up to 0.65 % (now 0.1 %) may be promoted",
        ),
        (
            0.001,
            150.0,
            "About 27,000 requests (3 min at 150/s): 9,000 at 5 %, 9,000 at 20 %, 9,000 at 50 %; "
            "error rates up to 0.65 % (now 0.1 %) may be promoted",
        ),
    ],
)
def test_the_sentence(base: float, rate: float | None, sentence: str) -> None:
    assert planned(base, rate).sentence == sentence


class TestUsual:
    def test_too_few_requests_say_nothing(self) -> None:
        assert usual(POLICY, [Seen(1.0)] * (LEAST - 1), Usual(0.3)) == Usual(0.3)

    def test_shares_are_counted(self) -> None:
        seen = [Seen(float(n), error=n % 10 == 0, refused=n % 4 == 1) for n in range(1000)]
        found = usual(POLICY, seen, Usual(0.3))
        assert (found.errors, found.refused) == (0.1, 0.25)

    def test_latencies_are_those_of_an_equal_candidate_with_what_is_tolerated_taken_off(self) -> None:
        found = usual(AnalysisPolicy(latency_slack_ms=0.0), [Seen(float(n + 1)) for n in range(1000)], Usual(0.0))
        # beyond the median, 500, are 500 of 1000; after a division by 1.25 those above 625
        assert found.slow == ((0.5, 0.375), (0.05, 0.0))
