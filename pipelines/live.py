"""What is live between rollouts, and how it is kept so.

Pure. A rollout ends when its verdict is carried out; from then on this record says which revision holds
the traffic and which ones are kept warm. `upkeep` says what has to be done so that this stays true, and it
alone stops revisions: only it sees everything that may lay claim to one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from pipelines.reconcile import Action, RemoveRoute, Start, Stop, put_in_force, route_to, runs, steers
from pipelines.rollout import Goal, Rollout, Seen
from registry_hooks.model_version import Channel
from serving.image import Proof
from serving.revision import Revision, RevisionState


@dataclass(frozen=True, slots=True)
class Warm:
    """A former stable revision, kept running so that going back is fast."""

    revision: Revision
    until: datetime


@dataclass(frozen=True, slots=True)
class Live:
    """Which revision holds a model's traffic; None after the model was retired."""

    model: str
    channel: Channel
    stable: Revision | None
    since: datetime
    warm: tuple[Warm, ...] = ()
    proof: Proof | None = None
    """How `stable` is served, and what that rests on."""
    serial: int = 0

    def served(self, version: int, now: datetime) -> bool:
        """Whether `version` held all traffic before and is still kept warm."""
        return any(kept.revision.version.version == version and kept.until > now for kept in self.warm)


def by_model(lives: Iterable[Live]) -> dict[str, Live]:
    """One record per model; after a change of its live channel, that of the newer one."""
    return {live.model: live for live in sorted(lives, key=lambda live: live.since)}


def promoted(live: Live | None, rollout: Rollout, now: datetime) -> Live | None:
    """What is live after `rollout` succeeded; unchanged where it only made a version ready."""
    if rollout.intent.goal is Goal.READY or rollout.candidate is None:
        return live
    before = live or Live(rollout.intent.model, rollout.intent.channel, None, now)
    keep = timedelta(seconds=rollout.policy.keep_warm_seconds)
    warm = (*before.warm, Warm(before.stable, now + keep)) if before.stable else before.warm
    others = tuple(kept for kept in warm if kept.revision != rollout.candidate)
    now_stable = replace(before, stable=rollout.candidate, since=now, warm=others, proof=rollout.proof)
    return replace(now_stable, channel=rollout.intent.channel)


def retired(live: Live, now: datetime) -> Live:
    """Nothing is live any more."""
    return replace(live, stable=None, since=now, warm=(), proof=None)


def cooled(live: Live, now: datetime) -> Live:
    """Without the revisions whose time to be kept warm is over."""
    return replace(live, warm=tuple(kept for kept in live.warm if kept.until > now))


def upkeep(model: str, live: Live | None, rollouts: Sequence[Rollout], seen: Seen) -> tuple[Action, ...]:
    """The actions that keep `live` true; `rollouts` are the model's active ones."""
    if seen.revisions is None or seen.routes is None:
        return ()
    stable = live.stable if live else None
    steered = any(steers(rollout) for rollout in rollouts)
    route = () if steered else _route(model, stable, seen)
    return (*_start(stable, seen), *route, *_stops(model, set(_claims(live, rollouts)), seen))


def _start(stable: Revision | None, seen: Seen) -> tuple[Action, ...]:
    if stable is None:
        return ()
    status = seen.status(stable)
    down = status is None or status.state is RevisionState.FAILED or status.altered
    return (Start(stable),) if down else ()


def _route(model: str, stable: Revision | None, seen: Seen) -> tuple[Action, ...]:
    assert seen.routes is not None
    present = seen.routes.get(model)
    if stable is None:
        return (RemoveRoute(model),) if present is not None else ()
    wanted = route_to(stable, seen)
    return put_in_force(wanted, seen) if wanted is not None else ()


def _claims(live: Live | None, rollouts: Iterable[Rollout]) -> Iterable[str]:
    """Ids of the revisions that something still needs."""
    if live is not None:
        yield from (kept.revision.id for kept in live.warm)
        yield from (live.stable.id,) if live.stable else ()
    for rollout in rollouts:
        yield from (rollout.stable.id,) if rollout.stable and not rollout.settled else ()
        yield from (rollout.candidate.id,) if rollout.candidate and runs(rollout) else ()


def _stops(model: str, claims: set[str], seen: Seen) -> tuple[Action, ...]:
    """Every unclaimed revision, but none that the data plane still gives traffic or copies to."""
    assert seen.revisions is not None
    assert seen.routes is not None
    ours = [status for status in seen.revisions.values() if status.revision.version.model == model]
    present = seen.routes.get(model)
    routed = {*present.weights.shares, present.shadow} if present else set()
    idle = [status for status in ours if status.revision.id not in claims | routed]
    return tuple(Stop(status.revision.id) for status in idle if status.state is not RevisionState.STOPPING)
