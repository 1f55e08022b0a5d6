"""Blocks of failed requests of both arms, and one claim of the product's followed through them.

The quickest way to look at the error rate alone: counts are drawn block by block, and judged by the product's own
`monitoring.eprocess`. Rates are of failed requests, a weight is the candidate's share in percent.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from monitoring.blocks import ArmCount, Block
from monitoring.eprocess import Claim, opened, updated

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
    """`total` requests in blocks of `size`: a hundred are what the product puts together at 2,000 requests a second."""
    in_candidate = rng.binomial(size, weight / 100, total // size)
    failed0 = rng.binomial(size - in_candidate, stable)
    failed1 = rng.binomial(in_candidate, candidate)
    for n1, x0, x1 in zip(in_candidate.tolist(), failed0.tolist(), failed1.tolist(), strict=True):
        yield ArmCount(size - n1, x0), ArmCount(n1, x1)


def up_to(blocks: Iterable[Counts], total: int) -> Iterator[Counts]:
    """Blocks until `total` requests are in them."""
    seen = 0
    for stable, candidate in blocks:
        seen += stable.requests + candidate.requests
        if seen > total:
            return
        yield stable, candidate


def numbered(counts: Iterable[Counts]) -> Iterator[Block]:
    for number, (stable, candidate) in enumerate(counts, start=1):
        yield Block(number, "simulated", 0, float(number), float(number + 1), stable, candidate)


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
    """Run number n has the generator of (`seed`, n)."""
    return [follow(claim, stream(np.random.default_rng([seed, run]))) for run in range(runs)]
