"""Commands and questions over stores and platforms in memory, and the moves of a controller over them.

The controller here carries out no rollout: a test says which state comes next, and `carry_out` saves it as
the real one would.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

from monitoring.analysis import Evidence, fold
from monitoring.blocks import ArmCount, Block
from pipelines.commands import Commands
from pipelines.intents import rollout_id
from pipelines.live import Live, promoted
from pipelines.overview import Overview
from pipelines.policy import Policy
from pipelines.rollout import Event, Goal, Intent, Origin, Phase, Rollout
from registry_hooks.model_version import Channel, ChannelKind, ModelVersion
from serving.revision import Revision
from tests.fakes.blocks import FakeBlocks
from tests.fakes.registry import FakeRegistry
from tests.fakes.router import FakeRouter
from tests.fakes.store import FakeStore

PRODUCTION = Channel(ChannelKind.STAGE, "Production")
STAGING = Channel(ChannelKind.STAGE, "Staging")


def revision(model: str, version: int) -> Revision:
    return Revision(ModelVersion(model, version), f"image-{version}")


class Installation:
    """One installation in memory. Every model is managed unless `policies` says None for it."""

    def __init__(self) -> None:
        self.store = FakeStore()
        self.registry = FakeRegistry()
        self.router = FakeRouter()
        self.blocks = FakeBlocks()
        self.policies: dict[str, Policy | None] = {}
        self.problems: dict[str, str] = {}
        self.woken: list[str | None] = []
        self.commands = Commands(
            store=self.store,
            inbox=self.store,
            history=self.store,
            registry=self.registry,
            policies=self.policy,
            blocks=self.blocks,
            wake=self.woken.append,
            now=lambda: datetime.now(UTC),
            broken=self.problems.get,
        )
        self.overview = Overview(
            store=self.store,
            inbox=self.store,
            lookup=self.store,
            history=self.store,
            lease=self.store,
            registry=self.registry,
            router=self.router,
            policies=self.policy,
            problems=self._problems,
            alias_delay=lambda: 30.0,
            mlflow="http://mlflow.example",
        )

    def policy(self, model: str) -> Policy | None:
        return self.policies.get(model, Policy())

    def _problems(self) -> Mapping[str, str]:
        return self.problems

    def registered(self, model: str, versions: int) -> None:
        """The registry has versions 1 to `versions` of `model`."""
        for _ in range(versions):
            self.registry.register(model)

    def began(
        self, version: ModelVersion, phase: Phase, goal: Goal = Goal.LIVE, channel: Channel = PRODUCTION
    ) -> Rollout:
        """A rollout that somebody's transition began and that is in `phase` now."""
        now = datetime.now(UTC)
        intent = Intent(
            f"intent-{now.timestamp()}", goal, channel, version.model, version.version, Origin.TRANSITION, now
        )
        live = self.live(version.model)
        begun = Rollout(
            id=rollout_id(intent),
            intent=intent,
            policy=Policy().rollout,
            phase=phase,
            begun=now,
            entered=now,
            stable=live.stable if live else None,
            candidate=revision(version.model, version.version),
        )
        return self.store.save(begun)

    def live(self, model: str) -> Live | None:
        return next((live for live in self.store.lives() if live.model == model), None)

    def went_live(self, *versions: ModelVersion, goal: Goal = Goal.LIVE) -> None:
        """Each version in turn was rolled out and succeeded; registered first where it is not."""
        for version in versions:
            missing = (
                version.version - len(self.registry.models[version.model].versions)
                if version.model in self.registry.models
                else version.version
            )
            self.registered(version.model, missing)
            self.succeeded(self.began(version, Phase.PROMOTING, goal))

    def succeeded(self, rollout: Rollout) -> Rollout:
        now = datetime.now(UTC)
        live = promoted(self.live(rollout.intent.model), rollout, now)
        done = replace(rollout, phase=Phase.SUCCEEDED, entered=now, settled=True)
        return self.store.save(done, live=live)

    def counted(self, rollout: Rollout, stable: ArmCount, candidate: ArmCount) -> Rollout:
        """`rollout` with evidence of so many requests."""
        start = Evidence.start(rollout.policy.analysis, rollout.policy.steps)
        block = Block(1, rollout.id, 0, 0.0, 1.0, stable, candidate)
        return self.store.save(replace(rollout, evidence=fold(rollout.policy.analysis, start, (block,))))

    def taken_up(self, intent: Intent) -> Rollout:
        """The controller begins the rollout that a waiting intent asks for."""
        live = self.live(intent.model)
        now = datetime.now(UTC)
        candidate = revision(intent.model, intent.version or 0)
        begun = Rollout(
            rollout_id(intent),
            intent,
            Policy().rollout,
            Phase.CHECKING,
            now,
            now,
            live.stable if live else None,
            candidate,
        )
        saved = self.store.save(begun)
        self.store.settle([intent.id], f"rollout {saved.id}")
        return saved

    def checked_for_drift(self, model: str) -> None:
        """A check of the newest version found nothing."""
        data = {"state": "stable", "documents": ["promote/drift/latest.html"]}
        version = self.registry.models[model].last
        self.store.append([Event(model, datetime.now(UTC), "drift", "no drift in 700 rows", version, data=data)])
