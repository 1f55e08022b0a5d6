"""When failures are taken to come in bursts, and that windows of them count as one unit."""

from __future__ import annotations

from dataclasses import replace
from math import log
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from monitoring.analysis import Evidence, fold
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import LEVELS, ArmCount, Block, Latencies, Seen
from monitoring.bursts import Bursts, Spread, as_unit, spread_of
from monitoring.eprocess import Line, Pair, Tally, log_factor
from monitoring.judgement import Verdict, judge

POLICY = AnalysisPolicy()


def spread(windows: list[tuple[int, int]]) -> Spread:
    found = Spread()
    for requests, errors in windows:
        found = found.after(requests, errors)
    return found


def by_chance(chance: Random, requests: int, rate: float) -> int:
    return sum(chance.random() < rate for _ in range(requests))


class TestSpread:
    @pytest.mark.parametrize(("rate", "requests"), [(0.001, 50), (0.01, 200), (0.05, 20), (0.3, 20)])
    def test_independent_failures_are_hardly_ever_bursts_however_often_one_looks(
        self, rate: float, requests: int
    ) -> None:
        found = 0
        for chance in map(Random, range(60)):
            seen = Spread()
            for _ in range(60):
                seen = seen.after(requests, by_chance(chance, requests, rate))
                if seen.ratio > POLICY.burst_limit:
                    found += 1
                    break
        assert found <= 1

    def test_a_rate_that_rises_slowly_is_no_burst(self) -> None:
        found = [
            spread([(200, by_chance(chance, 200, 0.005 + 0.045 * n / 60)) for n in range(60)]).ratio
            for chance in map(Random, range(60))
        ]
        assert max(found) <= POLICY.burst_limit

    def test_a_replica_that_fails_for_two_seconds_now_and_then_is(self) -> None:
        windows = [(100, 20 if number % 12 == 5 else 0) for number in range(60)]
        assert spread(windows).ratio > 10

    @pytest.mark.parametrize("windows", [[], [(10, 5)], [(10, 10)] * 60, [(10, 0)] * 60, [(100, 0), (100, 50)] * 10])
    def test_what_says_too_little_is_no_burst(self, windows: list[tuple[int, int]]) -> None:
        assert spread(windows).ratio == 1.0

    def test_windows_without_requests_say_nothing(self) -> None:
        windows = [(50, number % 3) for number in range(40)]
        assert spread([one for window in windows for one in (window, (0, 0))]) == spread(windows)

    def test_replicas_are_not_each_others_neighbours(self) -> None:
        calm = [Seen(1.0, at=1000.0 + n, error=n % 10 == 0, host="calm") for n in range(300)]
        down = [Seen(1.0, at=1000.0 + n, error=True, host="down") for n in range(300)]
        assert spread_of([*calm, *down]).ratio < POLICY.burst_limit
        assert spread_of([*calm, *down]).pairs == 58

    def test_requests_are_counted_by_replica_and_window(self) -> None:
        seen = [
            Seen(1.0, at=1000.0 + n / 10, error=200 <= n % 1000 < 220, host=host) for n in range(6000) for host in "ab"
        ]
        assert spread_of(seen).ratio > 10
        assert spread_of([one._replace(at=0.0) for one in seen]) == Spread()


@given(
    stable=st.tuples(st.integers(1, 50), st.floats(0, 1)),
    candidate=st.tuples(st.integers(1, 50), st.floats(0, 1)),
    point=st.tuples(st.floats(0.01, 0.9), st.floats(0.01, 0.99)),
)
def test_a_unit_says_no_more_than_its_mean_score(
    stable: tuple[int, float], candidate: tuple[int, float], point: tuple[float, float]
) -> None:
    """The mean's factor is a fair bet; the unit's is at most that."""
    arms = [Tally(n, n * share) for n, share in (stable, candidate)]
    unit = as_unit(Pair(1, *arms))
    q0, q1 = point
    if q1 <= q0:
        return
    found = log_factor(Line(), q0, q1, unit.stable, unit.candidate)
    p = (q0 + q1) / 2
    mean = 1.0
    for (_, share), q in ((stable, q0), (candidate, q1)):
        mean *= (1 - share) * (1 - q) / (1 - p) + share * q / p
    assert found <= 1e-9 + log(mean)


class TestEvidence:
    def block(self, number: int, at: float, *, bursts: float | None = None, errors: int = 0) -> Block:
        ranks = Latencies(tuple([0] * (LEVELS - 1) + [10]), (10,) * 4, (10,) * 4)
        arms = (ArmCount(), ArmCount()) if bursts else (ArmCount(10), ArmCount(10, errors))
        latency = None if bursts else (ranks, ranks)
        return Block(number, "r", -1 if bursts else 0, at, at, *arms, latency=latency, bursts=bursts)

    def folded(self, blocks: list[Block], policy: AnalysisPolicy = POLICY) -> Evidence:
        return fold(policy, Evidence.start(policy, (50, 100)), blocks)

    def test_requests_are_the_units_where_nothing_is_known(self) -> None:
        found = self.folded([self.block(n, n / 2, errors=10) for n in range(1, 21)])
        assert found.failed is not None
        assert found.failed <= 2

    def test_windows_are_the_units_after_bursts_were_told(self) -> None:
        blocks = [self.block(1, 0.0, bursts=4.0)] + [self.block(n, n / 2, errors=10) for n in range(2, 42)]
        found = self.folded(blocks)
        assert found.failed is None
        assert (found.errors.units, found.latency.units) == (1, 1), "20 s: the second window is not over"
        assert (found.candidate.requests, found.errors.candidate.requests) == (400, 200)

    def test_a_dead_candidate_is_found_all_the_same(self) -> None:
        blocks = [self.block(1, 0.0, bursts=4.0)] + [self.block(n, n / 2, errors=10) for n in range(2, 402)]
        found = self.folded(blocks)
        assert found.failed is not None
        assert blocks[found.failed - 1].opened <= 100.0, "ten windows"

    def test_what_the_policy_takes_for_chance_changes_nothing(self) -> None:
        blocks = [self.block(1, 0.0, bursts=4.0)] + [self.block(n, n / 2) for n in range(2, 42)]
        calm = replace(POLICY, burst_limit=5.0)
        assert self.folded(blocks, calm).errors == self.folded(blocks[1:], calm).errors

    def test_bursts_of_the_rollout_itself_are_seen(self) -> None:
        """The stable revision fails on everything in one window of six."""
        blocks = [
            replace(self.block(n, n / 2), stable=ArmCount(10, 10 if n // 20 % 6 == 3 else 0)) for n in range(1, 601)
        ]
        found = self.folded(blocks)
        assert found.bursts.ratio is not None
        assert found.errors.units < found.candidate.requests

    def test_it_is_noted_and_holds_nothing_up(self) -> None:
        policy = replace(POLICY, require_latency=False, margin_points=0.4)
        blocks = [self.block(1, 0.0, bursts=4.0)] + [self.block(n, n / 2) for n in range(2, 1202)]
        said = judge(policy, self.folded(blocks, policy), 100)
        assert said.verdict is Verdict.PASS
        assert ["windows of 10 s" in note for note in said.notes] == [True]
        assert not said.alarms
        assert judge(POLICY, self.folded([self.block(1, 0.0)]), 100).notes == ()

    def test_a_window_ends_with_its_step(self) -> None:
        first, over = Bursts().after(1.5, 10.0, self.block(1, 0.0))
        assert over is None
        _, over = first.after(1.5, 10.0, replace(self.block(2, 1.0), step=1))
        assert over == self.block(1, 0.0)
