"""How many rollouts one controller can carry: ticks per second over ports in memory.

What is measured is the engine alone. The store, the registry and the platform are the fakes that the contract
suites hold to the behaviour of the real ones, so their own time is small and is counted in.
"""

from __future__ import annotations

import json
import logging
import time
from datetime import UTC, datetime, timedelta

from monitoring.blocks import ArmCount
from monitoring.notify import Alert
from pipelines.controller import Controller, Pace
from pipelines.live import Live
from pipelines.policy import Policy
from pipelines.promotion import Ports, Promotion
from pipelines.rollout import GateResult, Phase, Rollout, RolloutPolicy
from registry_hooks.watcher import Watcher
from serving.revision import Revision, RevisionStatus
from serving.target import ServingTarget
from tests.fakes.blocks import FakeBlocks
from tests.fakes.image import FakeImageBuilder
from tests.fakes.registry import FakeRegistry
from tests.fakes.router import FakeRouter
from tests.fakes.store import FakeStore
from tests.fakes.target import FakeTarget

MODELS = 1000
ROUNDS = 20


class Passing:
    """Gates that pass, and nobody to tell alerts to."""

    def run(
        self, rollout: Rollout, candidate: RevisionStatus | None, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        del candidate, stable
        return () if rollout.phase in (Phase.CHECKING, Phase.PROVING) else None

    def progress(self, rollout: Rollout) -> str:
        del rollout
        return ""

    def notify(self, alert: Alert) -> None:
        del alert


class Installation:
    """A controller with `models` models, live in version 1, and of the first `canaries` version 2 in its canary."""

    def __init__(self, models: int, canaries: int | None = None, target: ServingTarget | None = None) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)
        self.names = [f"model-{number}" for number in range(models)]
        self.canaries = self.names[:canaries]
        self.registry, self.target = FakeRegistry(self.clock), target or FakeTarget(clock=self.clock)
        self.router, self.blocks, self.store = FakeRouter(), FakeBlocks(), FakeStore(self.clock)
        self.policy = Policy(rollout=RolloutPolicy(steps=(5, 100), step_min_seconds=1e9, step_max_seconds=1e9))
        passing = Passing()
        ports = Ports(
            self.registry, FakeImageBuilder(), self.target, self.router, self.blocks, passing, self.store, passing
        )
        self.controller = Controller(
            "bench",
            ports,
            Promotion(ports, "server", lambda model: model),
            Watcher(self.registry, self.registry, list, 60, 1e9),
            self.store,
            self.store,
            self,
            self.clock,
            Pace(),
            threads=2,
        )
        for name in self.names:
            self._live(name)

    def for_model(self, model: str) -> Policy | None:
        del model
        return self.policy

    def problem(self, model: str) -> str | None:
        del model
        return None

    def clock(self) -> datetime:
        return self.now

    def _live(self, name: str) -> None:
        """Version 1 holds the traffic, and version 2, if there is to be one, has just been moved to Production."""
        version = self.registry.register(name)
        self.registry.transition_stage(name, version.version, "Production")
        stable = Revision(version, "image-1")
        self.target.start(stable)
        self.store.keep(Live(name, Policy().live, stable, self.now))
        if name not in self.canaries:
            self.store.observe(self.registry.snapshot([name]), ())
            return
        candidate = self.registry.register(name).version
        self.store.observe(self.registry.snapshot([name]), ())
        self.registry.transition_stage(name, candidate, "Production")

    def until_canary(self) -> None:
        """Rounds until every candidate has traffic."""
        for _ in range(40):
            self.round()
            active = self.store.active()
            if len(active) == len(self.canaries) and all(r.phase is Phase.PROGRESSING for r in active):
                return
        raise RuntimeError(f"not every rollout reached its canary: {len(self.store.active())} are active")

    def round(self) -> None:
        self.now += timedelta(seconds=1)
        self.controller.round()

    def traffic(self) -> None:
        """One block for every rollout."""
        for rollout in self.store.active():
            self.blocks.add(rollout.id, 0, ArmCount(95, 1), ArmCount(5, 0), at=self.now.timestamp())


def measure() -> dict[str, object]:
    """Ticks per second with one new block per rollout and round, and without any news."""
    logging.disable(logging.WARNING)
    installation = Installation(MODELS)
    installation.until_canary()
    busy = _rate(installation, news=True)
    idle = _rate(installation, news=False)
    logging.disable(logging.NOTSET)
    return {"active_rollouts": MODELS, "ticks_per_second_with_new_blocks": busy, "ticks_per_second_without_news": idle}


def _rate(installation: Installation, *, news: bool) -> float:
    spent = 0.0
    for _ in range(ROUNDS):
        if news:
            installation.traffic()
        began = time.perf_counter()
        installation.round()
        spent += time.perf_counter() - began
    return round(MODELS * ROUNDS / spent)


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
