"""How well the error-rate analysis keeps its promises: seeded simulations against the targets it was designed to.

Every figure comes from the product's own functions, fed with simulated requests; numpy only makes the streams.
Rates are of failed requests, `weight` is the candidate's share in percent. Run it with
`python -m benchmarks.canary_errors`; the tests call the same functions with fewer runs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import log
from statistics import fmean

import numpy as np

from monitoring.analysis import Evidence, fold
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block
from monitoring.eprocess import Claim, opened, updated
from monitoring.judgement import Verdict, judge
from monitoring.plan import growth, plan
from monitoring.rate_evidence import gate_claim, worse_claim
from monitoring.usual import Usual

POLICY = AnalysisPolicy(require_latency=False)
STEPS = (5, 20, 50, 100)
RATES = (0.001, 0.01, 0.05)
DEAD = 1.0
NEVER = 10**9
"""Stands for the failed requests of a bad candidate that was not found, so that no mean can hide it."""

Counts = tuple[ArmCount, ArmCount]
"""Stable and candidate in one block."""


def requests(
    rng: np.random.Generator, weight: float, stable: float, candidate: float, smallest: int = 10
) -> Iterator[Counts]:
    """Blocks without end, each closed as soon as it has `smallest` requests and one of each arm."""
    counts = [0, 0, 0, 0]
    while True:
        assigned = rng.random(2048) < weight / 100
        failed = rng.random(2048) < np.where(assigned, candidate, stable)
        for cell in (2 * assigned + failed).tolist():
            counts[cell] += 1
            good0, bad0, good1, bad1 = counts
            if good0 + bad0 and good1 + bad1 and good0 + bad0 + good1 + bad1 >= smallest:
                yield ArmCount(good0 + bad0, bad0), ArmCount(good1 + bad1, bad1)
                counts = [0, 0, 0, 0]


def bulk(
    rng: np.random.Generator, weight: float, stable: float, candidate: float, total: int, size: int = 100
) -> Iterator[Counts]:
    """`total` requests in blocks of `size`: one second each at a hundred requests a second."""
    in_candidate = rng.binomial(size, weight / 100, total // size)
    failed0 = rng.binomial(size - in_candidate, stable)
    failed1 = rng.binomial(in_candidate, candidate)
    for n1, x0, x1 in zip(in_candidate.tolist(), failed0.tolist(), failed1.tolist(), strict=True):
        yield ArmCount(size - n1, x0), ArmCount(n1, x1)


def numbered(counts: Iterable[Counts]) -> Iterator[Block]:
    for number, (stable, candidate) in enumerate(counts, start=1):
        yield Block(number, "simulated", 0, float(number), float(number + 1), stable, candidate)


def up_to(blocks: Iterable[Counts], total: int) -> Iterator[Counts]:
    """Blocks until `total` requests are in them."""
    seen = 0
    for stable, candidate in blocks:
        seen += stable.requests + candidate.requests
        if seen > total:
            return
        yield stable, candidate


@dataclass(frozen=True, slots=True)
class Outcome:
    """Where one claim stood when it was proven, or when the requests ran out."""

    proven: bool
    stable: ArmCount
    candidate: ArmCount


def follow(claim: Claim, counts: Iterable[Counts]) -> Outcome:
    """One claim alone over a stream, read after every block."""
    process, stable, candidate = opened(claim), ArmCount(), ArmCount()
    for block in numbered(counts):
        process = updated(process, claim, block, stable, candidate)
        stable, candidate = _sum(stable, block.stable), _sum(candidate, block.candidate)
        if process.proven is not None:
            break
    return Outcome(process.proven is not None, stable, candidate)


def _sum(one: ArmCount, other: ArmCount) -> ArmCount:
    return ArmCount(one.requests + other.requests, one.errors + other.errors)


def repeat(
    runs: int, seed: int, claim: Claim, stream: Callable[[np.random.Generator], Iterable[Counts]]
) -> list[Outcome]:
    return [follow(claim, stream(np.random.default_rng([seed, run]))) for run in range(runs)]


def false_rollbacks(runs: int, rate: float, weight: float, total: int = 200_000) -> int:
    """How many equal candidates are called worse within `total` requests (nominal: 1 %)."""
    outcomes = repeat(runs, 1, worse_claim(POLICY), lambda rng: bulk(rng, weight, rate, rate, total))
    return sum(outcome.proven for outcome in outcomes)


def failed_before_rollback(runs: int, stable: float, candidate: float, weight: float) -> list[int]:
    """Failed requests of a bad candidate until it is called worse, from its first request on."""
    outcomes = repeat(
        runs, 2, worse_claim(POLICY), lambda rng: up_to(requests(rng, weight, stable, candidate), 1_000_000)
    )
    return [outcome.candidate.errors if outcome.proven else NEVER for outcome in outcomes]


def requests_before_rollback(runs: int, stable: float, candidate: float, weight: float) -> float:
    """Mean requests of a bad candidate until it is called worse."""
    outcomes = repeat(runs, 3, worse_claim(POLICY), lambda rng: requests(rng, weight, stable, candidate))
    return fmean(outcome.candidate.requests for outcome in outcomes)


def sprt_requests(runs: int, stable: float, candidate: float) -> float:
    """Mean requests of the candidate for a sequential test at the same level that knows both rates."""
    rng = np.random.default_rng(4)
    failed = rng.random((runs, 20_000)) < candidate
    steps = np.where(failed, log(candidate / stable), log((1 - candidate) / (1 - stable)))
    crossed = steps.cumsum(axis=1) >= worse_claim(POLICY).log_threshold
    return float(crossed.argmax(axis=1).mean() + 1)


def failed_after_late_onset(runs: int, weight: float, rate: float = 0.01, good: int = 100_000) -> list[int]:
    """Failed requests of a candidate that dies after `good` requests without any difference.

    Runs in which the good part alone was called worse are left out: `false_rollbacks` counts those.
    """
    found = []
    for run in range(runs):
        rng = np.random.default_rng([5, run])
        before = list(bulk(rng, weight, rate, rate, good))
        outcome = follow(worse_claim(POLICY), chain(before, up_to(requests(rng, weight, rate, DEAD), 100_000)))
        if outcome.stable.requests + outcome.candidate.requests > good:
            failed = outcome.candidate.errors - sum(candidate.errors for _, candidate in before)
            found.append(failed if outcome.proven else NEVER)
    return found


def effort_to_promote(runs: int, rate: float, weight: float) -> float:
    """Mean requests of an equal candidate until promotion is proven, over log(1/alpha) / divergence.

    The divergence is that of both arms from the margin at this weight, the most evidence that a request can bring.
    """
    claim = gate_claim(POLICY, 100)
    outcomes = repeat(runs, 6, claim, lambda rng: up_to(requests(rng, weight, rate, rate), 2_000_000))
    least = claim.log_threshold / growth(claim.line, rate, weight / 100)
    return fmean(outcome.candidate.requests for outcome in outcomes) / least


def false_promotions(runs: int, stable: float, candidate: float, weight: float, total: int = 20_000) -> int:
    """How many candidates are called good enough for all traffic within `total` requests."""
    claim = gate_claim(POLICY, 100)
    outcomes = repeat(runs, 7, claim, lambda rng: bulk(rng, weight, stable, candidate, total, size=50))
    return sum(outcome.proven for outcome in outcomes)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a whole rollout through all steps ended."""

    verdict: Verdict
    requests: int
    candidate_failed: int


def rollout(seed: int, rate_at: Callable[[int], float], ratio: float, min_step: int, most: int = 400_000) -> Ending:
    """Every step from the first on, raised on proof and after `min_step` requests, in blocks of 20 requests.

    `rate_at` gives the stable revision's error rate after so many requests, `ratio` the candidate's relative to it.
    """
    rng = np.random.default_rng([8, seed])
    evidence = Evidence.start(POLICY, STEPS)
    step = entered = seen = 0
    while seen < most:
        rate = rate_at(seen)
        evidence = fold(POLICY, evidence, [_block(rng, evidence.block + 1, step, rate, min(1.0, ratio * rate))])
        seen = evidence.stable.requests + evidence.candidate.requests
        verdict = judge(POLICY, evidence, STEPS[step + 1]).verdict
        if verdict is Verdict.PASS and seen - entered >= min_step:
            step, entered = step + 1, seen
        if verdict is Verdict.FAIL or STEPS[step] == 100:
            return Ending(verdict, seen, evidence.candidate.errors)
    return Ending(Verdict.MORE, seen, evidence.candidate.errors)


def _block(rng: np.random.Generator, number: int, step: int, stable: float, candidate: float) -> Block:
    n1 = int(rng.binomial(20, STEPS[step] / 100))
    arms = ArmCount(20 - n1, int(rng.binomial(20 - n1, stable))), ArmCount(n1, int(rng.binomial(n1, candidate)))
    return Block(number, "simulated", step, float(number), float(number + 1), *arms)


def good_rollouts(runs: int, rate: float, min_step: int = 1_200) -> list[Ending]:
    """Equal candidates through all steps; 1,200 requests are a minute at 20 a second."""
    return [rollout(run, lambda _: rate, 1.0, min_step) for run in range(runs)]


def rising_rollouts(runs: int, ratio: float) -> list[Ending]:
    """The same while both arms' error rate climbs from 1 % to 10 % within 8,000 requests."""
    return [rollout(run, lambda seen: 0.01 * 10 ** min(1.0, seen / 8_000), ratio, 1_200) for run in range(runs)]


def false_rollbacks_round_robin(runs: int, rate: float, total: int = 100_000) -> int:
    """Equal candidates when every twentieth request goes to the candidate, by turns instead of at random."""

    def stream(rng: np.random.Generator) -> Iterator[Counts]:
        failed = rng.binomial((19, 1), rate, (total // 20, 2)).tolist()
        return ((ArmCount(19, x0), ArmCount(1, x1)) for x0, x1 in failed)

    return sum(outcome.proven for outcome in repeat(runs, 9, worse_claim(POLICY), stream))


def false_rollbacks_regular(runs: int, weight: float, size: int = 10, total: int = 200_000) -> int:
    """Equal candidates when one request of every block fails, never none or two: less random than independent."""

    def stream(rng: np.random.Generator) -> Iterator[Counts]:
        in_candidate = rng.binomial(size, weight / 100, total // size)
        hit = rng.random(total // size) * size < in_candidate
        pairs = zip(in_candidate.tolist(), hit.tolist(), strict=True)
        return ((ArmCount(size - n1, 1 - x1), ArmCount(n1, int(x1))) for n1, x1 in pairs)

    return sum(outcome.proven for outcome in repeat(runs, 11, worse_claim(POLICY), stream))


def seconds_per_block(blocks: int = 2_000) -> float:
    """CPU of one `fold` and one `judge`, everything included, at 1 % errors and weight 20."""
    rng = np.random.default_rng(10)
    made = [_block(rng, number, 1, 0.01, 0.01) for number in range(1, blocks + 1)]
    evidence = Evidence.start(POLICY, STEPS)
    began = time.process_time()
    for block in made:
        evidence = fold(POLICY, evidence, [block])
        judge(POLICY, evidence, 100)
    return (time.process_time() - began) / blocks


def percentile95(values: Sequence[float]) -> float:
    return float(np.percentile(values, 95, method="higher"))


def _spread(values: Sequence[float]) -> dict[str, float]:
    return {"mean": round(fmean(values), 2), "p95": percentile95(values)}


def _rollouts(endings: Sequence[Ending]) -> dict[str, float]:
    """Shares and, at 20 requests a second, minutes."""
    minutes = [ending.requests / 20 / 60 for ending in endings]
    return {
        "promoted": sum(ending.verdict is Verdict.PASS for ending in endings) / len(endings),
        "rolled back": sum(ending.verdict is Verdict.FAIL for ending in endings) / len(endings),
        "minutes mean": round(fmean(minutes), 2),
        "minutes p95": round(percentile95(minutes), 2),
        "candidate requests failed, mean": round(fmean(ending.candidate_failed for ending in endings), 1),
    }


def measure() -> dict[str, object]:
    """Every figure, by the name of its target, in some minutes on one core."""
    cells = [(rate, weight) for rate in RATES for weight in (5, 20, 50)]
    return {
        "G1 false rollbacks of 120 runs of 200k requests": {
            f"base {rate:.1%}, weight {weight}": false_rollbacks(120, rate, weight) for rate, weight in cells
        },
        "G4 detection over a test that knows both rates": {
            f"x{ratio}": round(
                requests_before_rollback(400, 0.01, 0.01 * ratio, 5) / sprt_requests(2000, 0.01, 0.01 * ratio), 2
            )
            for ratio in (5, 20)
        },
        "G5 failed requests, errors x5 of 1 %, weight 5": _spread(failed_before_rollback(400, 0.01, 0.05, 5)),
        "G6 failed requests, dead candidate": {
            f"weight {weight}": _spread(failed_before_rollback(500, 0.01, DEAD, weight)) for weight in (5, 50)
        },
        "G10 requests to promote over the least possible": {
            f"base {rate:.1%}, weight {weight}": round(effort_to_promote(60, rate, weight), 2) for rate, weight in cells
        },
        "G11 promoted of 500": {
            name: {f"weight {weight}": false_promotions(500, 0.01, rate, weight) for weight in (5, 50)}
            for name, rate in (("at the margin", 0.02), ("at 1.5 times the margin", 0.03), ("x20", 0.2), ("dead", DEAD))
        },
        "G12 good rollout at 20 requests a second": {
            f"base {rate:.1%}": _rollouts(good_rollouts(60, rate)) for rate in RATES
        },
        "planned minutes of a good rollout at 20 requests a second": {
            f"base {rate:.1%}": round((plan(POLICY, STEPS, Usual(rate), 20.0, 60.0).seconds or 0.0) / 60, 2)
            for rate in RATES
        },
        "G13 base rate rising tenfold": {
            "equal": _rollouts(rising_rollouts(100, 1.0)),
            "three times worse": _rollouts(rising_rollouts(100, 3.0)),
        },
        "G14 false rollbacks of 100, by turns": false_rollbacks_round_robin(100, 0.01),
        "false rollbacks of 100, one failure in every block of 10": {
            f"weight {weight}": false_rollbacks_regular(100, weight, total=50_000) for weight in (5, 50)
        },
        "G15 failed requests, dead after 100k good": {
            f"weight {weight}": _spread(failed_after_late_onset(150, weight)) for weight in (5, 20)
        },
        "G19 milliseconds per block": round(1000 * seconds_per_block(), 3),
    }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=2))
