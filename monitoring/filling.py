"""What is known of requests, and the blocks that they are being gathered into.

Pure. Three times matter to a block: when it was closed, when its latencies are known, and when its outcomes are.
All three follow from the records alone, whenever they are looked at; so a reader that was away finds the blocks
that it would have found.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from math import inf
from typing import Any

from monitoring.blocks import CUTS, LEVELS, Arm, ArmCount, Latencies, Losses, Shares
from monitoring.ruler import Prediction, Ruler


@dataclass(frozen=True, slots=True)
class Folding:
    """When a block is closed, and how long its requests are waited for."""

    requests: int = 10
    """A block with requests of both arms closes at this many."""
    least_seconds: float = 0.05
    """But not sooner than this after it was opened: under heavy traffic, more requests cost less per block."""
    seconds: float = 1.0
    """Or this long after it was opened."""
    most_requests: int = 1000
    """A block closes at this many, also where an arm has none."""
    most_seconds: float = 60.0
    """Or this long after it was opened."""
    late_seconds: float = 2.0
    """How long after its assignment the first word of a request may come; more than Envoy's connect time-out."""
    flush_seconds: float = 0.5
    """How long after it happened the end of a request may be told; more than Envoy keeps a line to itself."""
    timeout_seconds: float = 65.0
    """A request undecided for this long is an error; more than Envoy's time-outs for sending it and for its answer."""
    memory_seconds: float = 120.0
    """Records assigned longer ago than this are repetitions, and dropped; more than the time-out."""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one request of a rollout; a later record of the same request replaces an undecided one."""

    request_id: str
    rollout: str
    step: int
    arm: Arm
    assigned: float
    """When the router took it, in seconds since the epoch."""
    decided: float | None = None
    """When it ended; None while it is under way."""
    error: bool = False
    abandoned: bool = False
    """It ended before anything could be said of its revision: no evidence, and left out of the counts."""
    refused: bool = False
    """The revision answered 4xx."""
    latency_ms: float | None = None
    """From its assignment to the end of the revision's answer; None: as `decided` says."""
    prediction: Prediction | None = None
    host: str = ""
    """The replica that served it."""
    loss: float | None = None
    """How bad the answer was by its own word, from 0 to 1; None where it said nothing."""
    entity: str = ""
    """Digest of what it was assigned by; empty where it was assigned by itself."""
    sampled: bool = False
    """Its prediction leaves rows out."""

    def latency(self, unending: float) -> float:
        """Milliseconds; `unending` where it did not end."""
        if self.latency_ms is not None:
            return self.latency_ms
        return unending if self.decided is None else 1000.0 * (self.decided - self.assigned)

    def state(self) -> list[Any]:
        """As JSON, short; `read` takes it."""
        told = [self.request_id, self.step, self.arm, self.assigned]
        if self.decided is None:
            return [*told, self.entity] if self.entity else told
        flags = self.error + 2 * self.abandoned + 4 * self.refused + 8 * self.sampled
        return [*told, self.decided, flags, self.latency_ms, self.prediction, self.host, self.loss, self.entity]

    @classmethod
    def read(cls, rollout: str, state: Sequence[Any]) -> Record:
        request_id, step, arm, assigned, *rest = state
        if len(rest) <= 1:
            return cls(request_id, rollout, step, Arm(arm), assigned, entity="".join(rest))
        decided, flags, latency, values, host, *later = rest
        outcome = (bool(flags & 1), bool(flags & 2), bool(flags & 4), latency)
        prediction = None if values is None else tuple(values)
        told = cls(request_id, rollout, step, Arm(arm), assigned, decided, *outcome, prediction, host, *later)
        return replace(told, sampled=True) if flags & 8 else told


@dataclass(slots=True)
class Filling:
    """A block that is open, or closed and not settled yet."""

    step: int
    opened: float
    closed: float
    """When its last request was assigned."""
    part: int
    """Where the first of its requests was kept; see `Part`."""
    ended: float = inf
    """When it was closed to further requests."""
    arms: set[Arm] = field(default_factory=set)
    members: list[str] = field(default_factory=list)

    def add(self, record: Record, part: int) -> None:
        self.part = min(self.part, part)
        self.members.append(record.request_id)
        self.arms.add(record.arm)
        self.closed = max(self.closed, record.assigned)

    def full(self, policy: Folding) -> bool:
        """Whether it closes by count, or because its last request came after its time and completed the arms."""
        count, age = len(self.members), self.closed - self.opened
        if count >= policy.most_requests:
            return True
        enough = count >= policy.requests and age >= policy.least_seconds
        return len(self.arms) == len(Arm) and (enough or age >= policy.seconds)

    def over(self, policy: Folding) -> float:
        """From when on a request belongs to a later block."""
        return self.opened + (policy.seconds if len(self.arms) == len(Arm) else policy.most_seconds)

    def state(self) -> list[Any]:
        ended = None if self.ended == inf else self.ended
        return [self.step, self.opened, self.closed, self.part, ended, sorted(self.arms), self.members]

    @classmethod
    def restore(cls, state: Sequence[Any]) -> Filling:
        step, opened, closed, part, ended, arms, members = state
        return cls(step, opened, closed, part, inf if ended is None else ended, {Arm(arm) for arm in arms}, [*members])


@dataclass(frozen=True, slots=True)
class Part:
    """What came in between two times that a folder was kept, so that it need not be kept whole every time."""

    number: int
    first_needed: int
    """Parts before this one need not be kept any more."""
    records: list[list[Any]]
    """Requests that were new or changed, as `Record.state` has them."""
    closed: list[tuple[int, list[Any]]]
    """Blocks that were closed: how many had been closed before, and `Filling.state`."""


def outcomes_due(filling: Filling, members: Iterable[Record], policy: Folding) -> float:
    """When the last of `members` is decided and told of, or has run out of time."""
    flush, timeout = policy.flush_seconds, policy.timeout_seconds
    known = (
        record.assigned + timeout if record.decided is None else min(record.decided + flush, record.assigned + timeout)
        for record in members
    )
    return max(filling.ended + policy.late_seconds, *known)


def latencies_due(filling: Filling, members: Iterable[Record], policy: Folding, ruler: Ruler) -> float:
    """When the last of `members` is decided and told of, or so old that its score is known."""
    longest = min(ruler.longest / 1000.0, policy.timeout_seconds - policy.flush_seconds)
    known = (
        record.assigned + longest if record.decided is None else min(record.decided, record.assigned + longest)
        for record in members
    )
    return max(filling.ended + policy.late_seconds, max(known) + policy.flush_seconds)


def count(members: Iterable[Record], arm: Arm, timeout: float) -> ArmCount:
    """What ended after `timeout` seconds or never is an error, however it ended."""
    requests = errors = refused = 0
    for record in members:
        if record.arm is arm:
            over = record.decided is None or record.decided - record.assigned > timeout
            if over or not record.abandoned:
                requests += 1
                errors += over or record.error
                refused += record.refused and not over
    return ArmCount(requests, errors, refused)


def latencies(members: Iterable[Record], arm: Arm, ruler: Ruler) -> Latencies:
    """Every request counts that is not abandoned, or was so only when its score was known."""
    ranks, slow, beyond, over = [0] * LEVELS, [0] * (len(CUTS) + 1), [0] * (len(CUTS) + 1), 0
    for record in members:
        if record.arm is arm:
            latency = record.latency(inf)
            if not record.abandoned or latency > ruler.longest:
                level, passed, passed_by_far = ruler.score(arm, latency)
                ranks[level] += 1
                slow[passed] += 1
                beyond[passed_by_far] += 1
                over += ruler.over(arm, latency)
    limited = ruler.scale.latency_slo_ms is not None
    return Latencies(tuple(ranks), _at_least(slow), _at_least(beyond), over if limited else None)


def _at_least(exactly: Sequence[int]) -> tuple[int, ...]:
    """From how many requests passed exactly 0, 1, 2... cuts to how many passed the first, the second and so on."""
    return tuple(reversed([*accumulate(reversed(exactly[1:]))]))


def losses(members: Iterable[Record], arm: Arm) -> Losses:
    told = [record.loss for record in members if record.arm is arm and record.loss is not None]
    return Losses(len(told), sum(told))


def predictions(members: Iterable[Record], arm: Arm, ruler: Ruler) -> Shares:
    total = [0.0] * ruler.categories
    for record in members:
        if record.arm is arm and record.prediction and not record.abandoned:
            part = 1.0 / len(record.prediction)
            for value in record.prediction:
                total[ruler.place(value)] += part
    return tuple(total)
