"""From settings to a running controller: the only place that names concrete adapters.

`run` serves the commands at once and leads as soon as it gets the lease. What belongs to the platform is made
anew each time it begins to lead, because another controller may have changed it in between.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path

import uvicorn
from fastapi import APIRouter, FastAPI
from prometheus_client import CollectorRegistry

from monitoring.access_log import AccessLogBlocks, ReadingPolicy
from monitoring.apprise_notify import AppriseNotifier
from monitoring.drift_gauges import DriftGauges
from monitoring.evidently_drift import EvidentlyDrift
from monitoring.figure_blocks import FigureBlocks
from monitoring.log_counters import LogCounters
from monitoring.logged_rows import LoggedRows
from monitoring.notify import BackgroundNotifier, LogNotifier, Notifier, Notifiers
from monitoring.webhook_notify import WebhookNotifier
from pipelines.api import create_api
from pipelines.approving import Approvals
from pipelines.cleaning import Cleaning, CleaningTurn
from pipelines.commands import Commands
from pipelines.controller import Controller, Pace
from pipelines.drift_checks import DriftChecks
from pipelines.drift_here import DriftChecksHere
from pipelines.drift_job import DriftJob
from pipelines.drift_runs import DriftRuns
from pipelines.drift_schedule import DriftSchedule
from pipelines.gates import Gates, StandardGates
from pipelines.keys import Keys, read_keys
from pipelines.mlflow_server import MlflowServer
from pipelines.overview import Overview
from pipelines.platforms import end_revisions, platform_of
from pipelines.policies import Policies
from pipelines.promotion import Ports, Promotion
from pipelines.replaying import Replays
from pipelines.rollout_gauges import RolloutGauges
from pipelines.settings import Settings
from pipelines.sql_store import SqlStore
from pipelines.store import Lease
from registry_hooks.logged_sample import LoggedSamples
from registry_hooks.mlflow_reference import MlflowReference
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import ChannelKind
from registry_hooks.watcher import Watcher
from registry_hooks.webhook import webhook_router
from serving.builds import Builds
from serving.gateway import TrafficGateway
from serving.image import server_digest
from serving.local_image import LocalImages
from serving.processes import adopt
from serving.router import TrafficRouter
from serving.signing import Signatures
from serving.target import ServingTarget
from serving.verified_target import VerifiedTarget

log = logging.getLogger(__name__)

_STANDBY_SECONDS = 2.0
"""How often a controller that does not lead asks for the lease."""


def _now() -> datetime:
    return datetime.now(UTC)


class Installation:
    """Everything of one installation that does not depend on who leads."""

    def __init__(self, settings: Settings, keys: Keys = Keys()) -> None:
        self.settings = settings
        self.keys = keys
        self.home = settings.home
        self.home.mkdir(parents=True, exist_ok=True)
        self.platform = platform_of(settings)
        self.policies = Policies(settings.policies, settings.default_policy, settings.router)
        self.metrics = CollectorRegistry()
        self.controller: Controller | None = None
        self.watcher: Watcher | None = None

    @cached_property
    def mlflow(self) -> MlflowServer | None:
        """The embedded MLflow server; None where the settings name another one."""
        if self.settings.mlflow_uri is not None:
            return None
        return MlflowServer(self.home / "mlflow", self.settings.mlflow_port, self.settings.api_url, self.token)

    @property
    def token(self) -> str | None:
        """What whoever commands the controller has to know."""
        return self.settings.token.get_secret_value() if self.settings.token is not None else None

    @property
    def mlflow_uri(self) -> str:
        return self.mlflow.uri if self.mlflow is not None else str(self.settings.mlflow_uri)

    @cached_property
    def registry(self) -> MlflowRegistry:
        return MlflowRegistry(self.mlflow_uri)

    @cached_property
    def store(self) -> SqlStore:
        return SqlStore(self.settings.store)

    @cached_property
    def lease(self) -> Lease:
        return self.platform.lease(self.store)

    @property
    def router(self) -> TrafficRouter:
        return self.platform.router

    @property
    def gateway(self) -> TrafficGateway:
        return self.platform.gateway

    @cached_property
    def blocks(self) -> AccessLogBlocks | FigureBlocks:
        RolloutGauges(self.store, lambda: self.controller is not None, _now, self.metrics)
        servers = self.platform.servers()
        if servers is not None:
            return FigureBlocks(self.router.get_weights, servers, self.home / "blocks")
        reading = ReadingPolicy(timeout_seconds=self.gateway.settings.request_seconds)
        blocks = AccessLogBlocks(self.platform.logs(), self.home / "blocks", reading=reading)
        LogCounters(blocks.counters, self.metrics)
        return blocks

    def verified(self, target: ServingTarget) -> ServingTarget:
        """The target, behind the check of its images where there is a key for that."""
        key = self.keys.verify
        if key is None:
            return target
        return VerifiedTarget(target, key, Signatures(self.home))

    @cached_property
    def cleaning(self) -> Cleaning:
        return Cleaning(self.platform.stock(), self.store, self.store, self.settings.keep_images)

    @cached_property
    def notifier(self) -> BackgroundNotifier:
        return BackgroundNotifier(Notifiers(_channels(self.settings.notify)))

    @cached_property
    def checks(self) -> DriftChecks:
        reference, served = MlflowReference(self.mlflow_uri), LoggedRows(self.settings.predictions)
        here = DriftChecksHere(self.registry, reference, served, EvidentlyDrift())
        return self.platform.drift_checks(here, self.mlflow_uri)

    @cached_property
    def drift(self) -> DriftRuns:
        job = DriftJob(self.checks, self.registry, self.notifier, DriftGauges(self.metrics))
        return DriftRuns(
            job=job,
            rollouts=self.store,
            inbox=self.store,
            history=self.store,
            registry=self.registry,
            policy=self.policies.for_model,
            now=_now,
            wake=self.wake,
        )

    def wake(self, model: str | None = None) -> None:
        """Hand a hint to the controller, where this process leads."""
        if self.controller is not None:
            self.controller.wake(model)

    def url(self, model: str) -> str:
        return f"{self.gateway.url}/models/{model}/invocations"

    def aliased(self) -> Sequence[str]:
        """Models that are watched by an alias."""
        return [model for model in self.store.before().models if self._by_alias(model)]

    def alias_delay(self) -> float | None:
        if self.watcher is None or not self.aliased():
            return None
        return self.watcher.worst_alias_delay() + self.settings.poll_seconds

    def _by_alias(self, model: str) -> bool:
        policy = self.policies.for_model(model)
        if policy is None:
            return False
        channels = (policy.live, policy.pre_live)
        return any(channel is not None and channel.kind is ChannelKind.ALIAS for channel in channels)


def run(settings: Settings, stop: threading.Event) -> None:
    """Serve the commands and, with the lease, control; until `stop` is set. Traffic goes on afterwards.

    `SettingsError` where the keys cannot be used.
    """
    installation = Installation(settings, read_keys(settings))
    if installation.mlflow is not None:
        installation.mlflow.ensure()
    name = f"{socket.gethostname()}-{os.getpid()}"
    with _serving(installation):
        while not stop.is_set():
            if installation.lease.acquire(name, Pace().lease_seconds):
                _lead(installation, name, stop)
            else:
                stop.wait(_STANDBY_SECONDS)
        installation.checks.stop()
    installation.notifier.close()


def stop(settings: Settings, *, purge: bool = False) -> None:
    """End everything that the installation runs, the controller first; `purge`: leave nothing of it in an engine."""
    installation = Installation(settings)
    controller = adopt(controller_record(settings))
    if controller is not None:
        controller.end(30.0)
    controller_record(settings).unlink(missing_ok=True)
    installation.gateway.stop(drain_seconds=5.0)
    end_revisions(installation.platform.target())
    installation.platform.end_checks()
    if purge:
        installation.platform.purge()
    installation.platform.close()
    if installation.mlflow is not None:
        installation.mlflow.stop()


@contextmanager
def cleaning_of(settings: Settings) -> Iterator[Cleaning]:
    """What lists and removes the images of the installation, whether a controller runs or not."""
    installation = Installation(settings)
    try:
        yield installation.cleaning
    finally:
        installation.platform.close()


def controller_record(settings: Settings) -> Path:
    """Where a detached controller's process is remembered."""
    return settings.home / "controller.json"


def _lead(installation: Installation, name: str, stop: threading.Event) -> None:
    """Control until the lease is lost or `stop` is set."""
    log.info("%s leads", name)
    with ExitStack() as left:
        installation.gateway.ensure()
        left.callback(installation.gateway.leave)
        installation.platform.end_checks()
        schedule = _schedule(installation)
        schedule.start()
        left.callback(schedule.stop, wait=False)
        seconds = installation.settings.compile_seconds
        registry = installation.registry
        reference = MlflowReference(installation.mlflow_uri)
        samples = LoggedSamples(lambda: reference, lambda version: registry.describe(version).run_id)
        packages = installation.settings.packages
        images = LocalImages(installation.home, registry, compile_seconds=seconds, samples=samples, packages=packages)
        builder = installation.platform.builder(images, installation.keys.signing, registry)
        left.callback(builder.close)
        replays = Replays(installation.settings.predictions, installation.platform.client)
        left.callback(replays.close)
        approvals = Approvals(registry, installation.store, installation.home / "approving")
        left.callback(approvals.close)
        client = left.enter_context(installation.platform.client())
        gates = StandardGates(registry, client, replays, approvals)
        cleaning = CleaningTurn(installation.cleaning.clean, installation.settings.clean_images_seconds)
        left.callback(cleaning.close)
        chores = (schedule.sync, cleaning.look, *installation.platform.chores(installation.store))
        controller = _controller(installation, name, _ports(installation, builder, gates), chores)
        installation.controller = controller
        left.callback(setattr, installation, "controller", None)
        controller.run(stop)


def _schedule(installation: Installation) -> DriftSchedule:
    drift = installation.drift
    return DriftSchedule(drift.run, drift.due, installation.store.last_drift, installation.checks.at_once)


def _ports(installation: Installation, builder: Builds, gates: Gates) -> Ports:
    return Ports(
        registry=installation.registry,
        builder=builder,
        target=installation.verified(installation.platform.target()),
        router=installation.router,
        blocks=installation.blocks,
        gates=gates,
        rollouts=installation.store,
        notifier=installation.notifier,
    )


def _controller(
    installation: Installation, name: str, ports: Ports, chores: Sequence[Callable[[], object]]
) -> Controller:
    settings = installation.settings
    feed = MlflowRegistry(installation.mlflow_uri)
    installation.watcher = Watcher(
        installation.registry,
        feed,
        installation.aliased,
        settings.alias_requests_per_minute,
        settings.full_read_seconds,
    )
    return Controller(
        name,
        ports,
        Promotion(ports, server_digest(), installation.url),
        installation.watcher,
        installation.store,
        installation.lease,
        installation.policies,
        _now,
        Pace(poll_seconds=settings.poll_seconds),
        settings.threads,
        chores=(installation.policies.load, *chores, installation.blocks.pump),
    )


@contextmanager
def _serving(installation: Installation) -> Iterator[None]:
    """The commands over HTTP, in a thread of their own; `OSError` where the address cannot be had."""
    settings = installation.settings
    server = uvicorn.Server(
        uvicorn.Config(_api(installation), host=settings.api_host, port=settings.api_port, log_level="warning")
    )
    thread = threading.Thread(target=server.run, name="api", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise OSError(f"{settings.api_host}:{settings.api_port} cannot be listened at; change api_port")
            time.sleep(0.02)
        yield
    finally:
        server.should_exit = True
        thread.join(10.0)


def _api(installation: Installation) -> FastAPI:
    store = installation.store
    commands = Commands(
        store=store,
        inbox=store,
        history=store,
        registry=installation.registry,
        policies=installation.policies.for_model,
        blocks=installation.blocks,
        wake=installation.wake,
        now=_now,
        broken=installation.policies.problem,
    )
    overview = Overview(
        store=store,
        inbox=store,
        lookup=store,
        history=store,
        lease=installation.lease,
        registry=installation.registry,
        router=installation.router,
        policies=installation.policies.for_model,
        problems=installation.policies.problems,
        alias_delay=installation.alias_delay,
        mlflow=installation.mlflow_uri,
    )
    return create_api(
        commands,
        overview,
        drift=installation.drift.run,
        wake=installation.wake,
        metrics=installation.metrics,
        token=installation.token,
        routers=_webhooks(installation),
    )


def _webhooks(installation: Installation) -> Sequence[APIRouter]:
    secret = installation.settings.webhook_secret
    return (webhook_router(secret.get_secret_value(), installation.wake, _now),) if secret else ()


def _channels(urls: Sequence[str]) -> list[Notifier]:
    """The log always; webhooks by their own adapter, everything else by Apprise."""
    hooks = [url for url in urls if url.startswith(("http://", "https://"))]
    others = [url for url in urls if url not in hooks]
    channels: list[Notifier] = [LogNotifier(), *(WebhookNotifier(url) for url in hooks)]
    return [*channels, AppriseNotifier(others)] if others else channels
