"""Requests of both arms folded into blocks of concurrent requests.

Pure. A block holds requests that were assigned close together in time, so that both arms met the same
conditions; it is closed by count or time only, never by outcomes, and settled once every request in it is
decided. Only blocks are compared, never sums over blocks: that is what keeps the analysis right while
traffic, error rates and weights change.

A request enters a block in the order of its assignment, not of its answer. The log tells of a refused
connection only when it has failed, a little after its neighbours, so records wait `Folding.late_seconds`
before they are put in order; whatever comes later still joins the block that is open then.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Protocol


class Arm(StrEnum):
    """Which revision a request was assigned to."""

    STABLE = "stable"
    """The revision that holds the traffic."""
    CANDIDATE = "candidate"
    """The revision being tried."""


@dataclass(frozen=True, slots=True)
class ArmCount:
    """Requests of one arm in one block."""

    requests: int = 0
    errors: int = 0
    """4xx, 5xx, time-out, reset or refused connection."""
    refused: int = 0
    """4xx: the revision did not take the request. Clients ask both arms alike, so it compares as errors do."""


LEVELS = 32
"""Levels of the rank of a latency among those of the stable revision's reference, from fastest to slowest."""
CUTS = (0.50, 0.90, 0.95, 0.99)
"""Quantiles of the reference beyond which a request counts as slow."""


@dataclass(frozen=True, slots=True)
class Latencies:
    """How slow the requests of one arm were in one block, against the reference of the rollout."""

    ranks: tuple[int, ...]
    """Requests per level; the candidate's latencies were divided by 1 + `Scale.latency_tolerance` before."""
    slow: tuple[int, ...]
    """Requests beyond each of `CUTS`, after the same division."""
    beyond: tuple[int, ...]
    """Requests beyond each of `CUTS`, the candidate's latencies divided by 1 + `Scale.latency_margin` instead."""


Shares = tuple[float, ...]
"""What one arm predicted in one block: its requests per category of the reference, a request of many rows in parts."""


@dataclass(frozen=True, slots=True)
class Block:
    """A settled block of one rollout. `id` counts from 1 within the rollout and never has gaps."""

    id: int
    rollout: str
    step: int
    opened: float
    """When its first request was assigned, in seconds since the epoch."""
    closed: float
    """When its last request was assigned."""
    stable: ArmCount
    candidate: ArmCount
    latency: tuple[Latencies, Latencies] | None = None
    """Of the stable revision and the candidate; None where the block says nothing of latency."""
    predictions: tuple[Shares, Shares] | None = None
    """Of the stable revision and the candidate; None where the block says nothing of predictions."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How latencies are scored; part of what is frozen when a rollout begins."""

    latency_tolerance: float = 0.10
    """The candidate may be slower by this before it counts against it."""
    latency_margin: float = 0.25
    """And by this before it counts against its promotion."""


class BlockError(Exception):
    """Blocks could not be read or kept; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class BlockSource(Protocol):
    """Where settled blocks come from. Every method raises `BlockError`."""

    def prepare(self, rollout: str, model: str, scale: Scale) -> None:
        """Freeze the reference of `rollout` from what the stable revision did so far; later calls do nothing."""
        ...

    def blocks(self, rollout: str, after: int = 0) -> tuple[Block, ...]:
        """The settled blocks of `rollout` with an id above `after`, in order; asking again gives the same ones."""
        ...

    def rate(self, model: str) -> float | None:
        """Scoring requests per second over the last minute; None where that is not known."""
        ...

    def forget(self, rollout: str) -> None:
        """Drop everything about `rollout`, also what is still to come; an unknown one is fine."""
        ...


@dataclass(frozen=True, slots=True)
class Folding:
    """When a block is closed, and how long its requests are waited for."""

    requests: int = 10
    """A block with requests of both arms closes at this many."""
    seconds: float = 1.0
    """Or this long after it was opened."""
    most_requests: int = 1000
    """A block closes at this many, also where an arm has none."""
    most_seconds: float = 60.0
    """Or this long after it was opened."""
    late_seconds: float = 2.0
    """How long after its assignment the first word of a request may come; more than Envoy's connect time-out."""
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


@dataclass(slots=True)
class Filling:
    """A block that is open, or closed and not settled yet."""

    id: int
    step: int
    opened: float
    closed: float
    arms: set[Arm] = field(default_factory=set)
    members: list[str] = field(default_factory=list)

    def add(self, record: Record) -> None:
        self.members.append(record.request_id)
        self.arms.add(record.arm)
        self.closed = max(self.closed, record.assigned)

    def full(self, policy: Folding) -> bool:
        """Whether it closes by count, or because its last request came after its time and completed the arms."""
        count, age = len(self.members), self.closed - self.opened
        return count >= policy.most_requests or (
            len(self.arms) == len(Arm) and (count >= policy.requests or age >= policy.seconds)
        )

    def over(self, at: float, policy: Folding) -> bool:
        """Whether a request assigned at `at` belongs to a later block."""
        age = at - self.opened
        return age >= policy.most_seconds or (age >= policy.seconds and len(self.arms) == len(Arm))

    def state(self) -> list[Any]:
        return [self.id, self.step, self.opened, self.closed, sorted(self.arms), self.members]

    @classmethod
    def restore(cls, state: Sequence[Any]) -> Filling:
        number, step, opened, closed, arms, members = state
        return cls(number, step, opened, closed, {Arm(arm) for arm in arms}, [*members])


class Folder:
    """Folds the records of one rollout; owned by one reader, and restored from `state` after a crash.

    What has been emitted depends on the records and the times given to `advance` alone.
    """

    def __init__(self, rollout: str, policy: Folding | None = None) -> None:
        self.rollout = rollout
        self.policy = policy or Folding()
        self.dropped = 0
        """Repetitions of requests that were settled long ago."""
        self._known: dict[str, Record] = {}
        self._waiting: set[str] = set()
        self._closed: list[Filling] = []
        self._open: Filling | None = None
        self._next = 1
        self._now = 0.0
        self._settled: dict[str, float] = {}

    def add(self, record: Record) -> None:
        """Take one record, in any order and any number of times."""
        known = self._known.get(record.request_id)
        if known is not None:
            if known.decided is None and record.decided is not None:
                self._known[record.request_id] = record
        elif record.request_id in self._settled or record.assigned < self._now - self.policy.memory_seconds:
            self.dropped += 1
        else:
            self._known[record.request_id] = record
            self._waiting.add(record.request_id)

    def abandon(self, now: float) -> None:
        """The gateway died at `now`: what was under way ended, and says nothing about a revision."""
        for key, record in self._known.items():
            if record.decided is None:
                self._known[key] = replace(record, decided=now, abandoned=True)

    def advance(self, now: float) -> tuple[Block, ...]:
        """Everything the log said before `now` has been added; the blocks that are settled by that."""
        self._now = max(self._now, now)
        horizon = self._now - self.policy.late_seconds
        self._release(horizon)
        if self._open is not None and self._open.over(horizon, self.policy):
            self._close()
        self._recall()
        return tuple(self._settle())

    def _release(self, horizon: float) -> None:
        due = [self._known[key] for key in self._waiting if self._known[key].assigned <= horizon]
        for record in sorted(due, key=lambda r: (r.assigned, r.request_id)):
            self._waiting.discard(record.request_id)
            self._place(record)

    def _place(self, record: Record) -> None:
        if self._open is not None and (record.step != self._open.step or self._open.over(record.assigned, self.policy)):
            self._close()
        if self._open is None:
            self._open = Filling(self._next, record.step, record.assigned, record.assigned)
            self._next += 1
        self._open.add(record)
        if self._open.full(self.policy):
            self._close()

    def _close(self) -> None:
        if self._open is not None:
            self._closed.append(self._open)
            self._open = None

    def _settle(self) -> list[Block]:
        settled: list[Block] = []
        while self._closed and all(self._decided(key) for key in self._closed[0].members):
            filling = self._closed.pop(0)
            members = [self._known.pop(key) for key in filling.members]
            self._settled.update(dict.fromkeys(filling.members, self._now))
            settled.append(_block(self.rollout, filling, members))
        return settled

    def _decided(self, key: str) -> bool:
        record = self._known[key]
        return record.decided is not None or self._now - record.assigned > self.policy.timeout_seconds

    def _recall(self) -> None:
        """Forget settled requests once a repetition of them would be dropped for its age."""
        limit = self._now - self.policy.memory_seconds
        for key in [*self._settled]:
            if self._settled[key] >= limit:
                break
            del self._settled[key]

    def state(self) -> dict[str, Any]:
        """What has to be kept for `restore`, as JSON. Ids of settled requests are not: nothing is read twice."""
        return {
            "rollout": self.rollout,
            "next": self._next,
            "now": self._now,
            "dropped": self.dropped,
            "records": [_written(record) for record in self._known.values()],
            "waiting": sorted(self._waiting),
            "open": None if self._open is None else self._open.state(),
            "closed": [filling.state() for filling in self._closed],
        }

    @classmethod
    def restore(cls, state: Mapping[str, Any], policy: Folding | None = None) -> Folder:
        folder = cls(state["rollout"], policy)
        folder._next, folder._now, folder.dropped = state["next"], state["now"], state["dropped"]
        folder._known = {entry[0]: _read(folder.rollout, entry) for entry in state["records"]}
        folder._waiting = set(state["waiting"])
        folder._open = None if state["open"] is None else Filling.restore(state["open"])
        folder._closed = [Filling.restore(entry) for entry in state["closed"]]
        return folder


def _written(record: Record) -> list[Any]:
    outcome = [record.decided, record.error, record.abandoned]
    return [record.request_id, record.step, record.arm.value, record.assigned, *outcome]


def _read(rollout: str, entry: Sequence[Any]) -> Record:
    request_id, step, arm, *rest = entry
    return Record(request_id, rollout, step, Arm(arm), *rest)


def _block(rollout: str, filling: Filling, members: Sequence[Record]) -> Block:
    counted = [record for record in members if not record.abandoned]
    counts = {arm: _count([record for record in counted if record.arm is arm]) for arm in Arm}
    return Block(
        filling.id, rollout, filling.step, filling.opened, filling.closed, counts[Arm.STABLE], counts[Arm.CANDIDATE]
    )


def _count(records: Sequence[Record]) -> ArmCount:
    return ArmCount(len(records), sum(record.error or record.decided is None for record in records))
