"""The promises of the error-rate analysis, in seeded simulations small enough for every run of the tests.

The limits are the design's, with room for the fewer runs: where the true figure is at its promise, a test
fails by chance in fewer than one of a hundred choices of the seed. `benchmarks.canary_errors` runs more.
"""

from __future__ import annotations

from statistics import fmean

import pytest

from benchmarks.canary_errors import (
    DEAD,
    POLICY,
    STEPS,
    effort_to_promote,
    failed_after_late_onset,
    failed_before_rollback,
    false_promotions,
    false_rollbacks,
    good_rollouts,
    percentile95,
    rising_rollouts,
    seconds_per_block,
)
from monitoring.judgement import Verdict
from monitoring.plan import plan
from monitoring.usual import Usual


@pytest.mark.parametrize(("rate", "weight"), [(0.001, 5), (0.01, 50), (0.05, 20)])
def test_an_equal_candidate_is_rarely_taken_back(rate: float, weight: int) -> None:
    """One in a hundred at most; of 100, six or more would come once in 2,000 at that level."""
    assert false_rollbacks(100, rate, weight, total=40_000) <= 5


def test_five_times_the_errors_cost_a_dozen_failed_requests() -> None:
    assert fmean(failed_before_rollback(120, 0.01, 0.05, weight=5)) <= 12


@pytest.mark.parametrize(("weight", "mean", "p95"), [(5, 4, 6), (50, 12, 18)])
def test_a_dead_candidate_is_taken_back_at_once(weight: int, mean: float, p95: float) -> None:
    failed = failed_before_rollback(200, 0.01, DEAD, weight)
    assert fmean(failed) <= mean
    assert percentile95(failed) <= p95


@pytest.mark.parametrize(("rate", "weight"), [(0.001, 5), (0.01, 20), (0.05, 50)])
def test_promotion_takes_little_more_than_the_least_possible(rate: float, weight: int) -> None:
    assert effort_to_promote(40, rate, weight) <= 1.6


def test_a_candidate_at_the_margin_is_rarely_promoted() -> None:
    """One in twenty at most; of 120, fourteen or more would come once in 200 at that level."""
    assert false_promotions(120, 0.01, 0.02, weight=20, total=10_000) <= 13


def test_a_candidate_beyond_the_margin_is_hardly_ever_promoted() -> None:
    assert false_promotions(120, 0.01, 0.03, weight=20, total=10_000) <= 8
    assert false_promotions(120, 0.01, 0.20, weight=20, total=10_000) == 0
    assert false_promotions(120, 0.01, DEAD, weight=20, total=10_000) == 0


def test_dying_late_is_found_nearly_as_fast() -> None:
    assert percentile95(failed_after_late_onset(60, weight=5)) <= 25


def test_good_rollouts_end_promoted_and_about_when_planned() -> None:
    endings = good_rollouts(15, 0.01)
    assert sum(ending.verdict is Verdict.PASS for ending in endings) >= 14
    planned = plan(POLICY, STEPS, Usual(0.01), 20.0, 60.0).requests
    assert 0.5 * planned <= fmean(ending.requests for ending in endings) <= 1.5 * planned


def test_a_rising_error_rate_of_both_is_not_the_candidates_fault() -> None:
    assert sum(ending.verdict is Verdict.FAIL for ending in rising_rollouts(15, 1.0)) <= 1
    assert sum(ending.verdict is Verdict.FAIL for ending in rising_rollouts(15, 3.0)) >= 14


def test_a_block_costs_far_less_than_five_milliseconds() -> None:
    assert seconds_per_block(300) < 0.005
