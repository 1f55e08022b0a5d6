"""How often a revision would be taken back for being itself: its own requests, replayed as two arms.

Pure. What was recorded of the stable revision is shared between two arms that are both it, many times, and judged by
the code that judges a canary. Two ways, because they show different things:

- *by chance*, as the gateway does. Both arms then meet the same replicas, so this has to keep the promise, always.
- *apart*: one replica is the candidate; where there is only one, what the candidate met is taken from another time of
  the record. What a replica does by itself, such as stumbling, is then in one arm and not in the other. Where the load
  changed within the record this says too much, never too little.

Where the second way breaks the promise, windows of several lengths are tried, and the shortest that keeps it is named.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import comb
from random import Random

from monitoring.analysis import warned
from monitoring.blocks import Arm, Seen
from monitoring.bursts import spread_of
from monitoring.replay import Replay
from monitoring.replay_event import Event
from monitoring.replay_policy import ReplayPolicy

LEAST = 500
"""Requests without which nothing can be said."""
RUNS = 100
SECONDS = (2.0, 5.0, 10.0, 20.0, 30.0, 60.0)
"""Windows that are tried."""
_BEFORE = 0.25
"""Part of the record that is what was known before the canary."""
_APART = (0.2, 0.8)
"""How far, as part of the record, the other time lies."""
_LEAST_SHARE = 0.05
"""Of the requests that a replica has to have served to be a candidate."""


class CalibrationError(ValueError):
    """There is too little to go by."""


@dataclass(frozen=True, slots=True)
class Share:
    """How often the revision was taken back for being itself."""

    way: str
    runs: int
    taken_back: int
    promised: bool
    """It is no more than the policy allows, chance aside."""
    blamed: tuple[str, ...]
    """The reasons, the commonest first."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """What came of it."""

    requests: int
    seconds: float
    """That the record covers."""
    replicas: int
    ratio: float
    """How many times as much as by chance failures vary, less what may be chance."""
    shares: tuple[Share, ...]
    burst_seconds: float | None
    """The shortest window that keeps the promise; None where none is needed, or none does."""
    advice: str


def calibrate(policy: ReplayPolicy, seen: Sequence[Seen], runs: int = RUNS, seed: int = 0) -> Calibration:
    """`CalibrationError` where too few requests are known."""
    record = sorted((one for one in seen if one.at), key=lambda one: one.at)
    if len(record) < LEAST:
        raise CalibrationError(f"{len(record)} requests of the stable version are recorded, {LEAST} are needed")
    apart = _by_replica if len(_candidates(record)) > 1 else _by_time
    shares = (_share(policy, record, _by_chance, runs, seed), _share(policy, record, apart, runs, seed))
    found = None if shares[1].promised else _shortest(policy, record, apart, runs, seed)
    return Calibration(
        requests=len(record),
        seconds=record[-1].at - record[0].at,
        replicas=len({one.host for one in record}),
        ratio=spread_of(record).ratio,
        shares=shares,
        burst_seconds=found,
        advice=_advice(shares, found),
    )


def most_by_chance(runs: int, alpha: float) -> int:
    """How many of `runs` a share of exactly `alpha` is exceeded in with a chance of 5 % at most."""
    beyond, count = 1.0, -1
    while beyond > 0.05:
        count += 1
        beyond -= comb(runs, count) * alpha**count * (1 - alpha) ** (runs - count)
    return count


Way = Callable[[Replay, Sequence[Seen], Random], Iterator[Event]]
"""The events of one run; asks the replay for the weight that is in force."""


def _share(policy: ReplayPolicy, record: Sequence[Seen], way: Way, runs: int, seed: int) -> Share:
    chances = (Random(f"{seed}/{run}") for run in range(runs))  # noqa: S311 a simulation
    reasons = Counter(_reason(_opened(policy, record), record, way, chance) for chance in chances)
    del reasons[None]
    count = reasons.total()
    promised = count <= most_by_chance(runs, policy.analysis.alpha_rollback)
    blamed = tuple(str(reason) for reason, _ in reasons.most_common(3))
    return Share(_WORDS[way], runs, count, promised, blamed)


def _opened(policy: ReplayPolicy, record: Sequence[Seen]) -> Replay:
    """A canary that knows of bursts what a live one would: the whole record."""
    canary = Replay(policy)
    canary.evidence = warned(policy.analysis, canary.evidence, spread_of(record).ratio)
    return canary


def _reason(canary: Replay, record: Sequence[Seen], way: Way, chance: Random) -> str | None:
    """Why the revision was taken back; None where it was not."""
    for event in way(canary, record, chance):
        canary.feed((event,))
        if canary.evidence.failed is not None:
            return str(canary.decision()["reason"]).partition(":")[2].partition(",")[0].strip()
    return None


def _by_chance(canary: Replay, record: Sequence[Seen], chance: Random) -> Iterator[Event]:
    known = round(_BEFORE * len(record))
    for number, one in enumerate(record):
        weight = canary.weight if number >= known else 0
        arm = Arm.CANDIDATE if chance.random() < weight / 100 else Arm.STABLE
        yield _event(number, one, one, arm, weight)


def _by_time(canary: Replay, record: Sequence[Seen], chance: Random) -> Iterator[Event]:
    known = round(_BEFORE * len(record))
    lag = round(chance.uniform(*_APART) * len(record))
    for number, one in enumerate(record):
        weight = canary.weight if number >= known else 0
        arm = Arm.CANDIDATE if chance.random() < weight / 100 else Arm.STABLE
        met = record[(number + lag) % len(record)] if arm is Arm.CANDIDATE else one
        yield _event(number, one, met, arm, weight)


def _by_replica(_: Replay, record: Sequence[Seen], chance: Random) -> Iterator[Event]:
    known = round(_BEFORE * len(record))
    hosts = _candidates(record)
    candidate = chance.choice(sorted(hosts))
    weight = max(1, round(100 * hosts[candidate] / len(record)))
    for number, one in enumerate(record):
        arm = Arm.CANDIDATE if one.host == candidate else Arm.STABLE
        if number >= known or arm is Arm.STABLE:
            yield _event(number, one, one, arm, weight if number >= known else 0)


_WORDS: dict[Way, str] = {
    _by_chance: "every request assigned by chance",
    _by_time: "what the candidate met taken from another time",
    _by_replica: "one replica taken for the candidate",
}


def _candidates(record: Sequence[Seen]) -> dict[str, int]:
    """Replicas with enough requests, and how many."""
    counts = Counter(one.host for one in record)
    return {host: count for host, count in counts.items() if count >= _LEAST_SHARE * len(record)}


def _event(number: int, one: Seen, met: Seen, arm: Arm, weight: float) -> Event:
    """The request that ended when `one` did and as `met` did. In a record the end is what is in order."""
    status = 500 if met.error else 400 if met.refused else 200
    prediction = list(met.prediction) if met.prediction else None
    return Event(
        id=number,
        arm=arm,
        t=one.at,
        weight=weight,
        done=one.at,
        status=status,
        latency_ms=met.latency_ms,
        prediction=prediction,
        host=met.host,
    )


def _shortest(policy: ReplayPolicy, record: Sequence[Seen], way: Way, runs: int, seed: int) -> float | None:
    """The shortest window with which the promise is kept, bursts being taken for granted."""
    for seconds in SECONDS:
        analysis = replace(policy.analysis, burst_limit=0.0, burst_seconds=seconds)
        if _keeps(replace(policy, analysis=analysis), record, way, runs, seed):
            return seconds
    return None


def _keeps(policy: ReplayPolicy, record: Sequence[Seen], way: Way, runs: int, seed: int) -> bool:
    """As `_share` says it, known as soon as it is broken."""
    left = most_by_chance(runs, policy.analysis.alpha_rollback)
    for run in range(runs):
        chance = Random(f"{seed}/{run}")  # noqa: S311 a simulation
        left -= _reason(_opened(policy, record), record, way, chance) is not None
        if left < 0:
            return False
    return True


def _advice(shares: tuple[Share, Share], seconds: float | None) -> str:
    if not shares[0].promised:
        return (
            "The requests of the record are not independent, or the record is too small to go by: widen the tolerances"
            " for what is blamed, or lower its weight"
        )
    if shares[1].promised:
        return "Nothing has to be changed"
    if seconds is None:
        return "No window keeps the promise; look at what is blamed, and lower its weight in the policy"
    return f"Set analysis.burst_seconds to {seconds:g} and analysis.burst_limit to 0"
