"""A revision that is compared with itself: how often it is taken back, and what is advised."""

from __future__ import annotations

from math import comb
from random import Random

import pytest

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Seen
from monitoring.calibration import LEAST, CalibrationError, calibrate, most_by_chance
from monitoring.ramp import RampPolicy
from monitoring.replay_policy import ReplayPolicy

POLICY = ReplayPolicy(ramp=RampPolicy(steps=(25, 100)))
PER_SECOND = 8
RUNS = 10


def record(seconds: int, stumbles: float, hosts: str = "a", seed: int = 3) -> list[Seen]:
    """Requests of replicas of which each fails for two seconds, after about so many seconds without."""
    chance = Random(seed)
    until = {host: chance.expovariate(1 / stumbles) for host in hosts}
    seen = []
    for number in range(seconds * PER_SECOND):
        at, host = number / PER_SECOND, chance.choice(hosts)
        while at > until[host] + 2.0:
            until[host] += 2.0 + chance.expovariate(1 / stumbles)
        error = at >= until[host] or chance.random() < 0.005
        seen.append(Seen(20 * chance.lognormvariate(0, 0.4), (chance.random(),), 1e9 + at, error, host=host))
    return seen


def test_a_calm_revision_is_its_own_equal() -> None:
    found = calibrate(POLICY, record(250, 1e9), RUNS)
    assert [share.promised for share in found.shares] == [True, True]
    assert (found.requests, found.replicas, found.burst_seconds) == (2000, 1, None)
    assert found.seconds == pytest.approx(250, abs=1)
    assert found.ratio < 1.5
    assert found.advice == "Nothing has to be changed"


@pytest.mark.parametrize("hosts", ["a", "abc"])
def test_a_revision_that_stumbles_is_not_by_what_a_replica_does_alone(hosts: str) -> None:
    careless = ReplayPolicy(AnalysisPolicy(burst_limit=1e9), POLICY.ramp)
    found = calibrate(careless, record(300, 40.0, hosts), RUNS)
    chance, apart = found.shares
    assert chance.promised, "both arms meet the same replica"
    assert not apart.promised
    assert any("error rate" in reason for reason in apart.blamed)
    assert ("replica" in apart.way) is (len(hosts) > 1)
    assert found.burst_seconds is not None
    assert found.advice == f"Set analysis.burst_seconds to {found.burst_seconds:g} and analysis.burst_limit to 0"


def test_the_guard_keeps_the_promise_by_itself() -> None:
    found = calibrate(POLICY, record(300, 40.0), RUNS)
    assert found.ratio > POLICY.analysis.burst_limit
    assert [share.promised for share in found.shares] == [True, True]


def test_the_same_record_gives_the_same_answer() -> None:
    seen = record(100, 30.0)
    assert calibrate(POLICY, seen, 3) == calibrate(POLICY, seen[::-1], 3)


def test_too_few_requests_say_nothing() -> None:
    seen = record(100, 1e9)
    with pytest.raises(CalibrationError, match="3 requests"):
        calibrate(POLICY, seen[:3])
    with pytest.raises(CalibrationError, match="0 requests"):
        calibrate(POLICY, [one._replace(at=0.0) for one in seen[:LEAST]])


@pytest.mark.parametrize(("runs", "alpha"), [(12, 0.01), (100, 0.01), (1000, 0.05)])
def test_more_than_by_chance_is_what_seldom_happens(runs: int, alpha: float) -> None:
    def beyond(count: int) -> float:
        return 1 - sum(comb(runs, k) * alpha**k * (1 - alpha) ** (runs - k) for k in range(count + 1))

    most = most_by_chance(runs, alpha)
    assert beyond(most) <= 0.05 < beyond(most - 1)
