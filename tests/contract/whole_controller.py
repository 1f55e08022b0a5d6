"""The whole controller over a registry under test: the platform is in memory, the store is real, the clock is ours.

Nothing here waits: a test says what people do, lets rounds pass until something holds, and reads the story from the
registry, the store and the gateway.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount
from monitoring.notify import Alert
from pipelines.controller import Controller, Pace
from pipelines.live import Live, by_model
from pipelines.policy import Policy
from pipelines.promotion import Ports, Promotion
from pipelines.rollout import Event, GateResult, Goal, Intent, Origin, Phase, Rollout, RolloutPolicy
from pipelines.sql_store import SqlStore
from registry_hooks.model_version import Channel, ChannelKind, ModelVersion
from registry_hooks.watcher import Watcher
from serving.revision import RevisionStatus
from tests.contract.people import Person, Registry
from tests.fakes.blocks import FakeBlocks
from tests.fakes.drift import FakeNotifier
from tests.fakes.image import FakeImageBuilder
from tests.fakes.router import FakeRouter
from tests.fakes.target import FakeTarget

POLL_SECONDS = 5.0
KEEP_WARM_SECONDS = 600.0
ROLLOUT = RolloutPolicy(
    steps=(10, 50, 100),
    step_min_seconds=2.0,
    bake_seconds=4.0,
    keep_warm_seconds=KEEP_WARM_SECONDS,
    analysis=AnalysisPolicy(margin_points=0.05, require_latency=False),
)
ROUND_SECONDS = 2.0
MOST_ROUNDS = 120
"""A rollout takes about fifteen."""


class WholeController:
    """One model, the people who work on it, and a controller that can be killed and started again."""

    def __init__(
        self, folder: Path, person: Person, connect: Callable[[], Registry], live: Channel, pre_live: Channel
    ) -> None:
        self.person, self._connect = person, connect
        self.registry = connect()
        self.model = f"churn-{uuid.uuid4().hex[:8]}"
        self.policy = Policy(live=live, pre_live=pre_live, rollout=ROLLOUT)
        self.models = {self.model}
        """Models that the policy applies to; everything else in the registry is left alone."""
        self.trouble: str | None = None
        """What is wrong with the policy."""
        self.now = datetime.now(UTC)
        self.store = SqlStore(f"sqlite:///{folder / 'store.db'}")
        self.target, self.router, self.builder = FakeTarget(clock=lambda: self.now), FakeRouter(), FakeImageBuilder()
        self.blocks, self.notifier = FakeBlocks(), FakeNotifier()
        self.bad: set[int] = set()
        """Versions that fail more requests than they may."""
        self.outage = False
        """Half of all requests fail, whatever the version."""
        self.refused: set[int] = set()
        """Versions that do not pass their gates."""
        self.weights: list[tuple[int, int]] = []
        """Version and weight of every step of a canary that was in force."""
        self.start()

    # What the controller is given.

    def start(self) -> None:
        """A controller starts with nothing in its memory; the one before, if any, is dead."""
        self.registry = self._connect()
        ports = Ports(
            self.registry, self.builder, self.target, self.router, self.blocks, self, self.store, self.notifier
        )
        watcher = Watcher(self.registry, self._connect(), self._aliased, 600, 60.0)
        promotion = Promotion(ports, "server", lambda model: f"http://gateway/models/{model}")
        pace = Pace(poll_seconds=POLL_SECONDS, look_seconds=60.0)
        self.controller = Controller(
            "one", ports, promotion, watcher, self.store, self.store, self, lambda: self.now, pace, threads=1
        )

    def for_model(self, model: str) -> Policy | None:
        return self.policy if model in self.models and self.trouble is None else None

    def problem(self, model: str) -> str | None:
        return self.trouble if model in self.models else None

    def run(
        self, rollout: Rollout, candidate: RevisionStatus | None, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        """The gates: those on the running candidate fail for the versions in `refused`."""
        if rollout.phase is Phase.PROVING:
            return (GateResult("answers", passed=rollout.version.version not in self.refused, detail="as chosen"),)
        return (GateResult("registered", passed=True),) if rollout.phase is Phase.CHECKING else None

    def progress(self, rollout: Rollout) -> str:
        return ""

    def _aliased(self) -> set[str]:
        return self.models if self.policy.live.kind is ChannelKind.ALIAS else set()

    # What people do.

    def registers(self, versions: int = 1) -> None:
        for _ in range(versions):
            self.person.register(self.model)

    def enters(self, version: int, *, archive: bool = False, model: str | None = None) -> None:
        """Somebody puts a version into the live channel."""
        self.moves(version, self.policy.live, archive=archive, model=model)

    def moves(self, version: int, channel: Channel | None, *, archive: bool = False, model: str | None = None) -> None:
        """Somebody puts a version into a channel, a stage or an alias; into no stage where it is None."""
        if channel is not None and channel.kind is ChannelKind.ALIAS:
            self.person.set_alias(model or self.model, channel.name, version)
        else:
            self.person.transition_stage(model or self.model, version, channel.name if channel else None, archive)

    def withdraws(self, version: int) -> None:
        """Somebody takes a version out of the live channel."""
        live = self.policy.live
        if live.kind is ChannelKind.ALIAS:
            self.person.set_alias(self.model, live.name, None)
        else:
            self.person.transition_stage(self.model, version, None)

    def commands(self, goal: Goal, version: int) -> None:
        """Somebody asks by command."""
        live = self.policy.live
        self.store.submit(Intent(uuid.uuid4().hex, goal, live, self.model, version, Origin.COMMAND, self.now, "ada"))
        self.controller.wake(self.model)

    # Time.

    def round(self, seconds: float = ROUND_SECONDS) -> None:
        self.now += timedelta(seconds=seconds)
        self._serve_requests()
        self.controller.round()

    def until(self, holds: Callable[[], object]) -> None:
        """Let rounds pass until `holds`."""
        for _ in range(MOST_ROUNDS):
            if holds():
                return
            self.round()
        raise AssertionError(f"did not come true in {MOST_ROUNDS} rounds:\n{self.story()}")

    def rests(self) -> None:
        """Let rounds pass until nothing is under way, and a few more looks at the registry."""
        self.until(lambda: self.pass_look() and not self.store.active() and not self.store.pending())
        self.idles()

    def idles(self, looks: int = 3) -> None:
        for _ in range(looks):
            self.pass_look()

    def pass_look(self) -> bool:
        """One round in which the registry is looked at; always true."""
        self.round(POLL_SECONDS)
        return True

    def goes_live(self, version: int) -> None:
        self.enters(version)
        self.rests()
        assert self.live_version() == version, self.story()

    def _serve_requests(self) -> None:
        """Requests of both arms, where a canary is in force."""
        route = self.router.get_weights().get(self.model)
        if route is None or route.candidate is None:
            return
        rollout_id, _, step = route.step.partition("/")
        rollout = next(rollout for rollout in self.store.active() if rollout.id == rollout_id)
        weight = route.weights.shares[route.candidate]
        if (rollout.version.version, weight) not in self.weights:
            self.weights.append((rollout.version.version, weight))
        for _ in range(20):
            common = 2 if self.outage else 0
            errors = 2 if rollout.version.version in self.bad else common
            arms = ArmCount(4 * (100 - weight), common * (100 - weight)), ArmCount(4 * weight, errors * weight)
            self.blocks.add(rollout_id, int(step), *arms, at=self.now.timestamp())

    # What came of it.

    def live(self) -> Live | None:
        return by_model(self.store.lives()).get(self.model)

    def live_version(self) -> int | None:
        live = self.live()
        return live.stable.version.version if live and live.stable else None

    def served(self) -> dict[int, int]:
        """The weights in force by version."""
        route = self.router.get_weights().get(self.model)
        running = self.target.status()
        return (
            {running[key].revision.version.version: share for key, share in route.weights.shares.items()}
            if route
            else {}
        )

    def running(self) -> set[int]:
        mine = (status.revision.version for status in self.target.status().values())
        return {version.version for version in mine if version.model == self.model}

    def holders(self, channel: Channel | str | None = None) -> set[int]:
        """Versions that hold the channel, by the registry's own word; the live one unless told otherwise."""
        wanted = Channel.parse(channel) if isinstance(channel, str) else channel or self.policy.live
        found = self.registry.snapshot([self.model]).holdings
        return {holding.version.version for holding in found if holding.channel == wanted}

    def stage(self, version: int) -> str | None:
        return self.registry.describe(ModelVersion(self.model, version)).stage

    def tags(self, version: int) -> dict[str, str]:
        shown = self.registry.describe(ModelVersion(self.model, version)).tags
        return {name.removeprefix("promote."): value for name, value in shown.items()}

    def wishes(self) -> list[tuple[Goal, int | None]]:
        """Goal and version of every intent that followed from the registry, in order."""
        return [
            (Goal(event.text.partition(":")[0]), event.version) for event in self.history() if event.kind == "intent"
        ]

    def outcomes(self) -> list[tuple[int | None, Goal, Phase]]:
        """Version, goal and phase of every rollout, oldest first."""
        return [(r.intent.version, r.intent.goal, r.phase) for r in reversed(self.store.rollouts(self.model, 100))]

    def rollout(self) -> Rollout:
        """The newest."""
        return self.store.rollouts(self.model, 1)[0]

    def phase_of(self, version: int) -> Phase | None:
        """Of the version's newest rollout."""
        found = (r.phase for r in self.store.rollouts(self.model, 100) if r.intent.version == version)
        return next(found, None)

    def history(self) -> tuple[Event, ...]:
        return self.store.read(self.model, 1000)

    def alerts(self) -> list[Alert]:
        return [alert for alert in self.notifier.told if alert.model == self.model]

    def story(self) -> str:
        lines = (f"{e.at:%H:%M:%S} {e.kind} {e.version} {e.text}" for e in self.history())
        return "\n".join([*lines, f"held {self.holders()}, served {self.served()}", f"{self.store.active()}"])
