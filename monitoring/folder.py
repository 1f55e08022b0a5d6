"""Requests of both arms folded into blocks of concurrent requests.

Pure. A request enters a block in the order of its assignment, not of its answer. The log tells of a refused
connection only when it has failed, a little after its neighbours, so records wait `Folding.late_seconds`
before they are put in order; whatever comes later still joins the block that is open then.

A block is settled once, in one part or two: its latencies as soon as every request of it has ended or is slower
than anything the ruler tells apart, its outcomes once every request has ended. A candidate that hangs is seen
by the first, after the time that stable requests take and not after the time-out. Parts are settled in the order
of the times from which they are known, and each kind in the order of the blocks, so that good news never comes
before the bad of an earlier block.

Without a ruler one is made of the first requests of the stable revision that settle; blocks opened before
say nothing of latencies and predictions.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import astuple, replace
from math import inf, isfinite
from typing import Any

from monitoring.blocks import Arm, ArmCount, Block, Familiar, Scale
from monitoring.entities import Entities
from monitoring.filling import (
    Filling,
    Folding,
    Part,
    Record,
    count,
    latencies,
    latencies_due,
    losses,
    outcomes_due,
    predictions,
)
from monitoring.labels import Awaiting
from monitoring.ruler import History, Ruler


class Folder:
    """Folds the records of one rollout; owned by one reader, and restored from `state` after a crash.

    What has been emitted depends on the records and the times given to `advance` alone.
    """

    def __init__(
        self,
        rollout: str,
        policy: Folding | None = None,
        entities: Entities | None = None,
        awaiting: Awaiting | None = None,
    ) -> None:
        """`entities` are those of all logs of the rollout, which know and keep them together. So is what waits for
        labels, where anything does.
        """
        self.rollout = rollout
        self._entities = entities or Entities()
        self._awaiting = awaiting
        self.policy = policy or Folding()
        self.ruler: Ruler | None = None
        self.counts = Counter[str]()
        """Records that were put right: repeated, stale, disordered, late, shielded and familiar ones; see `add`."""
        self.ruled = inf
        """Blocks opened after this are scored."""
        self._scale = Scale()
        self._learnt = History()
        self._known: dict[str, Record] = {}
        self._waiting: list[tuple[float, str, int]] = []
        self._open: Filling | None = None
        self._closed = deque[Filling]()
        self._timed = 0
        self._popped = 0
        self._part = 0
        self._changed: dict[str, None] = {}
        self._shut: list[Filling] = []
        self._next = 1
        self._now = 0.0
        self._last = 0.0
        self._settled = set[str]()
        self._recent = deque[tuple[float, list[str]]]()
        self._unkept: list[str] = []

    def measure(self, scale: Scale, learnt: History) -> None:
        """Score by `scale`, against a ruler made of `learnt`, or else of it and what is still to settle."""
        if self.ruler is None:
            self._scale, self._learnt = scale, learnt
            self._learn(self._last if self._now else -inf)

    def adopt(self, ruler: Ruler, since: float) -> None:
        """Score what is opened after `since` with a ruler that somebody else has made."""
        if self.ruler is None:
            self.ruler, self.ruled, self._learnt = ruler, since, History()

    def add(self, record: Record) -> None:
        """Take one record, in any order and any number of times.

        A record of the other arm is the stable revision's answer to a request that failed on the candidate.
        """
        key = record.request_id
        known = self._known.get(key)
        if known is not None:
            if known.arm is not record.arm:
                self.counts["shielded"] += record.decided is not None
            elif known.decided is None and record.decided is not None:
                self._know(record)
            else:
                self.counts["repeated" if (known.decided is None) is (record.decided is None) else "disordered"] += 1
        elif key in self._settled:
            self.counts["repeated"] += 1
        elif record.assigned < self._now - self.policy.memory_seconds:
            self.counts["stale"] += 1
        elif self._entities.met(record.entity):
            self._pass_over(record)
        else:
            self.counts["late"] += record.assigned <= self._now - self.policy.late_seconds
            self._know(record)
            self._waiting.append((record.assigned, key, self._part))

    def _pass_over(self, record: Record) -> None:
        """Its entity has been counted by another request."""
        if record.decided is not None:
            self.counts["familiar"] += 1
            self._hear(record)

    def _hear(self, record: Record) -> None:
        if record.decided is not None and not record.abandoned:
            bad = record.error or record.refused
            self._entities.hear(record.arm, record.entity, record.decided, bad=bad)

    def _know(self, record: Record) -> None:
        self._known[record.request_id] = record
        self._changed[record.request_id] = None

    def abandon(self, now: float) -> None:
        """The gateway died at `now`: what was under way ended, and says nothing about a revision."""
        for record in [record for record in self._known.values() if record.decided is None]:
            self._know(replace(record, decided=now, abandoned=True))

    def advance(self, now: float) -> tuple[Block, ...]:
        """Everything the log said before `now` has been added; what is settled by that."""
        self._now = max(self._now, now)
        horizon = self._now - self.policy.late_seconds
        self._release(horizon)
        if self._open is not None and self._open.over(self.policy) <= horizon:
            self._close(self._open.over(self.policy))
        settled = self._settle()
        self._forget_old()
        familiar = self._entities.tell(self._now)
        return (*settled, self._said(familiar)) if familiar else tuple(settled)

    def _said(self, familiar: tuple[Familiar, Familiar]) -> Block:
        number, self._next = self._next, self._next + 1
        return Block(number, self.rollout, -1, self._now, self._now, ArmCount(), ArmCount(), familiar=familiar)

    def _release(self, horizon: float) -> None:
        self._waiting.sort()
        due = bisect_right(self._waiting, horizon, key=lambda entry: entry[0])
        for _, key, part in self._waiting[:due]:
            self._place(self._known[key], part)
        del self._waiting[:due]

    def _place(self, record: Record, part: int) -> None:
        if self._entities.met(record.entity):
            self._pass_over(self._known.pop(record.request_id))
            if record.decided is not None:
                self._go([record.request_id])
            return
        if record.entity:
            self._entities.meet(record.entity)
        if self._open is not None:
            over = self._open.over(self.policy)
            if record.assigned >= over:
                self._close(over)
            elif record.step != self._open.step:
                self._close(record.assigned)
        if self._open is None:
            self._open = Filling(record.step, record.assigned, record.assigned, part)
        self._open.add(record, part)
        if self._open.full(self.policy):
            self._close(self._open.closed)

    def _close(self, at: float) -> None:
        if self._open is not None:
            self._open.ended = at
            self._closed.append(self._open)
            self._shut.append(self._open)
            self._open = None

    def _settle(self) -> list[Block]:
        settled: list[Block] = []
        gone: list[str] = []
        while self._closed:
            due, number = self._first_due()
            if due > self._now:
                break
            self._last = max(self._last, due)
            settled.append(self._outcomes(due, gone) if number is None else self._latencies(self._closed[number]))
        if gone:
            self._go(gone)
        return settled

    def _go(self, keys: list[str]) -> None:
        """What is said of these requests from now on is a repetition."""
        self._settled.update(keys)
        self._recent.append((self._now, keys))
        self._unkept += keys

    def _first_due(self) -> tuple[float, int | None]:
        """When something is known next: the latencies of a closed block, by its number, or the first one's outcomes."""
        first = self._closed[0]
        outcomes = max(outcomes_due(first, self._members(first), self.policy), self._last)
        number = self._next_timed()
        if number is None or self.ruler is None:
            return outcomes, None
        filling = self._closed[number]
        timed = max(latencies_due(filling, self._members(filling), self.policy, self.ruler), self._last)
        return (timed, number) if timed < outcomes else (outcomes, None)

    def _next_timed(self) -> int | None:
        """The first closed block that will be scored and whose latencies have not been told."""
        while self._timed < len(self._closed) and self._closed[self._timed].opened <= self.ruled < inf:
            self._timed += 1
        return self._timed if self._timed < len(self._closed) and self.ruled < inf else None

    def _members(self, filling: Filling) -> list[Record]:
        return [self._known[key] for key in filling.members]

    def _latencies(self, filling: Filling) -> Block:
        """The early part of a block of which something is not known yet."""
        self._timed += 1
        return self._block(filling, ArmCount(), ArmCount(), self._members(filling), timed=True)

    def _outcomes(self, due: float, gone: list[str]) -> Block:
        """The whole of the first block, or what was left of it."""
        filling = self._closed.popleft()
        self._popped += 1
        timed = self._timed == 0
        self._timed = max(self._timed - 1, 0)
        members = [self._known.pop(key) for key in filling.members]
        for record in members:
            if record.entity:
                self._hear(record)
        if self._awaiting is not None:
            self._awaiting.add(filling.step, filling.opened, members)
        gone += filling.members
        timeout = self.policy.timeout_seconds
        counts = (count(members, Arm.STABLE, timeout), count(members, Arm.CANDIDATE, timeout))
        block = self._block(filling, *counts, members, timed=timed)
        told = (losses(members, Arm.STABLE), losses(members, Arm.CANDIDATE))
        if any(arm.requests for arm in told):
            block = replace(block, losses=told)
        if self.ruler is None:
            self._watch(members)
            self._learn(due)
        elif filling.opened > self.ruled and self.ruler.categories:
            shares = (predictions(members, Arm.STABLE, self.ruler), predictions(members, Arm.CANDIDATE, self.ruler))
            block = replace(block, predictions=shares)
        return block

    def _block(
        self, filling: Filling, stable: ArmCount, candidate: ArmCount, members: Iterable[Record], *, timed: bool
    ) -> Block:
        scores = None
        if timed and self.ruler is not None and filling.opened > self.ruled:
            scores = (latencies(members, Arm.STABLE, self.ruler), latencies(members, Arm.CANDIDATE, self.ruler))
        number, self._next = self._next, self._next + 1
        return Block(
            number, self.rollout, filling.step, filling.opened, filling.closed, stable, candidate, latency=scores
        )

    def _watch(self, members: Iterable[Record]) -> None:
        unending = 1000.0 * self.policy.timeout_seconds
        for record in members:
            if record.arm is Arm.STABLE and not record.abandoned:
                self._learnt.add(record.latency(unending), record.prediction)

    def _learn(self, at: float) -> None:
        """Freeze the ruler, for blocks opened after `at`, once enough is known for one."""
        self.ruler = Ruler.from_history(self._learnt, self._scale)
        if self.ruler is not None:
            self.ruled, self._learnt = at, History()

    def _forget_old(self) -> None:
        """Forget settled requests once a repetition of them would be dropped for its age."""
        while self._recent and self._recent[0][0] < self._now - self.policy.memory_seconds:
            self._settled.difference_update(self._recent.popleft()[1])

    def take_settled(self) -> list[str]:
        """Ids of the requests that were settled since it was asked last, to be kept for `restore`."""
        taken, self._unkept = self._unkept, []
        return taken

    def take_part(self) -> Part:
        """What came in since it was asked last, to be kept for `restore` together with a `state` taken after it."""
        number = self._popped + len(self._closed) - len(self._shut)
        closed = [(number + place, filling.state()) for place, filling in enumerate(self._shut)]
        closed = [entry for entry in closed if entry[0] >= self._popped]
        records = [self._known[key].state() for key in self._changed if key in self._known]
        part = Part(self._part, self._first_needed(), records, closed)
        self._part, self._changed, self._shut = self._part + 1, {}, []
        return part

    def _first_needed(self) -> int:
        """The first part that tells of a request that is not settled."""
        fillings = [*self._closed] if self._open is None else [*self._closed, self._open]
        parts = [filling.part for filling in fillings] + [part for _, _, part in self._waiting]
        return min(parts, default=self._part)

    def state(self) -> dict[str, Any]:
        """The rest of what has to be kept for `restore`, as JSON."""
        return {
            "rollout": self.rollout,
            "next": self._next,
            "now": self._now,
            "last": self._last,
            "timed": self._timed,
            "popped": self._popped,
            "part": self._part,
            "counts": dict(self.counts),
            "ruler": None if self.ruler is None else self.ruler.state(),
            "ruled": self.ruled if isfinite(self.ruled) else None,
            "scale": astuple(self._scale),
            "learnt": self._learnt.state(),
            "open": None if self._open is None else self._open.state(),
        }

    @classmethod
    def restore(
        cls,
        state: Mapping[str, Any],
        parts: Iterable[Part],
        settled: Iterable[tuple[float, list[str]]],
        policy: Folding | None = None,
        entities: Entities | None = None,
        awaiting: Awaiting | None = None,
    ) -> Folder:
        """From its state, its parts from the first needed one on, and what was settled lately and when, in order."""
        folder = cls(state["rollout"], policy, entities, awaiting)
        folder._next, folder._now, folder._last = state["next"], state["now"], state["last"]
        folder._timed, folder._popped, folder._part = state["timed"], state["popped"], state["part"]
        folder.counts = Counter(state["counts"])
        folder.ruler = None if state["ruler"] is None else Ruler.restore(state["ruler"])
        if folder.ruler is not None:
            folder.ruled = -inf if state["ruled"] is None else state["ruled"]
        folder._scale, folder._learnt = Scale(*state["scale"]), History.restore(state["learnt"])
        folder._open = None if state["open"] is None else Filling.restore(state["open"])
        for at, keys in settled:
            folder._settled.update(keys)
            folder._recent.append((at, keys))
        for part in parts:
            folder._take_back(part)
        placed = {key for filling in (folder._open, *folder._closed) if filling for key in filling.members}
        rest = [record for key, record in folder._known.items() if key not in placed]
        for record in rest:
            folder._know(record)
            folder._waiting.append((record.assigned, record.request_id, folder._part))
        return folder

    def _take_back(self, part: Part) -> None:
        """Everything in `part` that is not settled."""
        self._closed.extend(Filling.restore(state) for number, state in part.closed if number >= self._popped)
        for entry in part.records:
            if entry[0] not in self._settled:
                self._known[entry[0]] = Record.read(self.rollout, entry)
