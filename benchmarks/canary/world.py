"""Worlds that a canary can meet, and the requests in them.

A stream is drawn before anybody decides anything: for every request when it comes, the number between 0 and 100 that
assigns it (to the candidate where it is below the weight in force), and what would come of it on either arm. So every
rule, ours and others', meets the very same requests, whatever weights it asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from monitoring.blocks import Arm
from monitoring.replay_event import Event

Numbers = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]
BEFORE = 2_500
"""Requests of the stable revision before the canary."""
SCORES = 16
"""Values of a request of many rows that reach the analysis."""


@dataclass(frozen=True, slots=True)
class World:
    """What happens to requests; of pairs, the second is the candidate's."""

    fails: tuple[float, float] = (0.01, 0.01)
    slower: float = 1.0
    """Times the stable revision's latencies."""
    tail: tuple[float, float] = (0.0, 0.0)
    """Share of requests that take ten times as long."""
    moved: float = 0.0
    """Total variation distance of the candidate's answers from the stable revision's."""
    constant: bool = False
    """The candidate answers always the same."""
    rate: float = 20.0
    """Requests per second."""
    split: float = 1.0
    """The candidate gets this many times the share that was asked for."""
    rising: float = 1.0
    """Both arms fail this many times as often at the end as in the beginning."""
    users: int = 0
    """Sticky users, of whom a tenth fail on everything and the rest never; 0: every request by itself."""
    rows: int = 1
    """Rows of a request, which fail together and are scored much alike."""
    slow_successes: bool = False
    """Requests that succeed take ten times as long as those that fail."""
    median_ms: float = 20.0
    """Of the stable revision's latencies, which are log-normal with a standard deviation of 0.4 in the exponent."""


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in order of assignment; arrays of two rows have the stable revision's outcomes first."""

    world: World
    t: Numbers
    """Seconds."""
    draw: Numbers
    """From 0 to 100, already over the split."""
    failed: Flags
    latency_ms: Numbers
    score: Numbers
    unit: npt.NDArray[np.int64]


def drawn(seed: int, world: World, most: int) -> Stream:
    """`BEFORE` requests and `most` more."""
    rng = np.random.default_rng(seed)
    n = BEFORE + most
    t = rng.exponential(1 / world.rate, n).cumsum()
    unit = rng.integers(0, world.users, n) if world.users else np.arange(n)
    draw = (100 * rng.random(world.users))[unit] if world.users else 100 * rng.random(n)
    failed = _failed(rng, world, unit)
    latency = _latencies(rng, world, failed)
    return Stream(world, t, draw / world.split, failed, latency, _scores(rng, world, n), unit)


def _failed(rng: np.random.Generator, world: World, unit: npt.NDArray[np.int64]) -> Flags:
    if world.users:
        return np.tile(unit % 10 == 0, (2, 1))
    passed = np.maximum(0, np.arange(len(unit)) - BEFORE) / max(1, len(unit) - BEFORE)
    rising = 1 + (world.rising - 1) * passed
    failed: Flags = rng.random(len(unit)) < np.outer(world.fails, rising)
    return failed


def _latencies(rng: np.random.Generator, world: World, failed: Flags) -> Numbers:
    n = failed.shape[1]
    latency = world.median_ms * np.exp(0.4 * rng.standard_normal(n)) * np.array([[1.0], [world.slower]])
    if any(world.tail):
        latency *= np.where(rng.random(n) < np.array(world.tail)[:, None], 10.0, 1.0)
    if world.slow_successes:
        latency *= np.where(failed, 1.0, 10.0)
    return np.asarray(latency)


def _scores(rng: np.random.Generator, world: World, n: int) -> Numbers:
    """Even between 0 and 1. What the candidate answers otherwise lies in the uppermost tenth."""
    stable = rng.random(n)
    candidate = stable.copy()
    if world.moved:
        others = rng.random(n) < world.moved / 0.9
        candidate = np.where(others, 0.9 + 0.1 * rng.random(n), rng.random(n))
    if world.constant:
        candidate = np.full(n, 0.5)
    return np.stack([stable, candidate])


def events(stream: Stream, asked: Callable[[], float]) -> Iterator[Event]:
    """The requests, at the weight that is asked for when each comes."""
    world = stream.world
    columns = (stream.t, stream.draw, stream.failed.T, stream.latency_ms.T, stream.score.T, stream.unit)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    for number, (t, draw, failed, latency_ms, score, unit) in enumerate(rows):
        weight = 0 if number < BEFORE else asked()
        arm = int(draw < weight)
        yield Event(
            id=number,
            arm=Arm.CANDIDATE if arm else Arm.STABLE,
            t=t,
            weight=weight,
            unit=unit if world.users else None,
            done=t + latency_ms[arm] / 1000,
            status=500 if failed[arm] else 200,
            latency_ms=latency_ms[arm],
            prediction=score[arm] if world.rows == 1 else _rows(score[arm], number),
        )


def _rows(score: float, number: int) -> list[float]:
    """Three quarters of the rows are scored as the request, the others anyhow."""
    return [score if row % 4 else (score + 0.618 * (row + number)) % 1 for row in range(SCORES)]
