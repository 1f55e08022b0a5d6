"""Targets of all metrics together, request by request through `monitoring.replay`: G7, G8, G9, G14, G16 and G17.

Every figure comes from the code that judges live requests, from the folding of blocks on. A canary ends with its
verdict, or when its requests run out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from benchmarks.canary.figure import NEVER, Figure, exact, mean, share
from benchmarks.canary.world import BEFORE, Stream, World, drawn, events
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Arm
from monitoring.replay import Replay
from monitoring.replay_policy import ReplayPolicy


@dataclass(frozen=True, slots=True)
class Ending:
    """What became of one canary."""

    verdict: str
    """`pass`, `fail` or `more`."""
    requests: int
    """Of both arms."""
    candidate_requests: int
    candidate_failures: int
    seconds: float
    alarmed: int | None = None
    """Requests of both arms before the first alarm."""


NOTHING = {"weight_errors": 0.0, "weight_refusals": 0.0, "weight_latency": 0.0, "weight_predictions": 0.0}
LATENCY: dict[str, Any] = NOTHING | {"weight_latency": 1.0}
"""Latency as the only metric."""
PREDICTIONS: dict[str, Any] = NOTHING | {"weight_predictions": 1.0}
"""Predictions as the only metric."""


def policy(*, still: bool = False, **analysis: Any) -> ReplayPolicy:
    """The defaults but for `analysis`; where `still`, nothing is ever promoted, so that every request is looked at."""
    return ReplayPolicy(replace(AnalysisPolicy(alpha_promote=1e-12 if still else 0.05), **analysis))


STILL = policy(still=True)


def canary(stream: Stream, weight: float | None = None, rule: ReplayPolicy | None = None) -> Ending:
    """One canary over the stream, at a weight that is held or, without one, at those that the product asks for."""
    replay = Replay(rule)
    seen, tried, failed, alarmed, verdict, t = 0, 0, 0, None, "more", 0.0
    for event in events(stream, lambda: replay.weight if weight is None else weight):
        t = event.t
        seen += 1
        tried += event.arm is Arm.CANDIDATE
        failed += event.arm is Arm.CANDIDATE and event.status == 500
        for decision in replay.feed((event,)):
            verdict = decision["verdict"]
            alarmed = seen - BEFORE if decision["alarms"] and alarmed is None else alarmed
        if verdict != "more":
            break
    return Ending(verdict, seen - BEFORE, tried, failed, t - float(stream.t[BEFORE]), alarmed)


def canaries(
    runs: int, seed: int, world: World, most: int, weight: float | None, rule: ReplayPolicy | None = None
) -> list[Ending]:
    """Run number n has the seed 10,000 times `seed` plus n."""
    return [canary(drawn(10_000 * seed + run, world, most), weight, rule) for run in range(runs)]


def back(endings: list[Ending]) -> int:
    return sum(ending.verdict == "fail" for ending in endings)


def tried(endings: list[Ending]) -> list[float]:
    """Requests of each candidate until it was taken back."""
    return [float(ending.candidate_requests if ending.verdict == "fail" else NEVER) for ending in endings]


def g7(runs: int) -> list[Figure]:
    """Slower candidates without any tolerance, by latency alone and among all metrics."""
    worlds = (
        ("x1.2", World(slower=1.2), 200),
        ("x1.5", World(slower=1.5), 60),
        ("tail from 3 to 9 %", World(tail=(0.03, 0.09)), 900),
    )
    strict: dict[str, Any] = {"latency_tolerance": 0.0, "latency_slack_ms": 0.0}
    alone = policy(**strict, **LATENCY)
    return [
        *(
            mean("G7", f"candidate requests until found, latency {name}", _slow(runs, world, alone), 7, limit)
            for name, world, limit in worlds
        ),
        *(
            mean(
                "G7",
                f"candidate requests until found among all metrics, latency {name}",
                _slow(runs, world, policy(**strict)),
                7,
                limit,
            )
            for name, world, limit in worlds
        ),
    ]


def _slow(runs: int, world: World, rule: ReplayPolicy) -> list[float]:
    return tried(canaries(runs, 7, world, 100_000, 5, rule))


def g8(runs: int) -> list[Figure]:
    """The default tolerance of 10 %, without the milliseconds that nobody notices."""
    within = canaries(runs, 8, World(slower=1.05), 10_000, 20, policy(still=True, latency_slack_ms=0.0))
    beyond = canaries(runs, 8, World(slower=1.5), 100_000, 5, policy(latency_slack_ms=0.0))
    return [
        share("G8", "false rollbacks, latency x1.05, weight 20", back(within), runs, 8, 0.01),
        mean("G8", "candidate requests until found, latency x1.5, weight 5", tried(beyond), 8, 100),
    ]


def g9(runs: int) -> list[Figure]:
    """A tenth of the answers being tolerated; by predictions alone and among all metrics, where they weigh a fifth."""
    within = canaries(runs, 9, World(moved=0.10), 10_000, 20, STILL)
    worlds = (("a fifth of the answers moved", World(moved=0.20), 900), ("constant answer", World(constant=True), 40))
    rules = (("", policy(still=True, **PREDICTIONS)), (" among all metrics", STILL))
    return [
        share("G9", "rolled back, a tenth of the answers moved, weight 20", back(within), runs, 9, 0.01),
        *(
            mean("G9", f"candidate requests until found{how}, {name}, weight {weight}", found, 9, limit)
            for how, rule in rules
            for name, world, limit in worlds
            for weight in (5, 50)
            for found in (tried(canaries(runs, 9, world, 400_000 // weight, weight, rule)),)
        ),
    ]


def g14_family(runs: int) -> list[Figure]:
    """Splits that are not what was asked, and a candidate that gets no request at all."""
    figures: list[Figure] = []
    for times in (1.3, 0.7):
        endings = canaries(runs, 14, World(split=times), 10_000, 10, STILL)
        until = [float(NEVER if ending.alarmed is None else ending.alarmed) for ending in endings]
        got = f"{10 * times:.0f} % of requests instead of 10 %"
        figures.append(share("G14", f"false rollbacks by any metric, {got}", back(endings), runs, 14, 0.018, 0.01))
        figures.append(mean("G14", f"requests until the alarm, {got}", until, 14, 5_000))
    nothing = canaries(max(4, runs // 8), 14, World(fails=(0.05, 1.0), split=1e-9), 5_000, 10, STILL)
    figures.append(
        exact("G14", "rollbacks by any metric of a candidate that receives nothing", back(nothing), len(nothing), 14, 0)
    )
    return figures


def g16(runs: int) -> list[Figure]:
    world = World(rate=1000.0, slow_successes=True)
    hits = back(canaries(runs, 16, world, 10_000, 20, STILL))
    return [share("G16", "false rollbacks, slow successes, 1,000 a second, weight 20", hits, runs, 16, 0.018, 0.01)]


def g17(runs: int) -> list[Figure]:
    worlds = (("requests of 32 rows", World(rows=32)), ("sticky users", World(users=3_000)))
    return [
        share("G17", f"false rollbacks, {name}, weight 20", hits, runs, 17, 0.018, 0.01)
        for name, world in worlds
        for hits in (back(canaries(runs, 17, world, 10_000, 20, STILL)),)
    ]
