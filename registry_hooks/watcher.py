"""What changed between two looks at the registry, and the look itself.

Transitions follow from comparing snapshots, never from events, so that none is lost while the controller is
away; what comes and goes between two looks was never wished for long enough to matter. One look costs what
changed plus a bounded portion of the models whose aliases somebody cares about.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import TypeAlias

from registry_hooks.model_version import (
    STAGES,
    Change,
    Channel,
    ChannelKind,
    Holding,
    ModelVersion,
    Snapshot,
    Transition,
)
from registry_hooks.registry import ChangeFeed, ModelRegistry

Held: TypeAlias = Mapping[tuple[ModelVersion, Channel], Holding]
NOTHING = Snapshot(models=frozenset(), holdings=frozenset())


def transitions(before: Snapshot, after: Snapshot) -> tuple[Transition, ...]:
    """What happened to the models that `after` knows, in the order of its time; leaving comes before entering."""
    was = _held(before, after.known)
    now = _held(after, after.known)
    left = [_left(was[key], now, after) for key in was.keys() - now.keys()]
    entered = [_entered(now[key], was) for key in now.keys() - was.keys()]
    return tuple(sorted([*left, *entered], key=_order))


class Watcher:
    """Looks at the registry, a bounded number of requests at a time."""

    def __init__(
        self,
        registry: ModelRegistry,
        feed: ChangeFeed,
        aliased: Callable[[], Collection[str]],
        alias_requests_per_minute: int,
        full_read_seconds: float,
    ) -> None:
        """`aliased` names the models whose policy names an alias: nothing else tells that an alias moved."""
        self._registry = registry
        self._feed = feed
        self._aliased = aliased
        self._per_second = alias_requests_per_minute / 60
        self._full_read_seconds = full_read_seconds
        self._seen = NOTHING
        self._looked: datetime | None = None
        self._read_all: datetime | None = None
        self._compare = False
        self._allowance = 0.0
        self._last = ""

    def look(self, now: datetime, hints: Collection[str] = (), known: Collection[str] = ()) -> Snapshot:
        """What changed since the last look, the hinted models, and the next portion of the aliased ones.

        Once in a while everything is read; of the models in `known`, those that are not there any more are then
        `gone`. What a look had read before it failed, the next one returns.
        """
        fresh = self._feed.changed()
        self._seen = self._seen.then(fresh)
        self._read_everything_when_due(now)
        allowance = self._allowance_at(now)
        portion = self._portion(frozenset(self._aliased()) - fresh.known, allowance)
        missing = frozenset(known) - self._seen.known if self._compare else frozenset()
        names = (frozenset(hints) - fresh.known) | missing | frozenset(portion)
        if names:
            self._seen = self._seen.then(self._registry.snapshot(names))
        self._looked, self._compare = now, False
        self._allowance = allowance - self._feed.cost(len(portion))
        self._last = portion[-1] if portion else self._last
        seen, self._seen = self._seen, NOTHING
        return seen

    def put_back(self, seen: Snapshot) -> None:
        """The next look returns `seen` again: its reader could not save what follows from it."""
        self._seen = seen.then(self._seen)

    def worst_alias_delay(self) -> float:
        """Seconds until every aliased model was read once, at most; the time between two looks comes on top."""
        models = len(self._aliased())
        if not models or not self._per_second:
            return self._full_read_seconds if models else 0.0
        return min(self._feed.cost(models) / self._per_second, self._full_read_seconds)

    def _read_everything_when_due(self, now: datetime) -> None:
        """The feed's first answer is everything already."""
        due = self._read_all is None or (now - self._read_all).total_seconds() >= self._full_read_seconds
        if due and self._read_all is not None:
            self._seen = self._seen.then(self._registry.snapshot())
        if due:
            self._read_all, self._compare = now, True

    def _allowance_at(self, now: datetime) -> float:
        """Requests that may be made now: they add up over time, for one minute at most."""
        since = (now - self._looked).total_seconds() if self._looked else 0.0
        return min(self._allowance + since * self._per_second, max(60 * self._per_second, self._feed.cost(1)))

    def _portion(self, names: Collection[str], allowance: float) -> Sequence[str]:
        """As many names as the allowance pays for, from where the last portion ended."""
        waiting = sorted(names, key=lambda name: (name <= self._last, name))
        return waiting[: bisect_right(range(len(waiting) + 1), allowance, key=self._feed.cost) - 1]


def _held(snapshot: Snapshot, models: Collection[str]) -> Held:
    return {(h.version, h.channel): h for h in snapshot.holdings if h.version.model in models}


def _left(holding: Holding, now: Held, after: Snapshot) -> Transition:
    return Transition(holding.version, holding.channel, Change.LEFT, _when_left(holding, now, after))


def _when_left(holding: Holding, now: Held, after: Snapshot) -> datetime:
    """A stage is left when the next one is entered, or when the version without one last changed."""
    if holding.channel.kind is ChannelKind.STAGE:
        stage = _stage(holding.version, now)
        if stage is not None:
            return stage.since
        if holding.version in after.idle:
            return after.idle[holding.version]
    return after.at or max((h.since for h in [holding, *after.holdings]), default=datetime.min.replace(tzinfo=UTC))


def _entered(holding: Holding, was: Held) -> Transition:
    stage = _stage(holding.version, was) if holding.channel.kind is ChannelKind.STAGE else None
    came_from = stage.channel.name if stage else None
    return Transition(holding.version, holding.channel, Change.ENTERED, holding.since, came_from=came_from)


def _stage(version: ModelVersion, held: Held) -> Holding | None:
    """The one stage that the version is in."""
    stages = (held.get((version, Channel(ChannelKind.STAGE, name))) for name in STAGES)
    return next((holding for holding in stages if holding), None)


def _order(transition: Transition) -> tuple[datetime, bool, ModelVersion, Channel]:
    return transition.at, transition.change is Change.ENTERED, transition.version, transition.channel
