"""A store in memory with the same rules as the real one.

The lease runs by `clock`, which a test sets; `broken` makes every call fail as an unreachable database does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from pipelines.live import Live
from pipelines.rollout import Event, Intent, Rollout
from pipelines.store import Approved, Conflict, StoreError
from registry_hooks.model_version import Channel, ChannelKind, ModelVersion, Snapshot


class FakeStore:
    """Implements every port in `pipelines.store`."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.clock = clock
        self.broken = False
        """While set, every method raises a `StoreError` that can be retried, and changes nothing."""
        self._lock = threading.Lock()
        self._rollouts: dict[str, Rollout] = {}
        self._lives: dict[tuple[str, Channel], Live] = {}
        self._approved: dict[tuple[ModelVersion, str], Approved] = {}
        self._intents: dict[str, Intent] = {}
        self._outcomes: dict[str, str] = {}
        self._before = Snapshot(frozenset(), frozenset())
        self._events: list[Event] = []
        self._lease: tuple[str, datetime] | None = None

    # `RolloutStore`.

    def save(self, rollout: Rollout, live: Live | None = None, events: Sequence[Event] = ()) -> Rollout:
        with self._transaction():
            self._check_serial(rollout, self._rollouts.get(rollout.id), f"rollout {rollout.id}")
            self._check_alone(rollout)
            if live is not None:
                self._keep(live)
            saved = replace(rollout, serial=rollout.serial + 1)
            self._rollouts[saved.id] = saved
            self._events.extend(events)
            return saved

    def active(self) -> tuple[Rollout, ...]:
        with self._transaction():
            return tuple(sorted((r for r in self._rollouts.values() if not r.settled), key=_age))

    def rollout(self, rollout_id: str) -> Rollout | None:
        with self._transaction():
            return self._rollouts.get(rollout_id)

    def rollouts(self, model: str, limit: int = 20) -> tuple[Rollout, ...]:
        with self._transaction():
            found = [r for r in self._rollouts.values() if r.intent.model == model]
            return tuple(sorted(found, key=_age, reverse=True)[:limit])

    def lives(self) -> tuple[Live, ...]:
        with self._transaction():
            return tuple(self._lives[key] for key in sorted(self._lives))

    def keep(self, live: Live, events: Sequence[Event] = ()) -> Live:
        with self._transaction():
            kept = self._keep(live)
            self._events.extend(events)
            return kept

    # `ApprovedFiles`.

    def approve(self, seen: Approved) -> Approved:
        with self._transaction():
            return self._approved.setdefault((seen.version, seen.source), seen)

    def approved(self, version: ModelVersion, source: str) -> Approved | None:
        with self._transaction():
            return self._approved.get((version, source))

    # `Inbox`.

    def before(self) -> Snapshot:
        with self._transaction():
            return self._before

    def observe(self, after: Snapshot, intents: Sequence[Intent], events: Sequence[Event] = ()) -> None:
        with self._transaction():
            merged = self._before.then(after)
            first = {h: h.since for h in self._before.holdings if h.channel.kind is ChannelKind.ALIAS}
            held = frozenset(replace(h, since=first.get(h, h.since)) for h in merged.holdings)
            self._before = Snapshot(merged.models, held)
            for intent in intents:
                self._intents.setdefault(intent.id, intent)
            self._events.extend(events)

    def submit(self, intent: Intent) -> None:
        with self._transaction():
            self._intents.setdefault(intent.id, intent)

    def pending(self) -> tuple[Intent, ...]:
        with self._transaction():
            waiting = [intent for intent in self._intents.values() if intent.id not in self._outcomes]
            return tuple(sorted(waiting, key=lambda intent: intent.at))

    def settle(self, ids: Collection[str], outcome: str) -> None:
        with self._transaction():
            for intent_id in ids:
                if intent_id in self._intents:
                    self._outcomes.setdefault(intent_id, outcome)

    def outcome(self, intent_id: str) -> str | None:
        with self._transaction():
            return self._outcomes.get(intent_id)

    # `History` and `DriftRuns`.

    def append(self, events: Sequence[Event]) -> None:
        with self._transaction():
            self._events.extend(events)

    def read(self, model: str | None = None, limit: int = 100) -> tuple[Event, ...]:
        with self._transaction():
            found = [event for event in self._events if model in (None, event.model)]
            return tuple(found[len(found) - limit :] if limit < len(found) else found)

    def last_drift(self, model: str) -> datetime | None:
        with self._transaction():
            return max((e.at for e in self._events if (e.model, e.kind) == (model, "drift")), default=None)

    # `Lease`.

    def acquire(self, holder: str, seconds: float) -> bool:
        with self._transaction():
            now = self.clock()
            taken = self._lease is not None and self._lease[0] != holder and self._lease[1] > now
            if not taken:
                self._lease = holder, now + timedelta(seconds=seconds)
            return not taken

    def release(self, holder: str) -> None:
        with self._transaction():
            if self._lease is not None and self._lease[0] == holder:
                self._lease = None

    def holder(self) -> tuple[str, datetime] | None:
        with self._transaction():
            return self._lease if self._lease is not None and self._lease[1] > self.clock() else None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock:
            if self.broken:
                raise StoreError("the store does not answer", retryable=True)
            yield

    def _check_serial(self, new: Rollout | Live, stored: Rollout | Live | None, what: str) -> None:
        present = stored.serial if stored is not None else 0
        if new.serial != present:
            raise Conflict(f"{what} was saved in between: serial {present} is stored, {new.serial} was read")

    def _check_alone(self, rollout: Rollout) -> None:
        others = (r for r in self._rollouts.values() if r.key == rollout.key and r.id != rollout.id and not r.settled)
        other = next(others, None)
        if other is not None and not rollout.settled:
            raise Conflict(f"rollout {other.id} is active for {rollout.intent.model} in {rollout.intent.channel}")

    def _keep(self, live: Live) -> Live:
        key = live.model, live.channel
        self._check_serial(live, self._lives.get(key), f"what is live of {live.model} in {live.channel}")
        self._lives[key] = replace(live, serial=live.serial + 1)
        return self._lives[key]


def _age(rollout: Rollout) -> tuple[datetime, str]:
    return rollout.begun, rollout.id
