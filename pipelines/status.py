"""What people and programs see of models and rollouts, as values made from what is saved and seen.

Pure. The same values go out over HTTP and into the terminal, so their field names are public: add, never
rename. What could not be observed is None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from monitoring.eprocess import Tally
from monitoring.interval import interval
from monitoring.judgement import Reading
from monitoring.trail import METRICS, Point
from pipelines.advance import judgement
from pipelines.live import Live, Warm
from pipelines.rollout import FINAL, GateResult, Goal, Phase, Rollout
from pipelines.shadowing import shadow_judgement
from registry_hooks.model_version import Channel
from serving.revision import Revision
from serving.router import Route


@dataclass(frozen=True, slots=True)
class ArmStatus:
    """What was counted of one arm over the whole rollout."""

    requests: int
    errors: int


@dataclass(frozen=True, slots=True)
class CountStatus:
    """Requests of one arm as one metric counts them; of predictions none is bad by itself."""

    requests: float
    bad: float
    low: float | None = None
    """Where the share of the bad ones lies with 95 %: from here,"""
    high: float | None = None
    """to here; None where there are no bad ones."""


@dataclass(frozen=True, slots=True)
class MetricStatus:
    """One metric. Evidence is a share of what is needed: 0 is none, 1 is a proof."""

    name: str
    worse: float
    """That the candidate is worse, by this metric alone."""
    enough: float | None
    """That it is good enough for the next weight; None where that needs no proof."""
    stable: CountStatus
    candidate: CountStatus
    margin95: float | None
    """Excess that is excluded at 95 %; None while none is."""


@dataclass(frozen=True, slots=True)
class MomentStatus:
    """Evidence at one moment of the rollout, as shares of what is needed."""

    requests: int
    """Of the candidate."""
    worse: float
    """By all metrics together."""
    enough: Mapping[str, float] = field(hash=False)
    """For all traffic, by metric."""
    against: Mapping[str, float] = field(default_factory=dict, hash=False)
    """That the candidate is worse, by metric alone."""


@dataclass(frozen=True, slots=True)
class EvidenceStatus:
    """How far the comparison of both arms is."""

    verdict: str
    reason: str
    progress: float
    """Towards the verdict for the next weight, from 0 to 1."""
    margin95: float | None
    """Excess error rate that is excluded at 95 %; None while none is."""
    stable: ArmStatus
    candidate: ArmStatus
    worse: float = 0.0
    """That the candidate is worse, by all metrics together: a share of what is needed."""
    metrics: tuple[MetricStatus, ...] = ()
    alarms: tuple[str, ...] = ()
    """What holds the rollout up without being the candidate's fault."""
    trail: tuple[MomentStatus, ...] = ()
    """How the evidence came about, in order."""
    notes: tuple[str, ...] = ()
    """How it was compared, where that is out of the ordinary."""


@dataclass(frozen=True, slots=True)
class SegmentStatus:
    """Rows for which the stable revision decided alike, as the candidate answered them."""

    decision: str
    rows: int
    changed: float | None
    """Share of its decisions that are other ones."""
    difference: float | None
    """Mean of what its numbers are larger by."""


@dataclass(frozen=True, slots=True)
class ShadowStatus:
    """What copies of requests told of the candidate."""

    verdict: str
    reason: str
    requests: int
    """That both revisions answered."""
    uncompared: int
    """Requests of the same time that they did not both answer."""
    worse: float
    """That the candidate is worse: a share of what is needed."""
    enough: float
    """That it is good enough for all traffic without a canary, in the same way."""
    changed: float | None
    """Share of decisions that are other ones,"""
    changed95: tuple[float, float] | None
    """and where it lies with 95 %."""
    segments: tuple[SegmentStatus, ...]


@dataclass(frozen=True, slots=True)
class RolloutStatus:
    """One rollout."""

    id: str
    model: str
    version: int | None
    goal: str
    channel: str
    phase: str
    weight: int
    """The candidate's share that the rollout asks for, in percent."""
    step: int
    steps: tuple[int, ...]
    reason: str
    begun: datetime
    since: datetime
    """When the phase, or within it the step, began."""
    final: bool
    settled: bool
    """The registry shows the outcome too."""
    held: bool
    """Paused by a person, and not for want of evidence."""
    previous: int | None
    """Version of the stable revision."""
    candidate: str | None
    """Revision id."""
    intent: str
    actor: str | None
    gates: tuple[GateResult, ...]
    evidence: EvidenceStatus | None
    serving: str | None = None
    """How the candidate is served: compiled, with what proves it, or as it is, and why."""
    shadow: ShadowStatus | None = None
    """From the shadow stage, where there was one."""


@dataclass(frozen=True, slots=True)
class IntentStatus:
    """How far one intent is."""

    id: str
    state: str
    """``waiting``, ``carried out`` or ``refused``."""
    outcome: str
    rollout: str | None
    """Id of the rollout that carries it out."""


@dataclass(frozen=True, slots=True)
class DriftStatus:
    """One drift check."""

    model: str
    version: int | None
    at: datetime
    text: str
    data: Mapping[str, object] = field(hash=False)
    """The finding in full; `documents` are artifacts of the version's run in MLflow."""
    links: Mapping[str, str] = field(hash=False)
    """Where each document can be read, by its path; empty where MLflow does not answer."""


@dataclass(frozen=True, slots=True)
class WarmStatus:
    """A former stable revision that still runs."""

    version: int
    revision: str
    until: datetime


@dataclass(frozen=True, slots=True)
class ModelStatus:
    """One model and one of its channels."""

    model: str
    channel: str
    version: int | None
    """Live version; None where nothing is live."""
    revision: str | None
    since: datetime | None
    weights: Mapping[str, int] | None = field(hash=False)
    """Shares in force by revision id, as the gateway reports them."""
    rollouts: tuple[RolloutStatus, ...] = ()
    warm: tuple[WarmStatus, ...] = ()
    problems: tuple[str, ...] = ()
    serving: str | None = None
    """How the live version is served: compiled, with what proves it, or as it is, and why."""


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """Which controller is at work."""

    holder: str
    until: datetime


@dataclass(frozen=True, slots=True)
class Status:
    """Everything at one glance."""

    models: tuple[ModelStatus, ...]
    controller: LeaseStatus | None
    alias_delay_seconds: float | None
    """Longest time until a moved alias is noticed without a hint; None where no policy names an alias."""
    problems: tuple[str, ...]


def rollout_status(rollout: Rollout) -> RolloutStatus:
    intent = rollout.intent
    return RolloutStatus(
        id=rollout.id,
        model=intent.model,
        version=intent.version,
        goal=intent.goal.value,
        channel=str(intent.channel),
        phase=rollout.phase.value,
        weight=rollout.weight,
        step=rollout.step,
        steps=rollout.policy.steps,
        reason=rollout.reason,
        begun=rollout.begun,
        since=rollout.entered,
        final=rollout.phase in FINAL,
        settled=rollout.settled,
        held=rollout.held,
        previous=rollout.stable.version.version if rollout.stable else None,
        candidate=rollout.candidate.id if rollout.candidate else None,
        intent=intent.id,
        actor=intent.actor,
        gates=rollout.gates,
        evidence=_evidence(rollout),
        serving=str(rollout.proof) if rollout.proof else None,
        shadow=_shadow(rollout),
    )


def model_status(
    key: tuple[str, Channel],
    live: Live | None,
    rollouts: Iterable[Rollout],
    routes: Mapping[str, Route] | None,
    problems: Sequence[str] = (),
) -> ModelStatus:
    """`rollouts` are those in progress; `routes` is None where the gateway did not answer."""
    model, channel = key
    stable = live.stable if live else None
    route = routes.get(model) if routes is not None else None
    return ModelStatus(
        model=model,
        channel=str(channel),
        version=stable.version.version if stable else None,
        revision=stable.id if stable else None,
        since=live.since if live and stable else None,
        weights=None if routes is None else dict(route.weights.shares) if route else {},
        rollouts=tuple(rollout_status(rollout) for rollout in rollouts),
        warm=tuple(_warm(kept) for kept in live.warm) if live else (),
        problems=(*problems, *_warnings(live)),
        serving=str(live.proof) if live and live.proof else None,
    )


def previous_versions(live: Live, rollouts: Sequence[Rollout]) -> tuple[int, ...]:
    """Versions that held the channel's traffic before, the best one to go back to first.

    `rollouts` are the model's, newest first. They are read like an editor's undo: going back takes versions
    off the pile, so that going back twice goes further back instead of back and forth.
    """
    made = [rollout for rollout in reversed(rollouts) if _made_live(rollout, live)]
    pile = (
        [kept.revision.version.version for kept in sorted(live.warm, key=lambda kept: kept.until)] if not made else []
    )
    for rollout in made:
        pile = _laid(pile or _served(rollout.stable), rollout)
    present = _served(live.stable)
    return tuple(dict.fromkeys(version for version in reversed(pile) if version not in present))


def _laid(pile: list[int], rollout: Rollout) -> list[int]:
    """The pile after `rollout`: a restored version uncovers itself, any other goes on top."""
    version = rollout.version.version
    if rollout.intent.goal is Goal.RESTORE and version in pile:
        return pile[: len(pile) - pile[::-1].index(version)]
    return [*pile, version]


def _evidence(rollout: Rollout) -> EvidenceStatus | None:
    said = judgement(rollout)
    if said is None or rollout.evidence is None:
        return None
    return EvidenceStatus(
        said.verdict.value,
        said.reason,
        said.progress,
        said.margin95,
        ArmStatus(said.stable.requests, said.stable.errors),
        ArmStatus(said.candidate.requests, said.candidate.errors),
        said.log_e_worse / said.log_threshold_worse,
        tuple(map(_metric, said.metrics)),
        said.alarms,
        tuple(map(_moment, rollout.evidence.trail.points())),
        (*said.notes, *said.remarks),
    )


def _shadow(rollout: Rollout) -> ShadowStatus | None:
    said = shadow_judgement(rollout)
    if said is None:
        return None
    return ShadowStatus(
        said.verdict.value,
        said.reason,
        said.pairs,
        said.missing,
        said.log_e_worse / said.log_threshold_worse,
        said.progress,
        said.changed,
        said.changed95,
        tuple(SegmentStatus(one.name, one.rows, one.changed, one.difference) for one in said.segments),
    )


def _metric(reading: Reading) -> MetricStatus:
    stable, candidate = (_count(reading.name, arm) for arm in (reading.stable, reading.candidate))
    proof, needed = reading.log_e_ok, reading.log_threshold_ok
    enough = None if proof is None or needed is None else proof / needed
    worse = reading.log_e_worse / reading.log_threshold_worse
    return MetricStatus(reading.name, worse, enough, stable, candidate, reading.margin95)


def _count(metric: str, arm: Tally) -> CountStatus:
    if metric == "predictions" or not arm.requests:
        return CountStatus(arm.requests, arm.errors)
    low, _, high = interval(arm)
    return CountStatus(arm.requests, arm.errors, low, high)


def _moment(point: Point) -> MomentStatus:
    enough = {metric: share for metric, share in zip(METRICS, point.enough, strict=False) if share is not None}
    return MomentStatus(point.requests, point.together, enough, dict(zip(METRICS, point.worse, strict=False)))


def _warnings(live: Live | None) -> tuple[str, ...]:
    said = live.proof.warning if live and live.proof else ""
    return (said,) if said else ()


def _made_live(rollout: Rollout, live: Live) -> bool:
    goal = rollout.intent.goal
    return (
        rollout.phase is Phase.SUCCEEDED
        and goal in (Goal.LIVE, Goal.RESTORE)
        and rollout.intent.channel == live.channel
    )


def _served(revision: Revision | None) -> list[int]:
    return [revision.version.version] if revision else []


def _warm(kept: Warm) -> WarmStatus:
    return WarmStatus(kept.revision.version.version, kept.revision.id, kept.until)
