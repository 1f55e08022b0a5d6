"""A small world around the controller: everything it touches in memory, a clock, people, faults and crashes.

Every random choice comes from one seed. What the engine does is watched from outside: `Watched` ports check
each action against the truth at the moment it is made.
"""

from __future__ import annotations

import logging
import random
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount
from monitoring.label_policy import LabelMode, LabelPolicy
from monitoring.labels import Labelled
from monitoring.notify import Alert
from monitoring.shadow_blocks import Answer, Paired
from monitoring.shadow_policy import ShadowMode, ShadowPolicy
from pipelines.controller import Controller, Pace
from pipelines.policy import Policy
from pipelines.promotion import Ports, Promotion
from pipelines.rollout import GateResult, Goal, Phase, Rollout, RolloutPolicy
from pipelines.store import StoreError
from registry_hooks.model_version import Channel, ModelVersion
from registry_hooks.watcher import Watcher
from serving.revision import Revision, RevisionState, RevisionStatus
from serving.router import Route
from tests.fakes.blocks import FakeBlocks
from tests.fakes.image import FakeImageBuilder
from tests.fakes.registry import FakeRegistry
from tests.fakes.router import FakeRouter
from tests.fakes.store import FakeStore
from tests.fakes.target import Behaviour, FakeTarget
from tests.simulation.events import EVENTS, delete, move, promote

POLICY = RolloutPolicy(
    steps=(10, 50, 100),
    step_min_seconds=2.0,
    step_max_seconds=120.0,
    bake_seconds=15.0,
    build_seconds=60.0,
    ready_seconds=60.0,
    promote_seconds=60.0,
    pause_seconds=300.0,
    keep_warm_seconds=90.0,
    analysis=AnalysisPolicy(margin_points=0.05, require_latency=False),
)


class Crash(BaseException):
    """The controller died here."""


class Fuse:
    """Lets the controller die at the n-th call of any port, before or after the call did its work."""

    def __init__(self) -> None:
        self.left: int | None = None

    def burn(self) -> None:
        if self.left is None:
            return
        self.left -= 1
        if self.left <= 0:
            self.left = None
            raise Crash

    def around(self, port: Any) -> Any:
        return _Fused(port, self)


class _Fused:
    def __init__(self, port: Any, fuse: Fuse) -> None:
        self._port, self._fuse = port, fuse

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._port, name)
        if not callable(method):
            return method

        def call(*args: Any, **kwargs: Any) -> Any:
            self._fuse.burn()
            result = method(*args, **kwargs)
            self._fuse.burn()
            return result

        return call


class Broken(BaseException):
    """The engine did what it must never do; no handler of the engine's may swallow it."""


class Bugs(logging.Handler):
    """Turns what the controller survived and should never have met into a failure of the world."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.met: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.met.append(self.format(record))


class WatchedRouter(FakeRouter):
    """Checks that traffic is only ever raised to revisions that are ready."""

    def __init__(self, world: World) -> None:
        super().__init__(delay=world.dice.choice((0, 0, 1, 3)))
        self._world = world

    def set_weights(self, route: Route) -> None:
        if not self.broken:
            if route.shadow is not None:
                self._world.may_copy(route)
            before = self.in_force(route.model)
            for revision, share in route.weights.shares.items():
                raised = share > (before.weights.shares.get(revision, 0) if before else 0)
                if raised and not self._world.was_ready(revision):
                    raise Broken(f"{share} % to {revision}, which is not ready")
        super().set_weights(route)

    def in_force(self, model: str) -> Route | None:
        return self._force.get(model)


class WatchedTarget(FakeTarget):
    """Checks that nothing is stopped that has traffic, is live or is to be kept warm."""

    def __init__(self, world: World) -> None:
        super().__init__(clock=lambda: world.now, holds=world.builder.holds)
        self._world = world
        self.seen: dict[str, RevisionStatus] = {}

    def status(self) -> dict[str, RevisionStatus]:
        self.seen = dict(super().status())
        return self.seen

    def stop(self, revision_id: str) -> None:
        if not self.broken:
            self._world.may_stop(revision_id)
        super().stop(revision_id)


class WatchedRegistry(FakeRegistry):
    """Checks that the live version loses its channel only once the candidate is seen with all traffic."""

    def __init__(self, world: World) -> None:
        super().__init__(clock=lambda: world.now)
        self._world = world

    def assign(self, version: ModelVersion, channel: Channel | None, *, leave: Channel | None = None) -> None:
        live = self._world.live(version.model)
        stage_taken = leave == self._world.channel and live is not None and live.stable is not None
        if not self.broken and stage_taken and live.stable.version == version:
            raise Broken(f"{version} is live and was taken out of {leave}")
        super().assign(version, channel, leave=leave)


class World:
    """One seed's world: `play` makes it happen, `heal` lets it rest, `check_rest` says what has to hold then."""

    def __init__(self, seed: int) -> None:
        self.dice = random.Random(seed)
        self.unrest = self.dice.choice((0.05, 0.15, 0.3, 0.7))
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.channel = self.dice.choice((Channel.parse("Production"), Channel.parse("@champion")))
        shadow = ShadowPolicy(self.dice.choice([*ShadowMode]), requests=60, max_seconds=90.0, long_canary_seconds=5.0)
        labels = LabelPolicy(self.dice.choice([LabelMode.OFF, *LabelMode]), deadline_seconds=150.0)
        rollout = replace(POLICY, shadow=shadow, labels=labels)
        self.policy = Policy(live=self.channel, pre_live=Channel.parse("Staging"), rollout=rollout)
        self.fuse = Fuse()
        self.builder, self.blocks = FakeImageBuilder(self.dice.randint(1, 3)), FakeBlocks()
        self.registry, self.target, self.router = WatchedRegistry(self), WatchedTarget(self), WatchedRouter(self)
        self.blocks.rates["churn"] = self.dice.choice((1.0, 1000.0))
        self.visited = set[Phase]()
        """Phases that rollouts were seen in."""
        self.store = FakeStore(clock=lambda: self.now)
        self.alerts: list[Alert] = []
        self.gate_fails: set[int] = set()
        self.error_rates: dict[int, float] = {}
        self.labelling = self.dice.random() < 0.8
        self.people: list[str] = []
        self.model = "churn"
        self.policy_broken = False
        self.touched = self.now
        """When a person last changed the registry."""
        self.starts()

    # What the controller is given.

    def starts(self) -> None:
        """A controller starts, with nothing in its memory."""
        self.registry._seen = None
        fused = self.fuse.around
        ports = Ports(
            fused(self.registry), fused(self.builder), fused(self.target), fused(self.router), fused(self.blocks),
            self, fused(self.store), self,
        )  # fmt: skip
        watcher = Watcher(ports.registry, fused(self.registry), self.aliased, 600, 60.0)
        self.controller = Controller(
            "one", ports, Promotion(ports, "server", lambda model: f"http://gateway/models/{model}"), watcher,
            fused(self.store), fused(self.store), self, lambda: self.now, Pace(), threads=1,
        )  # fmt: skip

    def for_model(self, model: str) -> Policy | None:
        return None if self.policy_broken else self.policy

    def problem(self, model: str) -> str | None:
        return "broken" if self.policy_broken else None

    def aliased(self) -> list[str]:
        return [self.model] if self.model in self.registry.models else []

    def run(
        self, rollout: Rollout, candidate: RevisionStatus | None, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        """The gates: fail for the versions that were chosen to fail."""
        if rollout.phase not in (Phase.CHECKING, Phase.PROVING):
            return None
        bad = rollout.phase is Phase.PROVING and rollout.version.version in self.gate_fails
        return (GateResult("chosen", passed=not bad, detail="chosen to fail" if bad else ""),)

    def progress(self, rollout: Rollout) -> str:
        return ""

    def notify(self, alert: Alert) -> None:
        self.alerts.append(alert)

    # The truth that the watched ports ask for.

    def live(self, model: str) -> Any:
        if self.store.broken:
            return None
        return next((live for live in self.store.lives() if live.model == model), None)

    def was_ready(self, revision_id: str) -> bool:
        status = self.target.seen.get(revision_id)
        return status is not None and status.state is RevisionState.READY

    def may_copy(self, route: Route) -> None:
        """Copies go to a candidate that has no traffic, in its shadow stage alone."""
        if self.store.broken:
            return
        rollout = next((r for r in self.store.active() if route.step == f"{r.id}/shadow"), None)
        if rollout is None or not rollout.shadowing or len(route.weights.shares) > 1 or rollout.stable is None:
            raise Broken(f"copies by {route}, in {rollout}")
        if route.weights.shares.get(rollout.stable.id) != 100:
            raise Broken(f"copies while {rollout.stable.id} has not all traffic")

    def may_stop(self, revision_id: str) -> None:
        route = self.router.in_force(self.model)
        if route is not None and route.weights.shares.get(revision_id):
            raise Broken(f"{revision_id} has traffic and was stopped")
        if route is not None and route.shadow == revision_id and self.was_ready(revision_id):
            raise Broken(f"{revision_id} gets copies and was stopped")
        live = self.live(self.model)
        if live is None:
            return
        if live.stable is not None and live.stable.id == revision_id:
            raise Broken(f"{revision_id} is live and was stopped")
        if any(kept.revision.id == revision_id and kept.until > self.now for kept in live.warm):
            raise Broken(f"{revision_id} was to be kept warm and was stopped")

    # What happens.

    def play(self, rounds: int) -> None:
        for _ in range(3):
            self.registry.register(self.model)
        promote(self)
        for _ in range(rounds):
            self.pass_time(self.dice.choice((0.5, 0.5, 2.0, 5.0, 20.0)))
            if self.dice.random() < self.unrest:
                event = self.dice.choice(EVENTS)
                event(self)
                self.touched = self.now if event in (promote, move, delete) else self.touched
            if self.dice.random() < self.unrest / 2:
                self.fuse.left = self.dice.randint(1, 40)
            self.round()

    def round(self) -> None:
        try:
            self.controller.round()
        except Crash:
            self.starts()
        except StoreError:
            pass
        self.fuse.left = None
        self.one_each()

    def one_each(self) -> None:
        if self.store.broken:
            return
        active = self.store.active()
        self.visited |= {rollout.phase for rollout in active}
        keys = [rollout.key for rollout in active]
        if len(keys) != len(set(keys)):
            raise Broken(f"several active rollouts of one channel: {keys}")

    def pass_time(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)
        route = self.router.in_force(self.model)
        if route is None or "/" not in route.step or route.candidate is None:
            return
        rollout, step = route.step.split("/")
        version = int(route.candidate.split("-v")[1].split("-")[0])
        if route.shadow is not None:
            self.blocks.add_pairs(rollout, [self._pair(version) for _ in range(int(min(seconds, 10)) * 10)])
            return
        weight = route.weights.shares.get(route.candidate, 0)
        for _ in range(int(min(seconds, 10))):
            arms = self._arm(100 - weight, 0.01), self._arm(weight, self.error_rates.get(version, 0.01))
            self.blocks.add(rollout, int(step), *arms, at=self.now.timestamp())
            if self.labelling:
                self.blocks.add_labelled(rollout, *map(self._labelled, arms))

    def _pair(self, version: int) -> Paired:
        failed = (self.dice.random() < rate for rate in (0.01, self.error_rates.get(version, 0.01)))
        stable, candidate = (Answer(error, refused=False, latency_ms=10.0) for error in failed)
        return Paired(stable, candidate)

    def _labelled(self, arm: ArmCount) -> Labelled:
        """Everything that was answered; one answer of twenty turned out to be wrong."""
        answers = arm.requests - arm.errors
        return Labelled(answers, answers, float(sum(self.dice.random() < 0.05 for _ in range(answers))))

    def _arm(self, requests: int, rate: float) -> ArmCount:
        return ArmCount(requests, sum(self.dice.random() < rate for _ in range(requests)))

    def heal(self) -> None:
        """Everything works from now on, nobody does anything more, and time goes by until all is at rest."""
        for port in (self.registry, self.target, self.router, self.builder, self.blocks, self.store):
            port.broken = False
        self.policy_broken = False
        self.target.behaviour = Behaviour()
        for running in self.target._running.values():
            running.behaviour = Behaviour()
        for count in range(600):
            self.pass_time(2.0 if count < 300 else 20.0)
            self.round()
            if count > 60 and not self.store.active() and not self.store.pending():
                break

    def check_rest(self) -> None:
        """Nothing is under way, nothing is left over, and registry, gateway and processes tell the same story."""
        if self.store.active() or self.store.pending():
            raise Broken(f"never came to rest: {self.store.active()} {self.store.pending()}")
        self.pass_time(POLICY.keep_warm_seconds + 1)
        for _ in range(6):
            self.pass_time(6.0)
            self.round()
        live = self.live(self.model)
        stable: Revision | None = live.stable if live else None
        wanted = {stable.id} if stable else set()
        if (route := self.router.in_force(self.model)) is not None and route.shadow is not None:
            raise Broken(f"copies were left over: {route}")
        if set(self.target.seen) != wanted:
            raise Broken(f"revisions {set(self.target.seen)} run, {wanted} should")
        route = self.router.in_force(self.model)
        if (set(route.weights.shares) if route else set()) != wanted:
            raise Broken(f"the gateway sends to {route}, {wanted} is live")
        self._check_registry(stable)

    def _check_registry(self, stable: Revision | None) -> None:
        """What is live holds the channel, unless a person changed the registry after the last rollout began."""
        last = next((r for r in self.store.rollouts(self.model, 100) if r.intent.goal is not Goal.READY), None)
        if last is None or last.phase is Phase.HALTED or stable is None or last.begun <= self.touched:
            return
        if stable.version.version not in self.registry.models[self.model].versions:
            return
        held = self.registry.snapshot([self.model]).holdings
        holders = {holding.version for holding in held if holding.channel == self.channel}
        if holders != {stable.version}:
            raise Broken(f"{stable.version} is live, {holders} hold {self.channel}")
