"""One tick of one rollout: see, advance, save, reconcile, apply.

The first failure ends the tick and the next one repeats it. Nothing is applied that was not saved before, so
whatever a crash interrupts is asked for again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime

from monitoring.blocks import Arm, Block, BlockError
from monitoring.labels import EvidenceSource, LabelBlock
from monitoring.notify import Alert, Notifier, Severity
from monitoring.plan import plan
from monitoring.shadow_blocks import ShadowBlock
from monitoring.shadow_policy import ShadowMode
from monitoring.usual import Usual, usual
from pipelines import evidence
from pipelines.advance import advance, alarms, judgement
from pipelines.evidence_picture import svg
from pipelines.gates import Gates
from pipelines.live import Live, promoted
from pipelines.reconcile import (
    PREFIX,
    REPLACED,
    Action,
    Annotate,
    Assign,
    Build,
    RemoveRoute,
    SetWeights,
    Start,
    Stop,
    reconcile,
    replaced,
)
from pipelines.rollout import FINAL, Event, Intent, Phase, Rollout, Seen
from pipelines.store import RolloutStore, StoreError
from registry_hooks.model_version import ModelVersion
from registry_hooks.registry import ModelRegistry, RegistryError, UnknownVersion
from serving.image import ImageBuilder, ImageError, ImageRequest, ImageStatus
from serving.revision import RevisionStatus
from serving.router import Route, RouterError, TrafficRouter
from serving.target import ServingTarget, TargetError

FAILURES = (RegistryError, ImageError, TargetError, RouterError, BlockError, StoreError)
"""What a port may raise; each has `retryable`."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Ports:
    """Everything outside that a rollout touches."""

    registry: ModelRegistry
    builder: ImageBuilder
    target: ServingTarget
    router: TrafficRouter
    blocks: EvidenceSource
    gates: Gates
    rollouts: RolloutStore
    notifier: Notifier


@dataclass(frozen=True, slots=True)
class World:
    """What one look at the platform gave, shared by all ticks of a round; None is 'could not be observed'."""

    at: datetime
    revisions: Mapping[str, RevisionStatus] | None = field(default=None, hash=False)
    routes: Mapping[str, Route] | None = field(default=None, hash=False)


class Promotion:
    """Ticks rollouts. Safe to call from several threads for different rollouts."""

    def __init__(self, ports: Ports, server: str, url: Callable[[str], str]) -> None:
        """`server` is the digest of the model server's files, `url` gives a model's address at the gateway."""
        self._ports = ports
        self._server = server
        self._url = url
        self._sources: dict[ModelVersion, str] = {}

    def tick(
        self,
        rollout: Rollout,
        world: World,
        holders: frozenset[int] | None,
        asked: Sequence[Intent] = (),
        live: Live | None = None,
        *,
        withheld: bool = False,
    ) -> Rollout:
        """Take `rollout` one step further; the saved state afterwards. Raises one of `FAILURES`."""
        seen = replace(self._see(rollout, world, holders, asked), withheld=withheld)
        saved = self._save(rollout, advance(rollout, seen, world.at), live, world.at)
        for action in reconcile(saved, seen):
            saved = self._apply(saved, action, world.at)
        if saved.settled:
            self._sources.pop(saved.version, None)
            self._ports.blocks.forget(saved.id)
        return saved

    def apply(self, action: Action) -> None:
        """Carry out one action that belongs to no rollout. Raises one of `FAILURES`."""
        match action:
            case Start(revision):
                self._ports.target.start(revision)
            case Stop(revision_id):
                self._ports.target.stop(revision_id)
            case SetWeights(route):
                self._ports.router.set_weights(route)
            case RemoveRoute(model):
                self._ports.router.remove(model)
            case Assign(version, channel, leave):
                self._ports.registry.assign(version, channel, leave=leave)
            case Build() | Annotate():
                raise TypeError(f"{action} needs its rollout")

    def _see(self, rollout: Rollout, world: World, holders: frozenset[int] | None, asked: Sequence[Intent]) -> Seen:
        missing = rollout.claimed and holders is not None and rollout.version.version not in holders
        candidate, stable = (
            world.revisions.get(one.id) if world.revisions and one else None
            for one in (rollout.candidate, rollout.stable)
        )
        return Seen(
            image=self._image(rollout) if rollout.phase in (Phase.BUILDING, Phase.STARTING) else None,
            revisions=world.revisions,
            routes=world.routes,
            holders=holders,
            gone=missing and self._gone(rollout.version),
            stable_gone=self._stable_gone(rollout, holders),
            gates=self._ports.gates.run(rollout, candidate, stable),
            gates_progress=self._ports.gates.progress(rollout),
            blocks=self._blocks(rollout),
            pairs=self._pairs(rollout),
            labelled=self._labelled(rollout),
            canary_seconds=self._canary_seconds(rollout),
            asked=tuple(asked),
        )

    def _image(self, rollout: Rollout) -> ImageStatus | None:
        try:
            return self._ports.builder.find(self._request(rollout))
        except (RegistryError, ImageError) as error:
            log.warning("rollout %s: the image could not be looked up: %s", rollout.id, error)
            return None

    def _request(self, rollout: Rollout) -> ImageRequest:
        version = rollout.version
        if version not in self._sources:
            self._sources[version] = self._ports.registry.describe(version).source
        return ImageRequest(version, self._sources[version], self._server, rollout.files)

    def _stable_gone(self, rollout: Rollout, holders: frozenset[int] | None) -> bool:
        """Asked also in the tick in which going back ends, where the stable version is put back at once."""
        ending = rollout.phase in (Phase.ROLLING_BACK, Phase.FAILED)
        stable = rollout.stable.version if rollout.stable and ending else None
        return stable is not None and holders is not None and stable.version not in holders and self._gone(stable)

    def _gone(self, version: ModelVersion) -> bool:
        try:
            self._ports.registry.describe(version)
        except UnknownVersion:
            return True
        except RegistryError:
            return False
        return False

    def _blocks(self, rollout: Rollout) -> tuple[Block, ...] | None:
        """What is new; before the first share of traffic, have it settled what is usual for the stable revision."""
        try:
            if rollout.phase is Phase.PROVING:
                analysis = rollout.policy.analysis
                scale = analysis.scale
                self._ports.blocks.prepare(rollout.id, rollout.intent.model, scale, rollout.policy.labels)
            if rollout.evidence is None or rollout.phase in FINAL:
                return None
            return self._ports.blocks.blocks(rollout.id, rollout.evidence.block)
        except BlockError as error:
            log.warning("rollout %s: no evidence could be read: %s", rollout.id, error)
            return None

    def _pairs(self, rollout: Rollout) -> tuple[ShadowBlock, ...] | None:
        if rollout.shadow is None or not rollout.shadowing:
            return None
        try:
            return self._ports.blocks.pairs(rollout.id, rollout.shadow.block)
        except BlockError as error:
            log.warning("rollout %s: no answers to copies could be read: %s", rollout.id, error)
            return None

    def _labelled(self, rollout: Rollout) -> tuple[LabelBlock, ...] | None:
        labels = rollout.evidence.labels if rollout.evidence else None
        if labels is None or rollout.phase in FINAL:
            return None
        try:
            return self._ports.blocks.labelled(rollout.id, labels.block)
        except BlockError as error:
            log.warning("rollout %s: no labels could be read: %s", rollout.id, error)
            return None

    def _canary_seconds(self, rollout: Rollout) -> float | None:
        """Asked where it decides whether copies come first."""
        policy, model = rollout.policy, rollout.intent.model
        if rollout.phase is not Phase.PROVING or policy.shadow.mode is not ShadowMode.AUTO:
            return None
        try:
            known = usual(policy.analysis, self._ports.blocks.seen(model), _USUAL)
            rate = self._ports.blocks.rate(model)
        except BlockError:
            return None
        return plan(policy.analysis, policy.steps, known, rate, policy.step_min_seconds).seconds

    def _save(self, before: Rollout, after: Rollout, live: Live | None, now: datetime) -> Rollout:
        if after == before:
            return before
        turned = (after.phase, after.step) != (before.phase, before.step)
        succeeded = turned and after.phase is Phase.SUCCEEDED
        now_live = promoted(live, after, now) if succeeded else None
        raised = _raised(before, after)
        events = (*((_told(after, now),) if turned else ()), *((_warning(after, raised, now),) if raised else ()))
        saved = self._ports.rollouts.save(after, now_live, events)
        if raised:
            title = f"rollout of {saved.version} is held up"
            self._ports.notifier.notify(Alert(Severity.WARNING, saved.intent.model, title, raised, now))
        if turned:
            log.info("rollout %s of %s: %s %s", saved.id, saved.version, saved.phase.value, saved.reason)
            self._alert(saved, now)
        return saved

    def _alert(self, rollout: Rollout, now: datetime) -> None:
        severity = _SEVERITY.get(rollout.phase)
        if severity is not None:
            title = f"rollout of {rollout.version} {rollout.phase.value}"
            self._ports.notifier.notify(Alert(severity, rollout.intent.model, title, rollout.reason, now))

    def _apply(self, rollout: Rollout, action: Action, now: datetime) -> Rollout:
        try:
            return self._applied(rollout, action)
        except UnknownVersion as error:
            log.warning("rollout %s: %s", rollout.id, error)
            return self._given_up(rollout, action, str(error), now)
        except FAILURES as error:
            if error.retryable or isinstance(error, StoreError):
                raise
            return self._given_up(rollout, action, str(error), now)

    def _applied(self, rollout: Rollout, action: Action) -> Rollout:
        match action:
            case Build():
                self._ports.builder.build(self._request(rollout))
            case Annotate():
                return self._annotated(rollout, action)
            case _:
                self.apply(action)
        return rollout

    def _annotated(self, rollout: Rollout, note: Annotate) -> Rollout:
        tags = {**note.tags, PREFIX + "url": self._url(rollout.intent.model) if rollout.weight else ""}
        files = {}
        if note.evidence:
            record = evidence.record(rollout)
            files[evidence.name(record)] = record
            files |= _picture(rollout, evidence.name(record))
            files |= self._documents(rollout)
            tags[PREFIX + "evidence"] = evidence.name(record)
        self._mark_replaced(rollout)
        self._ports.registry.annotate(rollout.version, tags, files)
        return self._ports.rollouts.save(replace(rollout, annotated=note.digest))

    def _documents(self, rollout: Rollout) -> dict[str, bytes]:
        """What was written about the image; what is lost of it is no reason to keep the outcome from the registry."""
        found = {}
        for document in rollout.documents:
            try:
                found[evidence.artifact(document)] = self._ports.builder.document(document.digest)
            except ImageError as error:
                if error.retryable:
                    raise
                log.warning("rollout %s: %s is not saved with the evidence: %s", rollout.id, document.name, error)
        return found

    def _mark_replaced(self, rollout: Rollout) -> None:
        former = replaced(rollout)
        if former is not None:
            with suppress(UnknownVersion):
                self._ports.registry.annotate(former, REPLACED)

    def _given_up(self, rollout: Rollout, action: Action, why: str, now: datetime) -> Rollout:
        """A port refused for good: a rollout under way is taken back, a finished one is left as it is.

        Tags and evidence that cannot be kept are no reason to leave the channel as it is.
        """
        if rollout.phase in FINAL:
            told = _warning(rollout, why, now)
            left = replace(rollout, settled=True)
            if isinstance(action, Annotate):
                left = replace(rollout, annotated=action.digest)
            return self._ports.rollouts.save(left, events=(told,))
        return rollout if rollout.trouble else self._ports.rollouts.save(replace(rollout, trouble=why))


def _picture(rollout: Rollout, record: str) -> dict[str, bytes]:
    """Beside the record of the same name, where anything was compared."""
    said = judgement(rollout)
    if said is None or rollout.evidence is None or not rollout.evidence.block:
        return {}
    title = f"{rollout.version}: {rollout.phase.value}"
    return {f"{record.removesuffix('.json')}.svg": svg(title, said, rollout.evidence.trail.points())}


def _raised(before: Rollout, after: Rollout) -> str:
    """What has begun to hold the rollout up; empty where nothing has. What an alarm says changes with every block."""
    if after.evidence is before.evidence:
        return ""
    now = alarms(after)
    return "; ".join(now) if len(now) > len(alarms(before)) else ""


_USUAL = Usual(errors=0.01)
"""What is planned with where too little is known."""

_SEVERITY = {
    Phase.PAUSED: Severity.WARNING,
    Phase.FAILED: Severity.WARNING,
    Phase.HALTED: Severity.CRITICAL,
}


def _warning(rollout: Rollout, text: str, now: datetime) -> Event:
    return Event(rollout.intent.model, now, "alert", text, rollout.intent.version, rollout.id)


def _told(rollout: Rollout, now: datetime) -> Event:
    said = judgement(rollout)
    numbers: dict[str, object] = {"phase": rollout.phase.value, "step": rollout.step, "weight": rollout.weight}
    if said is not None:
        numbers |= {
            arm.value: asdict(count) for arm, count in ((Arm.STABLE, said.stable), (Arm.CANDIDATE, said.candidate))
        }
    return Event(
        model=rollout.intent.model,
        at=now,
        kind="phase",
        text=f"{rollout.phase.value}: {rollout.reason}".rstrip(": "),
        version=rollout.intent.version,
        rollout=rollout.id,
        actor=rollout.intent.actor,
        data=numbers,
    )
