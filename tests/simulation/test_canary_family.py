"""The promises of the whole analysis, request by request, in seeded canaries few enough for every run of the tests.

The limits are the design's; of equal candidates one more is let through than expected, because there are so few.
`benchmarks.canary_family` runs more of the same.
"""

from __future__ import annotations

from statistics import fmean

import pytest

from benchmarks.canary_family import EQUAL, STILL, World, canaries, share


@pytest.mark.parametrize(
    ("world", "most"),
    [
        (EQUAL, 5_000),
        (World(weight=10, split=1.3), 5_000),
        (World(weight=20, rising=10.0), 5_000),
        (World(weight=20, users=3_000), 5_000),
        (World(weight=20, rate=1000.0, slow_successes=True), 5_000),
    ],
    ids=["equal", "another split", "rising errors", "sticky users", "slow successes"],
)
def test_an_equal_candidate_is_rarely_taken_back(world: World, most: int) -> None:
    """One in a hundred at most; of ten, two would come less than once in 200 at that level."""
    assert share(canaries(10, world, most, STILL), "fail") <= 0.1


def test_another_split_than_asked_is_noticed() -> None:
    endings = canaries(6, World(weight=10, split=1.3), 5_000, STILL)
    assert all(ending.alarms for ending in endings)


@pytest.mark.parametrize(
    ("world", "failures", "requests"),
    [
        (World(fails=(0.01, 1.0)), 4, 4),
        (World(fails=(0.01, 0.05)), 12, 300),
        (World(slower=1.5), 5, 100),
        (World(constant=True), 2, 40),
    ],
    ids=["dead", "five times the errors", "slower by half", "constant"],
)
def test_a_bad_candidate_is_taken_back_soon(world: World, failures: float, requests: float) -> None:
    endings = canaries(15, world, 20_000)
    assert share(endings, "fail") == 1.0
    assert fmean(ending.candidate_failures for ending in endings) <= failures
    assert fmean(ending.candidate_requests for ending in endings) <= requests


def test_a_good_candidate_goes_live_within_minutes() -> None:
    endings = canaries(6, World(weight=None, fails=(0.001, 0.001)), 30_000)
    assert share(endings, "pass") == 1.0
    assert fmean(ending.seconds for ending in endings) <= 300
