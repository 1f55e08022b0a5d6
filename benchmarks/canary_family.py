"""How well all metrics together keep their promises: seeded canaries, request by request, through `monitoring.replay`.

Every figure comes from the code that judges live requests, from blocks on. A canary ends with its verdict, or when its
requests run out. Unless said otherwise: twenty requests a second, log-normal latencies about 20 ms, even scores.
`benchmarks.canary_errors` looks at the error rate alone, with more runs. `python -m benchmarks.canary_family` runs it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import fmean

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Arm
from monitoring.ramp import RampPolicy
from monitoring.replay import Replay
from monitoring.replay_event import Event
from monitoring.replay_policy import ReplayPolicy

BEFORE = 2_500
"""Requests of the stable revision before the canary."""
RUNS = 200


@dataclass(frozen=True, slots=True)
class World:
    """What happens to requests; of pairs, the second is the candidate's."""

    weight: float | None = 5
    """The candidate's share in percent; None: what the product asks for."""
    fails: tuple[float, float] = (0.01, 0.01)
    slower: float = 1.0
    """Times the stable revision's latencies."""
    constant: bool = False
    """The candidate answers always the same."""
    rate: float = 20.0
    """Requests per second."""
    split: float = 1.0
    """The candidate gets this many times the share that was asked for."""
    rising: float = 1.0
    """Both arms fail this many times as often at the end as in the beginning."""
    users: int = 0
    """Sticky users, of whom a tenth fail on everything and the rest hardly ever; 0: every request by itself."""
    slow_successes: bool = False
    """Requests that succeed take ten times as long as those that fail."""


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one canary."""

    verdict: str
    candidate_requests: int
    candidate_failures: int
    seconds: float
    alarms: int


EQUAL = World()
STEPS = RampPolicy()
STILL = ReplayPolicy(AnalysisPolicy(alpha_promote=1e-12))
"""Nothing is ever promoted, so that every request is looked at."""


def canary(seed: int, world: World, most: int, policy: ReplayPolicy | None = None) -> Ending:
    """One canary of at most so many requests."""
    replay, counts = Replay(policy), [0, 0]
    verdict, t, alarms = "more", 0.0, 0
    began = t
    for event in _events(random.Random(seed), world, most, lambda: replay.weight):
        began, t = (event.t if not event.weight else began), event.t
        candidate = event.arm is Arm.CANDIDATE
        counts[0] += candidate
        counts[1] += candidate and event.status == 500
        for decision in replay.feed((event,)):
            verdict, alarms = decision["verdict"], alarms + bool(decision["alarms"])
        if verdict != "more":
            break
    return Ending(verdict, counts[0], counts[1], t - began, alarms)


def _events(dice: random.Random, world: World, most: int, asked: Callable[[], int]) -> Iterator[Event]:
    t = 0.0
    for number in range(BEFORE + most):
        t += dice.expovariate(world.rate)
        weight = 0 if number < BEFORE else asked() if world.weight is None else world.weight
        user = dice.randrange(world.users) if world.users else number
        draw = random.Random(f"{dice.random() if not world.users else user}").random() * 100
        candidate = draw < weight * world.split
        failed = _fails(dice, world, user, candidate, max(0, number - BEFORE) / most)
        seconds = 0.02 * dice.lognormvariate(0.0, 0.4) * (world.slower if candidate else 1.0)
        seconds *= 10 if world.slow_successes and not failed else 1
        yield Event(
            id=number,
            arm=Arm.CANDIDATE if candidate else Arm.STABLE,
            t=t,
            weight=weight,
            unit=user,
            done=t + seconds,
            status=500 if failed else 200,
            latency_ms=1000 * seconds,
            prediction=0.5 if world.constant and candidate else dice.random(),
        )


def _fails(dice: random.Random, world: World, user: int, candidate: bool, passed: float) -> bool:
    if world.users:
        return user % 10 == 0
    return dice.random() < world.fails[candidate] * (1 + (world.rising - 1) * passed)


def canaries(runs: int, world: World, most: int, policy: ReplayPolicy | None = None) -> list[Ending]:
    return [canary(seed, world, most, policy) for seed in range(runs)]


def share(endings: list[Ending], verdict: str) -> float:
    return sum(ending.verdict == verdict for ending in endings) / len(endings)


def measure() -> dict[str, object]:
    """Figures of every world; about fifteen minutes on one core."""
    dead, five = World(fails=(0.01, 1.0)), World(fails=(0.01, 0.05))
    return {
        "runs": RUNS,
        "false_rollbacks": {
            name: share(canaries(RUNS, world, 10_000, STILL), "fail")
            for name, world in {
                "weight 5": EQUAL,
                "weight 50": World(weight=50),
                "split 30 % too high": World(weight=10, split=1.3),
                "error rate rising tenfold": World(weight=20, rising=10.0),
                "sticky users": World(weight=20, users=3_000),
                "slow successes, 1,000 a second": World(weight=20, rate=1000.0, slow_successes=True),
            }.items()
        },
        "rollbacks": {
            name: _effort(canaries(RUNS, world, 40_000))
            for name, world in {
                "dead": dead,
                "errors times 5": five,
                "latency times 1.5": World(slower=1.5),
                "constant answer": World(constant=True),
            }.items()
        },
        "good_canaries": {
            f"base {rate:.1%}": _effort(canaries(RUNS // 4, World(None, fails=(rate, rate)), 60_000))
            for rate in (0.001, 0.01)
        },
    }


def _effort(endings: list[Ending]) -> dict[str, float]:
    return {
        "rolled_back": share(endings, "fail"),
        "promoted": share(endings, "pass"),
        "candidate_requests": round(fmean(ending.candidate_requests for ending in endings), 1),
        "candidate_failures": round(fmean(ending.candidate_failures for ending in endings), 2),
        "seconds": round(fmean(ending.seconds for ending in endings), 1),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
