"""What of an installation depends on its target: a part of the wiring, and like it free to name concrete adapters."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import httpx

from monitoring.figure_blocks import Servers
from monitoring.log_file import Log, LogFile
from pipelines.drift_checks import DriftChecks
from pipelines.settings import Settings, SettingsError, Target
from pipelines.store import History, Lease, RolloutStore
from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.depot import Depot
from serving.docker import DockerTarget
from serving.docker_engine import Engine
from serving.docker_gateway import EnvoyContainer, docker_gateway, door_of
from serving.docker_image import DockerImages, ImageNames
from serving.docker_stock import EngineShelf
from serving.docker_volumes import remove_unused
from serving.door import Door
from serving.envoy import GatewaySettings
from serving.envoy_admin import admin_at
from serving.envoy_process import local_gateway
from serving.envoy_router import router_at
from serving.gateway import TrafficGateway
from serving.large_models import MEGABYTE, LargeModels, Locations, artifacts_at, fetching
from serving.local import LocalTarget
from serving.local_image import LocalImages
from serving.local_stock import LocalShelf
from serving.router import TrafficRouter
from serving.signing import SigningKey
from serving.stock import Kind, Stock
from serving.target import ServingTarget

_PODMAN = "podman/podman.sock"


class Origins(Locations, Protocol):
    """As much of a registry as making images takes besides the models themselves."""

    def commit(self, version: ModelVersion) -> str | None:
        """The commit that the version's code was at; None where nobody knows."""
        ...


class Store(RolloutStore, History, Protocol):
    """As much of the store as a platform shows."""


class Platform(Protocol):
    """The parts that belong to one target."""

    @property
    def router(self) -> TrafficRouter:
        """Who tells the gateway the weights."""
        ...

    @property
    def gateway(self) -> TrafficGateway:
        """What clients send their requests to."""
        ...

    def logs(self) -> Sequence[Log]:
        """The gateway's access logs, which are always so many and in this order."""
        ...

    def servers(self) -> Servers | None:
        """Whose figures stand in for access logs, where the gateway has none of ours; None where it has."""
        ...

    def target(self) -> ServingTarget:
        """Made anew for whoever needs it: what runs is remembered by the platform."""
        ...

    def builder(self, images: LocalImages, signing: SigningKey | None, origins: Origins) -> Builds:
        """What makes images for the target, of what `images` makes on this machine, and signs them."""
        ...

    def stock(self) -> Stock:
        """What is kept of the installation's images."""
        ...

    def client(self) -> httpx.Client:
        """What reaches revisions at their addresses."""
        ...

    def lease(self, store: Lease) -> Lease:
        """Who decides which controller leads."""
        ...

    def chores(self, store: Store) -> Sequence[Callable[[], object]]:
        """What whoever leads has to do there in every round."""
        ...

    def drift_checks(self, here: DriftChecks, mlflow: str) -> DriftChecks:
        """Where drift checks are carried out: `here`, unless the platform has a better place. `mlflow`: its address."""
        ...

    def end_checks(self) -> None:
        """Remove what a controller that is gone left of drift checks. It is no failure that this cannot be done now."""
        ...

    def purge(self) -> None:
        """Remove whatever is left there of an installation that was stopped."""
        ...

    def close(self) -> None:
        """Let connections go."""
        ...


def platform_of(settings: Settings) -> Platform:
    """The platform that the settings name."""
    if settings.target is Target.KUBERNETES:
        return _cluster_platform(settings)
    return LocalPlatform(settings) if settings.target is Target.LOCAL else EnginePlatform(settings)


def _cluster_platform(settings: Settings) -> Platform:
    """What it takes is installed only by those who ask for it."""
    try:
        from pipelines.cluster_platform import ClusterPlatform
    except ModuleNotFoundError as error:
        what = f"target kubernetes takes the package {error.name}"
        raise SettingsError(f"{what}: pip install 'mlflow-promote[kubernetes]'") from error
    return ClusterPlatform(settings)


def gateway_settings(settings: Settings) -> GatewaySettings:
    return GatewaySettings(host=settings.gateway_host, port=settings.gateway_port, admin_port=settings.admin_port)


def image_names(settings: Settings) -> ImageNames:
    return ImageNames(settings.image_repository or settings.installation, settings.base_image, settings.base_images)


def container_builds(
    settings: Settings,
    depot: Depot,
    images: LocalImages,
    signing: SigningKey | None,
    origins: Origins,
    large: LargeModels | None,
) -> Builds:
    """What makes images in the depot."""
    names = image_names(settings)
    maker = DockerImages(settings.home, images, depot, names, commits=origins.commit, large=large)
    return Builds(settings.home, maker, signing=signing)


def server_environment(settings: Settings) -> dict[str, str]:
    """What every model server is told besides its own."""
    return {"PREDICTION_LOG_KEY": settings.log_key.get_secret_value()} if settings.log_key is not None else {}


def artifacts_of(settings: Settings) -> str:
    """Where containers reach MLflow's artifacts."""
    return artifacts_at(settings.mlflow_address, settings.artifacts_url)


def fetching_of(settings: Settings) -> dict[str, str]:
    """What servers are told that fetch their model."""
    return fetching(settings.mlflow_address, artifacts_of(settings), os.environ)


def large_models(settings: Settings, origins: Origins) -> LargeModels:
    """Which models are not put into images."""
    return LargeModels(settings.baked_model_mb * MEGABYTE, origins, artifacts_of(settings))


class _OnOneMachine:
    """What platforms of one machine have in common."""

    def lease(self, store: Lease) -> Lease:
        """The store, which all controllers share."""
        return store

    def servers(self) -> None:
        """The gateway is ours."""

    def chores(self, _: Store) -> Sequence[Callable[[], object]]:
        """None."""
        return ()

    def drift_checks(self, here: DriftChecks, _: str) -> DriftChecks:
        """In the controller's process."""
        return here

    def end_checks(self) -> None:
        """They end with that process."""


class LocalPlatform(_OnOneMachine):
    """Processes of this machine."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.gateway = local_gateway(settings.home / "gateway", gateway_settings(settings))
        self.router = router_at(settings.home / "gateway", self.gateway.settings)

    def logs(self) -> Sequence[Log]:
        return [LogFile(self.gateway.files.access_log, self.gateway.reopen_log)]

    def target(self) -> LocalTarget:
        return LocalTarget(self._settings.home, self._settings.predictions, server_environment(self._settings))

    def builder(self, images: LocalImages, signing: SigningKey | None, _: Origins) -> Builds:
        return Builds(self._settings.home, images, signing=signing)

    def stock(self) -> Stock:
        return Stock(self._settings.home, LocalShelf(self._settings.home, packages=self._settings.packages))

    def client(self) -> httpx.Client:
        return httpx.Client(trust_env=False)

    def purge(self) -> None:
        """Everything lies below the home folder."""

    def close(self) -> None:
        """There are none."""


class EngineImages:
    """Images that an engine makes and keeps."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    @cached_property
    def engine(self) -> Engine:
        return Engine(engine_url(self._settings), self._settings.installation)

    @property
    def depot(self) -> Depot:
        return self.engine

    @property
    def names(self) -> ImageNames:
        return image_names(self._settings)

    def in_registry(self, reference: str) -> bool:
        """Whether the image's registry has it."""
        return self.engine.in_registry(reference)

    def labels(self, reference: str) -> Mapping[str, str]:
        """What an image says of itself."""
        return self.engine.labels(reference)

    def builder(
        self, images: LocalImages, signing: SigningKey | None, origins: Origins, large: LargeModels | None
    ) -> Builds:
        """`large`: which models are left out of their images; none without."""
        return container_builds(self._settings, self.engine, images, signing, origins, large)

    def stock(self) -> Stock:
        """Those of the engine, and on this machine what they were made of."""
        settings, names = self._settings, self.names
        shelf = EngineShelf(self.engine, names.repository, settings.installation, remote=names.remote)
        return Stock(settings.home, shelf, LocalShelf(settings.home, Kind.SOURCE, settings.packages))

    def close(self) -> None:
        if "engine" in self.__dict__:
            self.engine.close()

    def purge(self) -> None:
        self.engine.purge(self.names.repository)
        self.engine.purge(self._settings.installation)
        remove_unused(self.engine)


class EnginePlatform(_OnOneMachine):
    """Containers of an engine: Docker's, or Podman's."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._images = EngineImages(settings)
        home, name, inside = settings.home / "gateway", settings.installation, gateway_settings(settings)
        host = EnvoyContainer(self._images.engine, name, self._door.key, name, settings.gateway_image)
        self.gateway = docker_gateway(home, inside, host, self._door)
        self.router = router_at(home, inside, admin_at(self._door.port, self._door.host, self._door.headers))

    @cached_property
    def _door(self) -> Door:
        return door_of(self._settings.home / "gateway", gateway_settings(self._settings))

    def logs(self) -> Sequence[Log]:
        return [LogFile(self.gateway.files.access_log, self.gateway.reopen_log)]

    def target(self) -> DockerTarget:
        settings = self._settings
        return DockerTarget(
            settings.home,
            self._images.engine,
            settings.installation,
            self._door,
            settings.predictions,
            server_environment(settings),
            fetching=fetching_of(settings),
        )

    def builder(self, images: LocalImages, signing: SigningKey | None, origins: Origins) -> Builds:
        return self._images.builder(images, signing, origins, large_models(self._settings, origins))

    def stock(self) -> Stock:
        return self._images.stock()

    def client(self) -> httpx.Client:
        return httpx.Client(proxy=httpx.Proxy(self._door.url, headers=dict(self._door.headers)), trust_env=False)

    def purge(self) -> None:
        self._images.purge()

    def close(self) -> None:
        self._images.close()


def engine_url(settings: Settings) -> str:
    """Where the engine is: as the settings say, else as its own tools would find it."""
    if settings.engine:
        return settings.engine
    if settings.target is not Target.PODMAN:
        return os.environ.get("DOCKER_HOST") or "unix:///var/run/docker.sock"
    told = os.environ.get("CONTAINER_HOST")
    own = Path(os.environ.get("XDG_RUNTIME_DIR", "/run")) / _PODMAN
    return told or f"unix://{own if own.exists() else Path('/run') / _PODMAN}"


def end_revisions(target: ServingTarget) -> None:
    """Revisions end within their drain time, by their target's own clock."""
    for revision in target.status():
        target.stop(revision)
    while target.status():
        time.sleep(0.1)
