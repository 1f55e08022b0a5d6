"""A controller whose revisions are a real cluster's: the registry and the images are in memory, the store is real.

Nobody waits for an image here, and requests are counted as a test says, so a rollout takes as long as its pods do. A
controller that is lost is one whose memory is: another one begins with the store and the cluster.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from examples.load import LoadResult, load
from monitoring.blocks import ArmCount
from monitoring.notify import Alert
from pipelines.controller import Controller, Pace
from pipelines.live import by_model
from pipelines.policy import Policy
from pipelines.promotion import Ports, Promotion
from pipelines.rollout import GateResult, Phase, Rollout
from pipelines.sql_store import SqlStore
from registry_hooks.model_version import Channel
from registry_hooks.watcher import Watcher
from serving.cluster import DEPLOYMENTS, PODS, SERVICES, Cluster, Kind
from serving.image import BuildState, ImageRequest, ImageStatus
from serving.pod_parts import Object
from serving.revision import Revision, RevisionSettings, RevisionStatus
from serving.router import TrafficRouter
from serving.target import ServingTarget
from tests.contract.whole_controller import ROLLOUT
from tests.fakes.blocks import FakeBlocks
from tests.fakes.drift import FakeNotifier
from tests.fakes.registry import FakeRegistry
from tests.fakes.router import FakeRouter
from tests.fixtures.gateway import until

POLICY = replace(ROLLOUT, step_min_seconds=0.5, bake_seconds=1.0, keep_warm_seconds=0.0, ready_seconds=600.0)
SETTINGS = RevisionSettings(drain_seconds=1.0)
SECONDS = 600.0
"""Longest wait for what a rollout does, which is a few pods' time."""
PRODUCTION = Channel.parse("Production")


class MadeBefore:
    """`ImageBuilder` for whom every version has the same image, or one of its own."""

    def __init__(self, image: str) -> None:
        self.image = image
        self.others: dict[int, str] = {}
        """Images of some versions."""

    def find(self, request: ImageRequest) -> ImageStatus:
        return ImageStatus(BuildState.READY, image=self.others.get(request.version.version, self.image))

    def build(self, request: ImageRequest) -> None:
        """It is there."""

    def document(self, digest: str) -> bytes:
        raise AssertionError("nothing is written about these images")


class Rollouts:
    """One model, what people do to it, and a controller."""

    def __init__(
        self, folder: Path, image: str, target: Callable[[], ServingTarget], router: TrafficRouter | None = None
    ) -> None:
        """`target`: as a new controller has it."""
        self.model = f"faults-{uuid.uuid4().hex[:6]}"
        self.registry, self.builder = FakeRegistry(), MadeBefore(image)
        self.blocks, self.notifier = FakeBlocks(), FakeNotifier()
        self.store = SqlStore(f"sqlite:///{folder / 'store.db'}")
        self.router = router or FakeRouter()
        self.policy = Policy(live=PRODUCTION, pre_live=None, rollout=replace(POLICY, settings=SETTINGS))
        self.proof = True
        """Whether requests are answered, so that a canary gets on."""
        self._target = target
        self.start()

    # What the controller is given.

    def start(self) -> None:
        """A controller starts with nothing in its memory; the one before, if any, is dead."""
        self.target = self._target()
        ports = Ports(
            self.registry, self.builder, self.target, self.router, self.blocks, self, self.store, self.notifier
        )
        self.registry._seen = None
        watcher = Watcher(self.registry, self.registry, set, 600, 60.0)
        promotion = Promotion(ports, "server", lambda model: f"http://gateway/models/{model}")
        pace = Pace(poll_seconds=0.0, look_seconds=60.0)
        clock = lambda: datetime.now(UTC)  # noqa: E731 - as the controller wants it
        self.controller = Controller(
            "one", ports, promotion, watcher, self.store, self.store, self, clock, pace, threads=1
        )

    def for_model(self, model: str) -> Policy | None:
        return self.policy if model == self.model else None

    def problem(self, model: str) -> str | None:
        return None

    def run(
        self, rollout: Rollout, candidate: RevisionStatus | None, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        """The gates."""
        passed = (GateResult("as it should", passed=True),)
        return passed if rollout.phase in (Phase.CHECKING, Phase.PROVING) else None

    def progress(self, rollout: Rollout) -> str:
        return ""

    # What people do.

    def enters(self, **settings: Any) -> int:
        """A new version enters the live channel, whose candidate runs with these settings; `ready_seconds` is one."""
        seconds = settings.pop("ready_seconds", POLICY.ready_seconds)
        wanted = replace(self.policy.rollout, settings=replace(SETTINGS, **settings), ready_seconds=seconds)
        self.policy = replace(self.policy, rollout=wanted)
        version = self.registry.register(self.model).version
        self.registry.transition_stage(self.model, version, "Production")
        return version

    def goes_live(self, **settings: Any) -> int:
        version = self.enters(**settings)
        self.ends(version, Phase.SUCCEEDED)
        return version

    # Time.

    def round(self) -> None:
        self._serve_requests()
        self.controller.round()
        time.sleep(0.1)

    def until(self, holds: Callable[[], object], seconds: float = SECONDS) -> None:
        """Let rounds pass until `holds`."""
        deadline = time.monotonic() + seconds
        while not holds():
            assert time.monotonic() < deadline, self.story()
            self.round()

    def reaches(self, version: int, *phases: Phase) -> None:
        """Let rounds pass until the version's rollout is in one of them."""
        self.until(lambda: self.phase_of(version) in phases)

    def ends(self, version: int, phase: Phase) -> str:
        """Let rounds pass until the version's rollout is settled in that phase; why it is."""
        self.until(lambda: (rollout := self.rollout(version)) is not None and rollout.settled)
        rollout = self.rollout(version)
        assert rollout is not None
        assert rollout.phase is phase, self.story()
        return rollout.reason

    def _serve_requests(self) -> None:
        """Requests of both arms, all answered, where a canary is in force."""
        for rollout in self.store.active() if self.proof else ():
            if rollout.evidence is not None and rollout.phase in (Phase.PROGRESSING, Phase.BAKING):
                weight = rollout.weight
                for _ in range(20):
                    arms = ArmCount(4 * (100 - weight), 0), ArmCount(4 * weight, 0)
                    self.blocks.add(rollout.id, rollout.step, *arms, at=time.time())

    # What came of it.

    def rollout(self, version: int) -> Rollout | None:
        """The version's newest."""
        return next((one for one in self.store.rollouts(self.model, 100) if one.intent.version == version), None)

    def phase_of(self, version: int) -> Phase | None:
        rollout = self.rollout(version)
        return rollout.phase if rollout else None

    @property
    def stable(self) -> Revision:
        live = by_model(self.store.lives())[self.model].stable
        assert live is not None
        return live

    def candidate(self, version: int) -> Revision:
        rollout = self.rollout(version)
        assert rollout is not None
        assert rollout.candidate is not None
        return rollout.candidate

    def alerts(self) -> list[Alert]:
        return [alert for alert in self.notifier.told if alert.model == self.model]

    def story(self) -> str:
        lines = (f"{e.at:%H:%M:%S} {e.kind} {e.version} {e.text}" for e in self.store.read(self.model, 1000))
        return "\n".join([*lines, *(f"{one.phase} {one.reason}" for one in self.store.rollouts(self.model, 5))])


@contextmanager
def traffic(url: str, payload: bytes, rate: float = 20.0) -> Iterator[list[LoadResult]]:
    """Steady requests while the block runs; the results of each second or two are in the list afterwards."""
    results: list[LoadResult] = []
    over = threading.Event()

    def send() -> None:
        while not over.is_set():
            results.append(asyncio.run(load(url, payload, rate, 2.0)))

    sending = threading.Thread(target=send)
    sending.start()
    try:
        yield results
    finally:
        over.set()
        sending.join(120)


def everything(cluster: Cluster, selector: str) -> Mapping[str, frozenset[str]]:
    """The names of all that the cluster has with our labels, by kind."""
    found = _found(cluster, selector)
    return {plural: frozenset(one["name"] for one in those) for plural, those in found.items()}


def steady(cluster: Cluster, selector: str) -> Mapping[str, frozenset[str]]:
    """The same, once nothing is on its way out that was there before."""
    until(
        lambda: not any("deletionTimestamp" in one for those in _found(cluster, selector).values() for one in those),
        SECONDS,
    )
    return everything(cluster, selector)


def _found(cluster: Cluster, selector: str) -> Mapping[str, list[Object]]:
    """What is said of each object, by kind."""
    kinds = [
        DEPLOYMENTS,
        PODS,
        SERVICES,
        *(Kind("v1", plural) for plural in ("configmaps", "secrets")),
        *(Kind("apps/v1", plural) for plural in ("replicasets", "statefulsets", "daemonsets")),
        Kind("batch/v1", "jobs"),
        Kind(cluster.budgets(), "poddisruptionbudgets"),
        Kind(cluster.autoscalers(), "horizontalpodautoscalers"),
    ]
    found = {kind.plural: cluster.list(kind, labelSelector=selector)[0] for kind in kinds}
    return {plural: [one["metadata"] for one in those] for plural, those in found.items()}
