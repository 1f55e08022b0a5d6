"""How an installation is set up: by one YAML file and by environment variables, which win.

The file is the one that ``PROMOTE_CONFIG`` names, else ``settings.yaml`` in the home folder, where there is
one; relative folders in it start from where the file lies. A setting ``poll_seconds`` is called
``PROMOTE_POLL_SECONDS`` in the environment. Everything is checked once, when it is loaded.
"""

from __future__ import annotations

import difflib
import ipaddress
import os
from collections.abc import Mapping
from enum import StrEnum
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, Self
from urllib.parse import urlsplit

from pydantic import (
    AliasChoices,
    Field,
    ValidationError,
    model_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from monitoring.written import Duration, MalformedError, Mistake, mistakes, read_mapping, unknown
from pipelines.abilities import RouterKind, fitted
from pipelines.policy import Policy
from pipelines.setting_kinds import (
    BaseImage,
    DatabaseUrl,
    File,
    Folder,
    GatewayParent,
    GatewayUrl,
    Hostname,
    Index,
    InstallationName,
    Label,
    Listed,
    Port,
    RegistryUrl,
    Seconds,
    Secret,
    SecretName,
    ServerUrl,
    StoreUrl,
)
from serving.gateway_api import SETTLE_SECONDS
from serving.gateway_objects import name_of
from serving.package_source import PackageSource
from serving.runtime.requirements import STORES

PREFIX = "PROMOTE_"
CONFIG = PREFIX + "CONFIG"
"""Names the file."""
OTHERS = frozenset({"config", "url", "seed", "worlds"})
"""Variables with our prefix that are no settings."""
PATHS = ("home", "policies", "signing_key", "verify_key", "package_ca", "package_wheels")
"""Settings whose relative paths start from where the file lies."""


class SettingsError(Exception):
    """The settings cannot be used; one line for each mistake."""


class Target(StrEnum):
    """Where revisions run."""

    LOCAL = "local"
    """Processes on this machine."""
    DOCKER = "docker"
    """Containers of a Docker Engine."""
    PODMAN = "podman"
    """Containers of Podman, by its socket."""
    KUBERNETES = "kubernetes"
    """Pods of a Kubernetes cluster."""


class ImageMaker(StrEnum):
    """Who makes images for a cluster."""

    ENGINE = "engine"
    """A container engine, which sends them to the registry."""
    REGISTRY = "registry"
    """The controller itself, which has nothing but the registry."""


class ServiceType(StrEnum):
    """How the gateway's Service in a cluster is reached."""

    CLUSTER_IP = "ClusterIP"
    """Inside the cluster, by its name."""
    NODE_PORT = "NodePort"
    """At a port of every node."""
    LOAD_BALANCER = "LoadBalancer"
    """At an address that the cluster's provider gives."""


class Settings(BaseSettings):
    """One installation."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
        env_ignore_empty=True,
    )

    home: Folder = Path("~/.local/state/mlflow-promote")
    """Folder for everything that the installation keeps on this machine."""
    mlflow_uri: ServerUrl | None = Field(
        default=None,
        validation_alias=AliasChoices("mlflow_uri", "PROMOTE_MLFLOW_URI", "MLFLOW_TRACKING_URI"),
        repr=False,
    )
    """Address of the MLflow server, also read from MLFLOW_TRACKING_URI; without one, `up` starts its own."""
    mlflow_port: Port = 5000
    """Port of the MLflow server that `up` starts."""
    store: DatabaseUrl = Field(
        default_factory=lambda settings: f"sqlite:///{settings['home'] / 'store.db'}", repr=False
    )
    """Database of the store, sqlite:///<path> or postgresql+psycopg://...; store.db in `home` without."""
    policies: Folder = Field(default_factory=lambda settings: settings["home"] / "policies")
    """Folder with the policies; `policies` in `home` without."""
    manage_models_without_policy: bool = True
    """Whether a model that no policy names gets the defaults, or is left alone."""
    target: Target = Target.LOCAL
    """Where revisions run."""
    installation: InstallationName = Field(
        default_factory=lambda settings: f"promote-{sha256(str(settings['home']).encode()).hexdigest()[:8]}"
    )
    """Name of the installation in an engine or a cluster, on everything of its own; made of `home` without."""
    engine: str | None = Field(default=None, repr=False)
    """Address of the engine; DOCKER_HOST, or CONTAINER_HOST for Podman, or the usual socket without."""
    base_image: BaseImage = "python:{python}-slim"
    """Image that images of models stand on, with `{python}` for the version that a model needs."""
    base_images: dict[str, BaseImage] = Field(default_factory=dict)
    """The same for single flavours, by their names in MLflow: `{"lightgbm": "example.org/python:{python}"}`."""
    image_repository: str | None = None
    """Name that images are below; one that begins with a registry's host is where they are sent and pinned from."""
    image_maker: ImageMaker = ImageMaker.ENGINE
    """Who makes images for a cluster: an `engine`, or the controller with nothing but the `registry`."""
    registry_url: RegistryUrl | None = None
    """Where the controller reaches the registry of `image_repository`, if not at its name: `http://registry:5000`."""
    baked_model_mb: Annotated[int, Field(ge=0)] = 1024
    """Largest model, in MiB, that is put into its image; servers fetch a larger one when they start (not `local`)."""
    artifacts_url: StoreUrl | None = None
    """Where containers reach what MLflow keeps at `mlflow-artifacts:/`; at the MLflow server's address without."""
    keep_images: Annotated[int, Field(ge=1)] = 3
    """Of how many versions of each model the image stays although nothing needs it: those that were built last."""
    clean_images_seconds: Annotated[Duration, Field(ge=0, allow_inf_nan=False)] = 86400.0
    """Between two removals of images that nothing needs, while a controller leads; 0: only by command."""
    namespace: Label = "mlflow-promote"
    """Namespace of the cluster in which everything runs that belongs to the installation; it has to be there."""
    kube_context: str | None = None
    """Context of the kubeconfig (KUBECONFIG, else ~/.kube/config) that leads to the cluster; the current without."""
    pull_secrets: Listed[str] = ()
    """Names of Secrets in the namespace with credentials for the registry."""
    gateway_replicas: Annotated[int, Field(ge=1, le=100)] = 2
    """How many pods of a cluster take scoring requests."""
    gateway_service: ServiceType = ServiceType.CLUSTER_IP
    """How clients reach them: `NodePort` takes `gateway_port` where that is from 30000 to 32767, else any."""
    gateway_image: str | None = None
    """Image of the gateway, whose command line begins with Envoy's program; in a cluster, one that was made here."""
    router: RouterKind = RouterKind.ENVOY
    """Who shares requests: our own `envoy`, or in a cluster a Gateway of others by `httproute` (docs/kubernetes.md)."""
    gateway_parent: GatewayParent | None = None
    """Gateway that routes attach to: its name, namespace/name or namespace/name/listener (router `httproute`)."""
    gateway_hostnames: Listed[Hostname] = ()
    """Hostnames that routes hold for; all of the Gateway's without (router `httproute`)."""
    gateway_url: GatewayUrl | None = None
    """Where clients reach that Gateway; made of the first of `gateway_hostnames` without (router `httproute`)."""
    route_settle_seconds: Annotated[Duration, Field(ge=0, allow_inf_nan=False)] = SETTLE_SECONDS
    """How long after a Gateway accepted a route all of its proxies follow it (router `httproute`)."""
    package_index: Index | None = None
    """Package index in the place of PyPI, with user and password where it wants them; what uv is told here without."""
    package_extra_indexes: Listed[Index] = ()
    """Package indexes that are asked before it: a package comes from the first that knows it."""
    package_ca: File | None = None
    """Certificates (PEM) by which package indexes are trusted; those of this machine without."""
    package_wheels: Folder | None = None
    """Folder with packages as files, which are found as those of an index are."""
    poll_seconds: Seconds = 5.0
    """Between two looks at the registry, unless a hint comes."""
    full_read_seconds: Seconds = 3600.0
    """Between two readings of the whole registry, which find what a look cannot, such as a deleted model."""
    alias_requests_per_minute: Annotated[int, Field(ge=1)] = 60
    """Most requests to MLflow spent on watching aliases; fewer mean a later notice."""
    gateway_host: str = "127.0.0.1"
    """Address at which the gateway listens for scoring requests."""
    gateway_port: Port = 8080
    """Port at which the gateway listens for scoring requests."""
    admin_port: Port = 8081
    """Port of the gateway's own administration, on 127.0.0.1 only."""
    api_host: str = "127.0.0.1"
    """Address at which the controller takes commands; any but this machine's own needs `token`."""
    api_port: Port = 8400
    """Port at which the controller takes commands."""
    token: Secret | None = None
    """Whoever commands the controller has to know it."""
    webhook_secret: Secret | None = None
    """What MLflow signs its webhooks with; without one, webhooks are not taken."""
    predictions: str = Field(default_factory=lambda settings: str(settings["home"] / "predictions"))
    """Folder or fsspec URL of the prediction log; `predictions` in `home` without."""
    predictions_claim: str | None = None
    """PersistentVolumeClaim that pods of a cluster mount where `predictions` is a folder: that of the same volume."""
    models_claim: str | None = None
    """PersistentVolumeClaim (ReadWriteMany) to which pods of a cluster fetch large models; without, each for itself."""
    predictions_secret: SecretName | None = None
    """Secret in the cluster whose keys are variables with which pods reach `predictions`: AWS_ENDPOINT_URL and such."""
    drift_memory_mb: Annotated[int, Field(ge=256)] = 2048
    """Memory, in MiB, that a drift check in a cluster asks for and may take."""
    drift_cpus: Annotated[float, Field(gt=0, le=64)] = 1.0
    """CPUs that a drift check in a cluster asks for and may take."""
    drift_seconds: Annotated[Duration, Field(ge=10, le=86400)] = 1800.0
    """How long a drift check in a cluster may take, with all attempts."""
    drift_retries: Annotated[int, Field(ge=0, le=10)] = 2
    """How often a drift check in a cluster is tried again after its pod failed, later each time."""
    drift_checks: Annotated[int, Field(ge=1, le=100)] = 4
    """How many drift checks run in a cluster at the same time; others wait. On one machine it is one."""
    log_key: Secret | None = None
    """Key of the hashes that policies ask for by `log_hash`: without one, what can be guessed can be found again."""
    notify: Listed[str] = Field(default=(), repr=False)
    """Where alerts go besides the log: http(s) addresses get JSON, everything else is an Apprise URL."""
    compile_seconds: Seconds = 120.0
    """How long compiling a model and proving the result right may take; after that the model is served as it is."""
    signing_key: File | None = None
    """Private Ed25519 key (PEM) with which every image that is built is signed; without one, none is."""
    verify_key: File | None = None
    """Public Ed25519 key (PEM) that has to have signed an image before it is started; without one, any image is."""
    threads: Annotated[int, Field(ge=1, le=64)] = 8
    """How many rollouts are looked after at the same time."""

    @model_validator(mode="after")
    def _refuse_what_cannot_be(self) -> Self:
        if self.token is None and not _is_loopback(self.api_host):
            raise ValueError(
                f"token: must be given (PROMOTE_TOKEN) when api_host is not this machine's own, as {self.api_host}"
            )
        if self.target is Target.KUBERNETES and not self.image_repository:
            raise ValueError("image_repository: must name a registry that the cluster pulls from: example.org/models")
        if self.target is not Target.KUBERNETES and self.image_maker is ImageMaker.REGISTRY:
            raise ValueError(f"image_maker: must be engine with target {self.target.value}, which runs what it has")
        self._refuse_routes()
        ports = {"gateway_port": self.gateway_port, "admin_port": self.admin_port, "api_port": self.api_port}
        if self.mlflow_uri is None:
            ports["mlflow_port"] = self.mlflow_port
        if len(set(ports.values())) < len(ports):
            raise ValueError(f"every port has to be another one, not {', '.join(f'{k} {v}' for k, v in ports.items())}")
        return self

    def _refuse_routes(self) -> None:
        if self.router is RouterKind.ENVOY:
            if self.gateway_parent:
                raise ValueError("gateway_parent: is for router httproute; set that too, or leave it away")
            return
        if self.target is not Target.KUBERNETES:
            raise ValueError(f"router: must be envoy with target {self.target.value}; only a cluster has httproute")
        if not self.gateway_parent:
            raise ValueError("gateway_parent: must name the Gateway that routes attach to: gateways/public")
        if not self.gateway_url and not [name for name in self.gateway_hostnames if not name.startswith("*")]:
            raise ValueError("gateway_url: must say where clients reach the Gateway, unless gateway_hostnames does")

    @property
    def api_url(self) -> str:
        """Where this machine reaches the controller's commands."""
        host = "127.0.0.1" if self.api_host in ("0.0.0.0", "::", "") else self.api_host  # noqa: S104
        return f"http://[{host}]:{self.api_port}" if ":" in host else f"http://{host}:{self.api_port}"

    @property
    def gateway_address(self) -> str:
        """Where clients reach the gateway, as far as the settings say that."""
        if self.router is RouterKind.HTTPROUTE:
            named = (f"http://{name}" for name in self.gateway_hostnames if not name.startswith("*"))
            return self.gateway_url or next(named)
        if self.target is Target.KUBERNETES and self.gateway_service is not ServiceType.NODE_PORT:
            return f"http://{name_of(self.installation)}.{self.namespace}.svc:{self.gateway_port}"
        return f"http://{self.gateway_host}:{self.gateway_port}"

    @property
    def packages(self) -> PackageSource:
        """Where the packages of models come from."""
        return PackageSource(
            self.package_index.get_secret_value() if self.package_index else "",
            tuple(index.get_secret_value() for index in self.package_extra_indexes),
            self.package_ca,
            self.package_wheels,
            (STORES[scheme],) if (scheme := urlsplit(self.predictions).scheme) in STORES else (),
        )

    @property
    def mlflow_address(self) -> str:
        """Of the MLflow server, be it the one that `up` starts."""
        return self.mlflow_uri or f"http://127.0.0.1:{self.mlflow_port}"

    @property
    def default_policy(self) -> Policy | None:
        """The policy of models that no policy names; None where they are left alone."""
        return fitted(Policy(), self.router) if self.manage_models_without_policy else None


SECRET = frozenset(
    {
        *("mlflow_uri", "artifacts_url", "store", "token", "webhook_secret", "log_key", "notify"),
        *("package_index", "package_extra_indexes"),
    }
)
"""Settings that are secrets, or URLs that may hold one: what was given for them is not repeated."""


def load() -> Settings:
    """The settings of this installation; `SettingsError`."""
    file = _file()
    given = _from_file(file)
    known = {key: value for key, value in given.items() if key in Settings.model_fields}
    wrong = [f"{file}: {key}: {unknown(key, Settings.model_fields)}" for key in given.keys() - known.keys()]
    wrong += [f"environment variable {name}: {text}" for name, text in _unknown_variables(os.environ).items()]
    try:
        settings = Settings(**{key: value for key, value in known.items() if _variable(key) is None})
    except ValidationError as error:
        wrong += [_told(mistake, file) for mistake in mistakes(error, Settings, SECRET)]
    if wrong:
        raise SettingsError("\n".join(wrong))
    return settings


def _variable(setting: str) -> str | None:
    """The environment variable that gives `setting`, which wins over the file."""
    names = [PREFIX + setting.upper(), *(["MLFLOW_TRACKING_URI"] if setting == "mlflow_uri" else [])]
    return next((name for name in names if os.environ.get(name)), None)


def _file() -> Path:
    named = os.environ.get(CONFIG)
    if named:
        return Path(named).expanduser()
    home = os.environ.get(PREFIX + "HOME") or Settings.model_fields["home"].default
    return Path(home).expanduser() / "settings.yaml"


def _from_file(file: Path) -> dict[str, Any]:
    if not file.exists() and CONFIG not in os.environ:
        return {}
    try:
        given = read_mapping(file)
    except MalformedError as error:
        raise SettingsError(f"{file}: {error}") from error
    here = file.absolute().parent
    relative = {key: str(here / Path(given[key]).expanduser()) for key in PATHS if isinstance(given.get(key), str)}
    return {**given, **relative}


def _unknown_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Variables that are meant as a setting by the look of them; others with our prefix may be anybody's."""
    ours = {name: name.removeprefix(PREFIX).lower() for name in environment if name.startswith(PREFIX)}
    strange = {name: key for name, key in ours.items() if key not in Settings.model_fields and key not in OTHERS}
    close = {
        name: difflib.get_close_matches(key, Settings.model_fields, n=1, cutoff=0.75) for name, key in strange.items()
    }
    return {name: f"is not known; did you mean {PREFIX}{keys[0].upper()}?" for name, keys in close.items() if keys}


def _told(mistake: Mistake, file: Path) -> str:
    """The mistake with where it was made."""
    if not mistake.path:
        return f"settings: {mistake.text}"
    setting = mistake.path.partition("[")[0]
    variable = _variable(setting)
    return f"environment variable {variable}: {mistake.text}" if variable else f"{file}: {mistake}"


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
