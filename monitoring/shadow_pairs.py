"""Both answers to each request, found by its id and told in order of assignment.

Pure. What is waited for is bounded in time and number. A request whose copy was never heard of is no pair, and nothing
is held against the candidate for it: Envoy sends no copy of a large request, nor more than so many at a time. Nor is a
request whose client left before the revision had its time, because no client leaves a copy.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from monitoring.blocks import Arm
from monitoring.filling import Folding, Record
from monitoring.shadow_blocks import Answer, Paired, ShadowBlock
from monitoring.shadow_rows import rows

MOST = 2000
"""Requests that are waited for at a time; others are not followed meanwhile."""


@dataclass(slots=True)
class _Both:
    """What is known of one request."""

    stable: Record | None = None
    candidate: Record | None = None


class Pairing:
    """Pairs the answers of one rollout in one log; owned by one reader, and restored from `state` after a crash."""

    def __init__(self, rollout: str, policy: Folding | None = None, most: int = MOST) -> None:
        self.rollout = rollout
        self.counts = Counter[str]()
        """Requests that make no pair, ``uncopied``, ``undecided`` and ``unfollowed`` ones, and ``overdue`` records."""
        self._policy = policy or Folding()
        self._most = most
        self._known: dict[str, _Both] = {}
        self._order: list[tuple[float, str]] = []
        self._frontier = 0.0
        """Everything assigned up to this time is told."""

    def add(self, record: Record) -> None:
        """Take what a line says of an answer, in any order and any number of times."""
        both = self._known.get(record.request_id)
        if both is None:
            if not self._admitted(record):
                return
            both = self._known[record.request_id] = _Both()
            insort(self._order, (record.assigned, record.request_id))
        known = both.stable if record.arm is Arm.STABLE else both.candidate
        if known is None or known.decided is None:
            if record.arm is Arm.STABLE:
                both.stable = record
            else:
                both.candidate = record

    def _admitted(self, record: Record) -> bool:
        if record.assigned <= self._frontier:
            self.counts["overdue"] += 1
        elif len(self._known) >= self._most:
            self.counts["unfollowed"] += record.arm is Arm.STABLE and record.decided is not None
        else:
            return True
        return False

    def abandon(self, now: float) -> None:
        """The gateway died at `now`: what was under way ended, and says nothing about a revision."""
        for both in self._known.values():
            both.stable, both.candidate = (_ended(record, now) for record in (both.stable, both.candidate))

    def advance(self, now: float) -> ShadowBlock | None:
        """Everything the log said before `now` has been added; what is settled by that, without its number."""
        pairs: list[Paired] = []
        missing = count = 0
        for at, key in self._order:
            both = self._known[key]
            if at > now - self._policy.late_seconds or self._waits(both, at, now):
                break
            pair = self._paired(both)
            missing += pair is None
            pairs += [pair] if pair is not None else []
            self._frontier = at
            del self._known[key]
            count += 1
        del self._order[:count]
        return ShadowBlock(0, self.rollout, tuple(pairs), missing) if count else None

    def _waits(self, both: _Both, at: float, now: float) -> bool:
        """Whether there is a copy and one of the two answers is still to come."""
        if both.stable is None or both.candidate is None or now - at >= self._policy.timeout_seconds:
            return False
        return both.stable.decided is None or both.candidate.decided is None

    def _paired(self, both: _Both) -> Paired | None:
        stable, candidate = both.stable, both.candidate
        if stable is None or candidate is None:
            self.counts["uncopied"] += 1
            return None
        if stable.abandoned or candidate.abandoned:
            self.counts["undecided"] += 1
            return None
        return Paired(self._answer(stable), self._answer(candidate), rows(stable.prediction, candidate.prediction))

    def _answer(self, record: Record) -> Answer:
        error = record.error or record.decided is None
        return Answer(error, record.refused, round(record.latency(1000.0 * self._policy.timeout_seconds), 3))

    def state(self) -> dict[str, Any]:
        """What has to be kept for `restore`, as JSON."""
        known = [
            (at, key, *(record.state() if record else None for record in (both.stable, both.candidate)))
            for at, key in self._order
            for both in (self._known[key],)
        ]
        return {"rollout": self.rollout, "frontier": self._frontier, "counts": dict(self.counts), "known": known}

    @classmethod
    def restore(cls, state: Mapping[str, Any], policy: Folding | None = None) -> Pairing:
        pairing = cls(state["rollout"], policy)
        pairing._frontier, pairing.counts = state["frontier"], Counter(state["counts"])
        for at, key, *halves in state["known"]:
            stable, candidate = (Record.read(pairing.rollout, half) if half else None for half in halves)
            pairing._known[key] = _Both(stable, candidate)
            pairing._order.append((at, key))
        return pairing


def _ended(record: Record | None, now: float) -> Record | None:
    return replace(record, decided=now, abandoned=True) if record is not None and record.decided is None else record
