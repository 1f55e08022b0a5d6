"""Targets of the error rate alone, as one claim at its own level: G1, G3, G4, G5, G6, G10, G11 and G15."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import chain
from math import log

import numpy as np

from benchmarks.canary.counts import Counts, Outcome, bulk, follow, numbered, repeat, requests, up_to
from benchmarks.canary.figure import NEVER, Figure, exact, mean, percentile95, ratio, share
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount
from monitoring.eprocess import Line, log_factor
from monitoring.plan import growth
from monitoring.rate_evidence import gate_claim, worse_claim

POLICY = AnalysisPolicy(require_latency=False)
WORSE = worse_claim(POLICY)
AMONG = replace(WORSE, log_threshold=WORSE.log_threshold - log(POLICY.weight_errors))
"""The same where errors are one of several metrics, and no other one speaks against the candidate."""
PROMOTE = gate_claim(POLICY, 100)
DEAD = 1.0
CELLS = ((0.001, 5), (0.001, 50), (0.01, 20), (0.05, 5), (0.05, 50))
"""Base rates and weights of candidates that are exactly as good."""


def g1(runs: int, total: int = 200_000) -> list[Figure]:
    """False rollbacks, read after every block of a hundred requests; and with every twentieth request in turn."""
    found = [_false_rollbacks(runs, rate, weight, total) for rate, weight in CELLS]
    return [
        *(
            share("G1", f"false rollbacks, base {rate:.1%}, weight {weight}", hits, runs, 1, 0.018, 0.01)
            for (rate, weight), hits in zip(CELLS, found, strict=True)
        ),
        share("G1", "false rollbacks, all of these", sum(found), runs * len(CELLS), 1, 66 / 5000, 0.01),
    ]


def _false_rollbacks(runs: int, rate: float, weight: float, total: int) -> int:
    outcomes = repeat(runs, 1, WORSE, lambda rng: bulk(rng, weight, rate, rate, total))
    return sum(outcome.proven for outcome in outcomes)


def g3(runs: int) -> list[Figure]:
    """Requests of the candidate until it is called worse, over those of a test that is told both rates.

    By errors alone, and among all metrics, the others of which say nothing.
    """
    figures = []
    for times in (2, 5, 20):
        for weight in (5, 20, 50):
            alone, family, told = _detected(runs, 0.01, 0.01 * times, weight)
            what = f"requests until found over an oracle's, x{times}, weight {weight}"
            figures.append(ratio("G3", what, alone, told, 3, 1.6))
            figures.append(ratio("G3", f"{what}, among all metrics", family, told, 3, 1.9))
    return figures


def _detected(runs: int, stable: float, candidate: float, weight: float) -> tuple[list[float], ...]:
    """For the product by errors alone and in the family, and on the same streams for the oracle."""

    def stream(run: int) -> Iterator[Counts]:
        return up_to(requests(np.random.default_rng([3, run]), weight, stable, candidate), 2_000_000)

    found = [[float(follow(claim, stream(run)).candidate.requests) for run in range(runs)] for claim in (WORSE, AMONG)]
    return (*found, [_told(stream(run), stable, candidate) for run in range(runs)])


def _told(counts: Iterable[Counts], stable: float, candidate: float) -> float:
    """Requests until the best evidence that one can have who knows both rates, but has to refute every common one."""
    total, log_e = 0, 0.0
    for block in numbered(counts):
        total += block.candidate.requests
        log_e += log_factor(Line(), stable, candidate, block.stable, block.candidate)
        if log_e >= WORSE.log_threshold:
            break
    return float(total)


def g4(runs: int) -> list[Figure]:
    """The same over Wald's test of one rate against the other, both known, fed by the candidate's requests alone."""
    figures = []
    for times, limit in ((5, 1.7), (20, 2.0)):
        outcomes = repeat(runs, 4, WORSE, lambda rng, times=times: requests(rng, 5, 0.01, 0.01 * times))  # type: ignore[misc]
        found = [float(outcome.candidate.requests) for outcome in outcomes]
        wald = _wald(5 * runs + 1, 0.01, 0.01 * times)
        what = f"requests until found over a test that knows both rates, x{times}, weight 5"
        figures.append(ratio("G4", what, found, wald, 4, limit))
    return figures


def _wald(runs: int, stable: float, candidate: float) -> list[float]:
    failed = np.random.default_rng(4).random((runs, 20_000)) < candidate
    steps = np.where(failed, log(candidate / stable), log((1 - candidate) / (1 - stable)))
    crossed = steps.cumsum(axis=1) >= WORSE.log_threshold
    return [float(first + 1) for first in crossed.argmax(axis=1)]


def _failed(outcome: Outcome) -> float:
    return float(outcome.candidate.errors if outcome.proven else NEVER)


def _before_rollback(runs: int, seed: int, stable: float, candidate: float, weight: float) -> list[float]:
    outcomes = repeat(runs, seed, WORSE, lambda rng: up_to(requests(rng, weight, stable, candidate), 1_000_000))
    return [_failed(outcome) for outcome in outcomes]


def g5(runs: int) -> list[Figure]:
    failed = _before_rollback(runs, 5, 0.01, 0.05, 5)
    return [mean("G5", "failed requests until rollback, errors x5 of 1 %, weight 5", failed, 5, 12)]


def g6(runs: int) -> list[Figure]:
    few, many = (_before_rollback(runs, 6, 0.01, DEAD, weight) for weight in (5, 50))
    return [
        mean("G6", "failed requests until rollback, dead, weight 5: mean", few, 6, 4),
        percentile95("G6", "failed requests until rollback, dead, weight 5: 95 %", few, 6, 6),
        percentile95("G6", "failed requests until rollback, dead, weight 50: 95 %", many, 6, 18),
    ]


def g10(runs: int) -> list[Figure]:
    """Requests of an equal candidate until promotion is proven, over log(1/alpha) / divergence.

    The divergence is that of both arms from the margin at this weight, the most evidence that a request can bring.
    """
    figures = []
    for rate in (0.001, 0.01, 0.05):
        for weight in (5, 20, 50):
            found = _until_promotion(runs, rate, weight)
            least = PROMOTE.log_threshold / growth(PROMOTE.line, rate, weight / 100)
            what = f"requests until promotion over the least possible, base {rate:.1%}, weight {weight}"
            figures.append(mean("G10", what, [one / least for one in found], 10, 1.6))
    return figures


def _until_promotion(runs: int, rate: float, weight: float) -> list[int]:
    outcomes = repeat(runs, 10, PROMOTE, lambda rng: up_to(requests(rng, weight, rate, rate), 2_000_000))
    return [outcome.candidate.requests if outcome.proven else NEVER for outcome in outcomes]


def g11(runs: int) -> list[Figure]:
    """Candidates beyond the margin that are called good enough for all traffic, within 20,000 requests."""
    worlds = (
        ("exactly at the margin", 0.02, 40 / 500, 0.05),
        ("1.5 times the margin", 0.03, 15 / 500, None),
        ("x20", 0.2, 0.0, None),
        ("dead", DEAD, 0.0, None),
    )
    return [
        share("G11", f"promoted, {name}, weight {weight}", _promoted(runs, rate, weight), runs, 11, limit, truth)
        for name, rate, limit, truth in worlds
        for weight in (5, 50)
    ]


def _promoted(runs: int, candidate: float, weight: float) -> int:
    outcomes = repeat(runs, 11, PROMOTE, lambda rng: bulk(rng, weight, 0.01, candidate, 20_000, size=50))
    return sum(outcome.proven for outcome in outcomes)


def g14(runs: int) -> list[Figure]:
    """Every twentieth request by turns; a split that is off by 30 %; failures more regular than chance; no traffic."""

    def by_turns(rng: np.random.Generator) -> Iterator[Counts]:
        failed = rng.binomial((19, 1), 0.01, (5_000, 2)).tolist()
        return ((ArmCount(19, x0), ArmCount(1, x1)) for x0, x1 in failed)

    def alone(rng: np.random.Generator) -> Iterator[Counts]:
        return ((ArmCount(100, x0), ArmCount()) for x0 in rng.binomial(100, 0.05, 500).tolist())

    turns = sum(outcome.proven for outcome in repeat(runs, 14, WORSE, by_turns))
    nothing = sum(outcome.proven for outcome in repeat(runs // 4, 14, WORSE, alone))
    return [
        share("G14", "false rollbacks, by turns instead of at random", turns, runs, 14, 0.018, 0.01),
        exact("G14", "rollbacks of a candidate that receives nothing", nothing, runs // 4, 14, 0),
        *(_off(runs, asked, got) for asked, got in ((10, 13), (10, 7))),
        *(_regular(runs, weight) for weight in (5, 50)),
    ]


def _off(runs: int, asked: int, got: int) -> Figure:
    outcomes = repeat(runs, 14, WORSE, lambda rng: bulk(rng, got, 0.01, 0.01, 100_000))
    hits = sum(outcome.proven for outcome in outcomes)
    return share("G14", f"false rollbacks, {got} % of requests instead of {asked} %", hits, runs, 14, 0.018, 0.01)


def _regular(runs: int, weight: float, size: int = 10) -> Figure:
    """One request of every block fails, never none or two, which the proof behind the analysis does not allow for."""

    def stream(rng: np.random.Generator) -> Iterator[Counts]:
        in_candidate = rng.binomial(size, weight / 100, 5_000)
        hit = rng.random(5_000) * size < in_candidate
        pairs = zip(in_candidate.tolist(), hit.tolist(), strict=True)
        return ((ArmCount(size - n1, 1 - x1), ArmCount(n1, int(x1))) for n1, x1 in pairs)

    hits = sum(outcome.proven for outcome in repeat(runs, 14, WORSE, stream))
    return share("G14", f"false rollbacks, one failure in every block, weight {weight}", hits, runs, 14, 0.018, 0.01)


def g15(runs: int) -> list[Figure]:
    """Runs in which the good part alone was called worse are left out: `g1` counts those."""
    failed = [one for run in range(runs) if (one := _late(run, 100_000)) is not None]
    return [
        mean("G15", "failed requests, dead after 100,000 good ones, weight 5: mean", failed, 15, 25),
        percentile95("G15", "failed requests, dead after 100,000 good ones, weight 5: 95 %", failed, 15, 25),
    ]


def _late(run: int, good: int) -> float | None:
    rng = np.random.default_rng([15, run])
    before = list(bulk(rng, 5, 0.01, 0.01, good))
    outcome = follow(WORSE, chain(before, up_to(requests(rng, 5, 0.01, DEAD), 100_000)))
    if outcome.stable.requests + outcome.candidate.requests <= good:
        return None
    return _failed(outcome) - sum(candidate.errors for _, candidate in before)
