"""What still has to be done so that the world fits the saved rollout.

Pure. The same saved state and the same world always give the same actions, so a tick may be repeated or
lost. Revisions are stopped by `pipelines.live.upkeep` alone, which knows everything that lays claim to one.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from pipelines.rollout import FINAL, Goal, Intent, Phase, Rollout, Seen
from registry_hooks.model_version import Change, Channel, ChannelKind, ModelVersion
from serving.image import BuildState
from serving.revision import Revision, RevisionState, Weights
from serving.router import Route

PREFIX = "promote."
"""Every tag that is written starts with it."""


@dataclass(frozen=True, slots=True)
class Build:
    """Start making the image of the rollout's version."""


@dataclass(frozen=True, slots=True)
class Start:
    """See that a revision runs."""

    revision: Revision


@dataclass(frozen=True, slots=True)
class Stop:
    """End a revision that nothing needs any more."""

    revision_id: str


@dataclass(frozen=True, slots=True)
class SetWeights:
    """Put a route in force."""

    route: Route


@dataclass(frozen=True, slots=True)
class RemoveRoute:
    """Take a model off the gateway."""

    model: str


@dataclass(frozen=True, slots=True)
class Assign:
    """Move a version between channels; see `ModelRegistry.assign`."""

    version: ModelVersion
    channel: Channel | None
    leave: Channel | None = None


@dataclass(frozen=True, slots=True)
class Annotate:
    """Show the state on the version; `evidence` asks for the record of the decision beside it."""

    version: ModelVersion
    tags: Mapping[str, str] = field(hash=False)
    evidence: bool

    @property
    def digest(self) -> str:
        """Names the tags, so that they are written once."""
        return hashlib.sha256(json.dumps(self.tags, sort_keys=True).encode()).hexdigest()[:20]


Action = Build | Start | Stop | SetWeights | RemoveRoute | Assign | Annotate


def reconcile(rollout: Rollout, seen: Seen) -> tuple[Action, ...]:
    """The actions still needed, in the order in which they have to be applied."""
    if rollout.settled:
        return ()
    return (
        *_image(rollout, seen),
        *_revision(rollout, seen),
        *_traffic(rollout, seen),
        *registry_actions(rollout, seen),
    )


def steers(rollout: Rollout) -> bool:
    """Whether the rollout, and not upkeep, decides about the model's route."""
    phase = rollout.resume if rollout.phase is Phase.PAUSED else rollout.phase
    moves = (Phase.SHADOWING, Phase.PROGRESSING, Phase.BAKING, Phase.PROMOTING, Phase.ROLLING_BACK)
    return phase in moves or rollout.phase is Phase.HALTED


def runs(rollout: Rollout) -> bool:
    """Whether the rollout wants its candidate to run."""
    phase = rollout.resume if rollout.phase is Phase.PAUSED else rollout.phase
    return phase in (Phase.STARTING, Phase.PROVING, Phase.SHADOWING, Phase.PROGRESSING, Phase.BAKING, Phase.PROMOTING)


def expected(rollout: Rollout) -> frozenset[tuple[ModelVersion, Channel, Change]]:
    """The transitions that the rollout's own writes make; seeing one of them is nobody's wish."""
    channel, writes = rollout.intent.channel, set()
    if rollout.intent.goal is Goal.READY:
        return frozenset()
    if not rollout.claimed or rollout.phase is Phase.SUCCEEDED:
        writes.add((rollout.version, channel, Change.ENTERED))
    if rollout.phase is Phase.FAILED and rollout.stable is not None:
        writes.add((rollout.stable.version, channel, Change.ENTERED))
    if rollout.phase in (Phase.FAILED, Phase.ROLLING_BACK) and rollout.intent.came_from:
        writes.add((rollout.version, Channel(ChannelKind.STAGE, rollout.intent.came_from), Change.ENTERED))
    return frozenset(writes)


def registry_actions(rollout: Rollout, seen: Seen) -> tuple[Assign | Annotate, ...]:
    """What has to be done in the registry.

    The outcome is told last. From then on the channel is what people make of it, also before the rollout is settled.
    """
    outcome = rollout.phase in (Phase.SUCCEEDED, Phase.FAILED)
    blind = seen.holders is None and not rollout.superseded and rollout.intent.goal is not Goal.READY
    return () if told(rollout) or (outcome and blind) else _not_shown(rollout, seen)


def registry_agrees(rollout: Rollout, seen: Seen) -> bool:
    """Whether the registry shows all that it should."""
    return _not_shown(rollout, seen) == ()


def _not_shown(rollout: Rollout, seen: Seen) -> tuple[Assign | Annotate, ...]:
    moved_on = rollout.intent.goal is Goal.READY and seen.holders is not None and rollout.claimed
    if moved_on and rollout.version.version not in (seen.holders or ()):
        return ()
    if seen.gone:
        return _channel(rollout, seen) if rollout.phase is Phase.FAILED else ()
    return (*_channel(rollout, seen), *_tags(rollout))


def told(rollout: Rollout) -> bool:
    """Whether the registry shows the outcome."""
    return rollout.phase in FINAL and _tags(rollout) == ()


def _image(rollout: Rollout, seen: Seen) -> tuple[Action, ...]:
    building = rollout.phase is Phase.BUILDING and seen.image is not None
    return (Build(),) if building and seen.image and seen.image.state is BuildState.MISSING else ()


def _revision(rollout: Rollout, seen: Seen) -> tuple[Action, ...]:
    if rollout.candidate is None or seen.revisions is None or not runs(rollout):
        return ()
    status = seen.status(rollout.candidate)
    needed = status is None or status.state is RevisionState.FAILED or status.altered
    return (Start(rollout.candidate),) if needed else ()


def _traffic(rollout: Rollout, seen: Seen) -> tuple[Action, ...]:
    if not steers(rollout) or not rollout.steered or seen.routes is None or rollout.phase is Phase.HALTED:
        return ()
    wanted = _route(rollout, seen)
    if wanted is None:
        return _without_stable(rollout, seen)
    return put_in_force(wanted, seen)


def put_in_force(wanted: Route, seen: Seen) -> tuple[Action, ...]:
    """Ask for `wanted`, unless it is in force or would raise the share of a revision that is not ready."""
    present = seen.routes.get(wanted.model) if seen.routes is not None else None
    before = present.weights.shares if present is not None else {}
    raised = [revision for revision, share in wanted.weights.shares.items() if share > before.get(revision, 0)]
    statuses = [(seen.revisions or {}).get(revision) for revision in raised]
    ready = all(status is not None and status.ready for status in statuses)
    return (SetWeights(wanted),) if ready and wanted != present else ()


def _route(rollout: Rollout, seen: Seen) -> Route | None:
    """The route that the saved state asks for; None while a revision in it has no address."""
    candidate, stable = rollout.candidate, rollout.stable
    if rollout.phase is Phase.ROLLING_BACK or candidate is None:
        return route_to(stable, seen, rollout.tag) if stable is not None else None
    if rollout.shadowing and stable is not None:
        return _shadow_route(rollout, stable, candidate, seen)
    if stable is None or rollout.weight == 100:
        return route_to(candidate, seen)
    weights = Weights.split(stable, candidate, rollout.weight)
    ends = {r.id: status.addresses for r in (stable, candidate) if (status := seen.status(r)) and status.addresses}
    if set(ends) != set(weights.shares):
        return None
    shield = rollout.policy.shield_bytes
    return Route(rollout.intent.model, weights, ends, step=rollout.tag, candidate=candidate.id, shield_bytes=shield)


def _shadow_route(rollout: Rollout, stable: Revision, candidate: Revision, seen: Seen) -> Route | None:
    """All traffic stays with the stable revision; the candidate gets copies until the stage is over."""
    alone, status = route_to(stable, seen, rollout.tag), seen.status(candidate)
    if alone is None or rollout.unshadowing:
        return alone
    if status is None or not status.ready or not status.addresses:
        return None
    both = {**alone.endpoints, candidate.id: status.addresses}
    return replace(alone, endpoints=both, candidate=candidate.id, shadow=candidate.id)


def route_to(revision: Revision, seen: Seen, tag: str = "") -> Route | None:
    """All traffic to `revision`; None where it has no address."""
    status = seen.status(revision)
    if status is None or not status.addresses:
        return None
    return Route(revision.version.model, Weights.all_to(revision), {revision.id: status.addresses}, step=tag)


def _without_stable(rollout: Rollout, seen: Seen) -> tuple[Action, ...]:
    """A first rollout that is taken back leaves no route behind."""
    model = rollout.intent.model
    back = rollout.phase is Phase.ROLLING_BACK and rollout.stable is None
    return (RemoveRoute(model),) if back and seen.routes is not None and model in seen.routes else ()


def _channel(rollout: Rollout, seen: Seen) -> tuple[Assign, ...]:
    """Bring the live channel in line with the outcome; before it, put a commanded candidate in."""
    if seen.holders is None or rollout.intent.goal is Goal.READY or rollout.phase is Phase.HALTED:
        return ()
    if rollout.phase is Phase.FAILED:
        others = [] if rollout.superseded else _others_out(rollout, seen, rollout.stable)
        return (*_put_back(rollout, seen), *_take_out(rollout, seen), *others)
    if rollout.phase is Phase.SUCCEEDED:
        return (*_put_in(rollout, seen), *_others_out(rollout, seen, rollout.candidate))
    unclaimed = not rollout.claimed and rollout.phase is not Phase.ROLLING_BACK
    return tuple(_put_in(rollout, seen)) if unclaimed else ()


def _put_in(rollout: Rollout, seen: Seen) -> list[Assign]:
    missing = seen.holders is not None and rollout.version.version not in seen.holders and not rollout.superseded
    return [Assign(rollout.version, rollout.intent.channel)] if missing else []


def _take_out(rollout: Rollout, seen: Seen) -> list[Assign]:
    """The failed candidate goes back to where it came from, unless somebody put it in again meanwhile.

    An alias that moved already is not touched.
    """
    channel = rollout.intent.channel
    if seen.holders is None or rollout.version.version not in seen.holders or _wanted_again(rollout, seen):
        return []
    if channel.kind is ChannelKind.ALIAS:
        return [Assign(rollout.version, None, leave=channel)]
    came_from = rollout.intent.came_from
    origin = Channel(ChannelKind.STAGE, came_from) if came_from else None
    return [Assign(rollout.version, origin, leave=channel)]


def _wanted_again(rollout: Rollout, seen: Seen) -> bool:
    return any(again(rollout, intent) for intent in seen.asked)


def again(rollout: Rollout, intent: Intent) -> bool:
    """Whether `intent` wants the same version once more, after this rollout took it back."""
    over = rollout.phase in (Phase.ROLLING_BACK, Phase.FAILED)
    return over and intent.version == rollout.intent.version and intent.id != rollout.intent.id


def _put_back(rollout: Rollout, seen: Seen) -> list[Assign]:
    """The revision that holds the traffic holds the channel, unless a newer intent has it."""
    stable = rollout.stable
    if stable is None or seen.holders is None or rollout.superseded or rollout.intent.goal is Goal.READY:
        return []
    if seen.stable_gone:
        return []
    return [] if stable.version.version in seen.holders else [Assign(stable.version, rollout.intent.channel)]


def _others_out(rollout: Rollout, seen: Seen, live: Revision | None) -> list[Assign]:
    """Whoever else holds a stage is archived: former holders, and versions that were superseded before their turn.

    Versions that a newer intent wants stay.
    """
    channel = rollout.intent.channel
    if channel.kind is ChannelKind.ALIAS or seen.holders is None:
        return []
    stay = {intent.version for intent in seen.asked} | {rollout.version.version}
    stay |= {live.version.version} if live is not None else set()
    archive = Channel(ChannelKind.STAGE, "Archived")
    model = rollout.intent.model
    return [Assign(ModelVersion(model, v), archive, leave=channel) for v in sorted(seen.holders - stay)]


def _tags(rollout: Rollout) -> tuple[Annotate, ...]:
    note = Annotate(rollout.version, tags(rollout), evidence=rollout.phase in FINAL)
    return () if note.digest == rollout.annotated else (note,)


def tags(rollout: Rollout) -> dict[str, str]:
    """What the model version shows of its rollout; an empty value removes the tag."""
    shown = {
        "state": "ready" if _proved(rollout) else rollout.phase.value,
        "rollout": rollout.id,
        "reason": rollout.reason if rollout.phase in (*FINAL, Phase.PAUSED, Phase.ROLLING_BACK) else "",
        "weight": str(rollout.weight),
        "previous": str(rollout.stable.version.version) if rollout.stable else "",
        "image": rollout.candidate.image if rollout.candidate else "",
        "serving": str(rollout.proof or ""),
        "warning": rollout.proof.warning if rollout.proof else "",
    }
    return {PREFIX + name: _short(value) for name, value in shown.items()}


def _short(text: str) -> str:
    """At most 500 characters. Of a longer text both ends: what a process died of stands at the end of what it said."""
    return text if len(text) <= 500 else f"{text[:200]} ... {text[-295:]}"


REPLACED = {PREFIX + "state": "replaced", PREFIX + "weight": "0", PREFIX + "url": ""}
"""What a version shows once another one has its traffic."""


def replaced(rollout: Rollout) -> ModelVersion | None:
    """The version that lost its traffic to this rollout's."""
    over = rollout.phase is Phase.SUCCEEDED and rollout.intent.goal is not Goal.READY
    return rollout.stable.version if over and rollout.stable is not None else None


def _proved(rollout: Rollout) -> bool:
    return rollout.phase is Phase.SUCCEEDED and rollout.intent.goal is Goal.READY
