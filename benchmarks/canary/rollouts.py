"""Targets of whole rollouts, of a crash in the middle of one, and of what a block costs: G2, G12, G13, G18 and G19.

Rollouts go through the ramp of the product's defaults, request by request, until they are decided or out of requests.
"""

from __future__ import annotations

import time

import numpy as np
from pydantic import TypeAdapter

from benchmarks.canary.figure import Figure, exact, mean, percentile95, share, share_at_least
from benchmarks.canary.requests import STILL, Ending, back, canaries
from benchmarks.canary.world import World
from monitoring.analysis import Evidence, fold
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import CUTS, LEVELS, ArmCount, Block, Latencies, Shares
from monitoring.judgement import Judgement, judge

POLICY = AnalysisPolicy()
STEPS = (5, 20, 50, 100)
EQUAL = World()
_STORED = TypeAdapter(Evidence)


def g2(runs: int) -> list[Figure]:
    """All metrics, at weights that are held with every request looked at, and along the ramp until promotion."""
    held = [(f"weight {weight}", canaries(runs, 2, EQUAL, 10_000, weight, STILL)) for weight in (5, 50)]
    ramp = canaries(runs, 3, EQUAL, 60_000, None)
    return [
        share("G2", f"false rollbacks by any metric, {name}", back(endings), runs, 2, 0.018, 0.01)
        for name, endings in (*held, ("along the ramp", ramp))
    ]


def g12(runs: int) -> list[Figure]:
    """Twenty requests a second, in minutes of their time."""
    figures = []
    for rate, most, slow, target in ((0.001, 60_000, 10, 5), (0.01, 60_000, 18, 8)):
        endings = canaries(runs, 12, World(fails=(rate, rate)), most, None)
        minutes = [ending.seconds / 60 for ending in endings]
        promoted = sum(ending.verdict == "pass" for ending in endings)
        figures += [
            mean("G12", f"minutes of a good rollout, base {rate:.1%}: mean", minutes, 12, target),
            percentile95("G12", f"minutes of a good rollout, base {rate:.1%}: 95 %", minutes, 12, slow),
            share_at_least("G12", f"good rollouts promoted, base {rate:.1%}", promoted, runs, 12, 0.98),
        ]
    return figures


def g13(runs: int) -> list[Figure]:
    """Both arms' error rate rises tenfold; what is equal stays, what is three times worse is taken back."""
    equal = _rising(runs, 1.0)
    worse = back(_rising(runs, 3.0))
    return [
        share("G13", "false rollbacks while the base rate rises tenfold", back(equal), runs, 13, 0.018, 0.01),
        share_at_least("G13", "three times worse candidates rolled back meanwhile", worse, runs, 13, 0.99),
    ]


def _rising(runs: int, times: float) -> list[Ending]:
    return canaries(runs, 13, World(fails=(0.01, 0.01 * times), rising=10.0), 12_000, None)


def g18(runs: int) -> list[Figure]:
    """Crashes at random blocks: what was saved is read back from its JSON, and earlier blocks are told once more."""
    furthest = max(_after_crashes(run) for run in range(runs))
    return [exact("G18", "difference of log evidence after crashes and repeated blocks", furthest, runs, 18, 1e-9)]


def _after_crashes(run: int) -> float:
    rng = np.random.default_rng([18, run])
    told = blocks(rng, 300)
    whole = fold(POLICY, Evidence.start(POLICY, STEPS), told)
    saved = Evidence.start(POLICY, STEPS)
    for crash in [*sorted(rng.integers(1, len(told), 5).tolist()), len(told)]:
        again = max(0, saved.block - int(rng.integers(0, 30)))
        saved = _STORED.validate_json(_STORED.dump_json(fold(POLICY, saved, told[again:crash])))
    counts = (saved.stable, saved.candidate) == (whole.stable, whole.candidate)
    return _distance(judge(POLICY, saved, 100), judge(POLICY, whole, 100)) if counts else float("inf")


def _distance(one: Judgement, other: Judgement) -> float:
    pairs = zip(one.metrics, other.metrics, strict=True)
    return max(
        max(abs(a.log_e_worse - b.log_e_worse), abs((a.log_e_ok or 0.0) - (b.log_e_ok or 0.0))) for a, b in pairs
    )


def blocks(rng: np.random.Generator, many: int, weight: float = 20) -> list[Block]:
    """Of twenty requests, with everything that a block can have."""
    return [_block(rng, number, weight) for number in range(1, many + 1)]


def _block(rng: np.random.Generator, number: int, weight: float) -> Block:
    n1 = int(rng.binomial(20, weight / 100))
    (n, latency, shares), (n_, latency_, shares_) = _arm(rng, 20 - n1), _arm(rng, n1)
    times = float(number), float(number + 1)
    return Block(number, "simulated", 0, *times, n, n_, latency=(latency, latency_), predictions=(shares, shares_))


def _arm(rng: np.random.Generator, requests: int) -> tuple[ArmCount, Latencies, Shares]:
    counts = ArmCount(requests, int(rng.binomial(requests, 0.01)), int(rng.binomial(requests, 0.02)))
    return counts, _latencies(rng, requests), tuple(map(float, rng.multinomial(requests, [0.1] * 10)))


def _latencies(rng: np.random.Generator, requests: int) -> Latencies:
    levels = rng.integers(0, LEVELS, requests)
    slow = tuple(int((levels >= LEVELS * cut).sum()) for cut in CUTS)
    return Latencies(tuple(np.bincount(levels, minlength=LEVELS).tolist()), slow, slow)


def g19(runs: int) -> list[Figure]:
    """CPU time of taking in one block and of judging after it, all metrics included."""
    made = blocks(np.random.default_rng(19), runs)
    evidence = Evidence.start(POLICY, STEPS)
    began = time.process_time()
    for block in made:
        evidence = fold(POLICY, evidence, [block])
        judge(POLICY, evidence, 100)
    return [exact("G19", "milliseconds per block", 1000 * (time.process_time() - began) / runs, runs, 19, 5.0)]
