"""Replicas that stumble: equal candidates keep their promise of false rollbacks, bad ones are still found."""

from __future__ import annotations

from dataclasses import replace
from random import Random

from monitoring.analysis import Evidence, fold, warned
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block, Seen
from monitoring.bursts import spread_of
from monitoring.calibration import most_by_chance

POLICY = AnalysisPolicy()
PER_SECOND = 20
WEIGHT = 0.25
EVERY, LONG = 180.0, 2.0
"""Seconds between two stumbles of a replica on the average, and how long each is."""


class Replica:
    """Fails on everything while it stumbles, and else on `rate` of its requests."""

    def __init__(self, chance: Random, rate: float = 0.002) -> None:
        self._chance, self._rate = chance, rate
        self._stumbles = chance.expovariate(1 / EVERY)

    def fails(self, at: float) -> bool:
        while at > self._stumbles + LONG:
            self._stumbles += LONG + self._chance.expovariate(1 / EVERY)
        return at >= self._stumbles or self._chance.random() < self._rate


def taken_back(seed: int, policy: AnalysisPolicy, *, hours: float, rate: float = 0.002) -> float | None:
    """After how many seconds of canary; None where it was not. An hour went before it."""
    chance = Random(seed)
    stable, candidate = Replica(chance), Replica(chance, rate)
    seen = [Seen(1.0, at=t / 4, error=stable.fails(t / 4)) for t in range(1, 4 * 3600)]
    evidence = warned(policy, Evidence.start(policy, (25, 100)), spread_of(seen).ratio)
    for number in range(1, round(hours * 3600)):
        at = 3600.0 + number
        counts = {stable: [0, 0], candidate: [0, 0]}
        for request in range(PER_SECOND):
            replica = candidate if chance.random() < WEIGHT else stable
            counts[replica][0] += 1
            counts[replica][1] += replica.fails(at + request / PER_SECOND)
        arms = (ArmCount(*counts[stable]), ArmCount(*counts[candidate]))
        evidence = fold(policy, evidence, (Block(number, "r", 0, at, at, *arms),))
        if evidence.failed is not None:
            return at - 3600.0
    return None


def test_stumbles_take_no_equal_candidate_back_beyond_the_promise() -> None:
    runs = 30
    careless = replace(POLICY, burst_limit=1e9)
    unguarded = sum(taken_back(seed, careless, hours=0.5) is not None for seed in range(12))
    assert unguarded >= 8, "it is what the guard is for"
    guarded = sum(taken_back(seed, POLICY, hours=0.5) is not None for seed in range(runs))
    assert guarded <= most_by_chance(runs, POLICY.alpha_rollback)


def test_bad_candidates_are_found_among_stumbles() -> None:
    dead = [taken_back(seed, POLICY, hours=0.25, rate=1.0) for seed in range(6)]
    assert all(seconds is not None and seconds <= 120 for seconds in dead)
    bad = [taken_back(seed, POLICY, hours=0.5, rate=0.3) for seed in range(6)]
    assert all(seconds is not None for seconds in bad)
