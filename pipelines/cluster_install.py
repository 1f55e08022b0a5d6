"""`mlflow-promote k8s`: the controller into a cluster and out of it, with the settings that this machine has.

What is secret of them goes into a Secret, the rest into a ConfigMap; a token and a key for hashes are made where none
was given, and kept by the next installation.
"""

from __future__ import annotations

import base64
import secrets
import time
from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import yaml
from kubernetes.client import ApiClient, ApiException, CoreV1Api, V1Namespace, V1ObjectMeta
from pydantic import SecretStr

from pipelines.abilities import RouterKind
from pipelines.client import ClientError, Json
from pipelines.cluster_manifests import CONTROLLER, PART_OF, SECRET, Wanted, completed, patched
from pipelines.controller_image import PORT, controller_image
from pipelines.settings import PATHS, Settings
from pipelines.settings import SECRET as SECRET_SETTINGS
from serving.cluster import DEPLOYMENTS, PODS, SECRETS, Cluster, ClusterError, Kind, connect
from serving.cluster_gateway import waits
from serving.cluster_jobs import JOBS
from serving.gateway_api import APIS, ROUTES
from serving.pod_parts import INSTALLATION, Object
from serving.registry_depot import depot_of

MANIFESTS = Path(__file__).parents[1] / "k8s"
FILES = ("rights/rights.yaml", "base/controller.yaml", "base/network.yaml")
ROUTE_FILES = ("routes/rights.yaml", "routes/network.yaml")
"""What router httproute takes besides."""
STANDBY = "standby"
"""Folder of the component of kustomize that adds a second controller."""

_OWN = ("home", "policies", "image_maker", "registry_url", "kube_context", "engine", "namespace")
"""Settings of this machine, or such as the manifests give."""
_HERE = (*PATHS, "api_host", "api_port", "mlflow_port", "admin_port")
"""Settings that only hold for a controller on this machine."""
_MADE = {"PROMOTE_TOKEN": 24, "PROMOTE_LOG_KEY": 24}
"""Secrets that are made where nobody gave them, and of how many bytes."""
_START_SECONDS = 600.0
_END_SECONDS = 180.0
_DELETED = (
    DEPLOYMENTS,
    JOBS,
    *(Kind("v1", plural) for plural in ("services", "configmaps", "secrets")),
    Kind("coordination.k8s.io/v1", "leases"),
    Kind("networking.k8s.io/v1", "networkpolicies"),
    Kind("rbac.authorization.k8s.io/v1", "rolebindings"),
    Kind("rbac.authorization.k8s.io/v1", "roles"),
    Kind("v1", "serviceaccounts"),
)
"""What an installation consists of, in the order in which it goes; what Deployments own goes with them."""
_CLAIMS = Kind("v1", "persistentvolumeclaims")
_RESTRICTED = {"pod-security.kubernetes.io/enforce": "restricted"}


def make_image(settings: Settings, tell: Callable[[str], None]) -> str:
    """The controller's image, in the registry of the settings. Raises `ClientError`."""
    repository = str(_required(settings, "image_repository"))
    return controller_image(depot_of(repository, settings.registry_url), repository, settings.base_image, tell)


def render(settings: Settings, image: str, inside_url: str | None = None, *, standby: bool = False) -> list[Object]:
    """The objects of the controller. Raises `ClientError`.

    `inside_url`: where the controller reaches the registry, if that is not where this machine does. `standby`: with
    a second controller.
    """
    return _objects(settings, image, inside_url, {}, standby=standby)


def install(
    settings: Settings, image: str, inside_url: str | None, tell: Callable[[str], None], *, standby: bool = False
) -> Json:
    """Have the controller run in the cluster, and wait until it answers. See `render`. Raises `ClientError`."""
    with closing(_cluster(settings)) as cluster:
        try:
            _ensure_namespace(settings)
            objects = _objects(settings, image, inside_url, _known(cluster), standby=standby)
            for one in objects:
                if one["kind"] == "PodDisruptionBudget":
                    one["apiVersion"] = cluster.budgets()
                tell(f"{one['kind']} {one['metadata']['name']}")
                cluster.apply(one)
            _await(cluster, tell)
        except ClusterError as error:
            raise _refused(error) from error
    url = f"http://{CONTROLLER}.{settings.namespace}.svc:{PORT}"
    forward = f"kubectl --namespace {settings.namespace} port-forward service/{CONTROLLER} {PORT}"
    return {"namespace": settings.namespace, "image": image, "url": url, "secret": SECRET, "forward": forward}


def uninstall(settings: Settings, *, purge: bool, tell: Callable[[str], None]) -> Json:
    """End the controller, the gateway and all revisions; `purge`: what they kept goes too. Raises `ClientError`."""
    with closing(_cluster(settings)) as cluster:
        try:
            kinds = [*_DELETED, Kind(cluster.budgets(), "poddisruptionbudgets"), *([_CLAIMS] if purge else [])]
            routes = _routes(cluster, settings)
            kinds[1:1] = [routes] if routes else []
            removed = _remove(cluster, settings.installation, kinds, tell)
        except ClusterError as error:
            raise _refused(error) from error
    return {"namespace": settings.namespace, "removed": removed, "kept": [] if purge else ["PersistentVolumeClaims"]}


def _routes(cluster: Cluster, settings: Settings) -> Kind | None:
    """Where routes may be left; None where there can be none, or whoever asks has no right to them and needs none."""
    api = cluster.first_served(APIS)
    if api is None:
        return None
    kind = Kind(api, ROUTES)
    try:
        cluster.list(kind, labelSelector=f"{INSTALLATION}={settings.installation}")
    except ClusterError as error:
        if error.status in (403, 404) and settings.router is RouterKind.ENVOY:
            return None
        raise
    return kind


def _objects(
    settings: Settings, image: str, inside_url: str | None, known: dict[str, str], *, standby: bool
) -> list[Object]:
    files = (*FILES, *(ROUTE_FILES if settings.router is RouterKind.HTTPROUTE else ()))
    manifests = [one for file in files for one in _read(file)]
    if standby:
        if not settings.store.startswith("postgresql"):
            message = "store: has to be PostgreSQL where a second controller stands by"
            raise ClientError("invalid", message, "a file is not safe on a volume that several nodes mount")
        (component,) = _read(f"{STANDBY}/kustomization.yaml")
        added = [one for file in component["resources"] for one in _read(f"{STANDBY}/{file}")]
        manifests = patched(manifests, component) + added
    told, secret = _split(settings)
    made = {name: known.get(name) or secrets.token_hex(size) for name, size in _MADE.items()}
    wanted = Wanted(
        settings.namespace,
        image,
        {**told, "target": "kubernetes", **({"registry_url": inside_url} if inside_url else {})},
        {**made, **secret},
        {path.name: path.read_text() for path in _policies(settings.policies)},
        settings.pull_secrets,
        settings.predictions_secret,
    )
    return completed(manifests, wanted)


def _read(file: str) -> list[Object]:
    return list(yaml.safe_load_all((MANIFESTS / file).read_text()))


def _split(settings: Settings) -> tuple[dict[str, Any], dict[str, str]]:
    """What was set here, in two parts: what anybody may see, and what is secret. `ClientError` where it cannot be."""
    _required(settings, "mlflow_uri")
    given = settings.model_fields_set - set(_OWN) - {"target"}
    if files := sorted(given & set(_HERE)):
        message = f"{files[0]}: is a setting of this machine, and the controller will not be on it"
        raise ClientError("invalid", message, "leave it away, or apply k8s/overlays/production with changes of yours")
    told = settings.model_dump(mode="json", include=given - SECRET_SETTINGS)
    told["installation"] = settings.installation
    secret = {f"PROMOTE_{name.upper()}": _plain(getattr(settings, name)) for name in sorted(given & SECRET_SETTINGS)}
    return told, secret


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_plain, value))
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


def _required(settings: Settings, name: str) -> Any:
    value = getattr(settings, name)
    if value is None:
        raise ClientError("invalid", f"{name}: has to be set for a controller in a cluster", "see docs/kubernetes.md")
    return value


def _policies(folder: Path) -> Iterable[Path]:
    return sorted(path for path in folder.glob("*.y*ml")) if folder.is_dir() else ()


def _cluster(settings: Settings) -> Cluster:
    try:
        return Cluster(connect(context=settings.kube_context), settings.namespace)
    except ClusterError as error:
        raise _refused(error) from error


def _ensure_namespace(settings: Settings) -> None:
    """It is made where whoever installs may do that."""
    core = CoreV1Api(ApiClient(connect(context=settings.kube_context)))
    try:
        core.create_namespace(V1Namespace(metadata=V1ObjectMeta(name=settings.namespace, labels=_RESTRICTED)))
    except ApiException as error:
        if error.status not in (403, 409):  # then it is there, or the next question says that it is not
            raise ClusterError(f"cannot make the namespace: {error.reason}", retryable=False) from error


def _known(cluster: Cluster) -> dict[str, str]:
    """What the Secret of an earlier installation holds."""
    found = cluster.get(SECRETS, SECRET) or {}
    return {name: base64.b64decode(text).decode() for name, text in (found.get("data") or {}).items()}


def _await(cluster: Cluster, tell: Callable[[str], None]) -> None:
    deadline, said = time.monotonic() + _START_SECONDS, ""
    while True:
        deployment = cluster.get(DEPLOYMENTS, CONTROLLER) or {}
        status, wanted = deployment.get("status") or {}, deployment.get("spec", {}).get("replicas", 1)
        current = status.get("observedGeneration", 0) >= deployment.get("metadata", {}).get("generation", 1)
        if current and all(status.get(name, 0) >= wanted for name in ("updatedReplicas", "availableReplicas")):
            return
        pods, _ = cluster.list(PODS, labelSelector="app.kubernetes.io/component=controller")
        waiting = next(filter(None, map(waits, pods)), "has no pod yet")
        if waiting != said:
            tell(f"the controller: {waiting}")
            said = waiting
        if time.monotonic() > deadline:
            message = f"the controller did not start in {_START_SECONDS:.0f} s: {said}"
            hint = f"kubectl --namespace {cluster.namespace} logs deployment/{CONTROLLER}"
            raise ClientError("failed", message, hint)
        time.sleep(1.0)


def _remove(cluster: Cluster, installation: str, kinds: Iterable[Kind], tell: Callable[[str], None]) -> list[str]:
    """The controller goes first, because it would put the rest right again."""
    own = ",".join(f"{key}={value}" for key, value in PART_OF.items())
    removed = []
    for kind in kinds:
        for selector in (own, f"{INSTALLATION}={installation}"):
            found, _ = cluster.list(kind, labelSelector=selector)
            for one in found:
                name = one["metadata"]["name"]
                tell(f"removing {kind.plural} {name}")
                cluster.delete(kind, name, one["metadata"]["uid"])
                removed.append(f"{kind.plural}/{name}")
            _await_gone(cluster, kind, selector)
    return removed


def _await_gone(cluster: Cluster, kind: Kind, selector: str) -> None:
    deadline = time.monotonic() + _END_SECONDS
    while cluster.list(kind, labelSelector=selector)[0]:
        if time.monotonic() > deadline:
            message = f"some {kind.plural} are still there after {_END_SECONDS:.0f} s"
            raise ClientError("failed", message, f"kubectl --namespace {cluster.namespace} describe {kind.plural}")
        time.sleep(0.5)


def _refused(error: ClusterError) -> ClientError:
    hint = "KUBECONFIG or the setting kube_context leads to the cluster; to install takes the rights of its admin"
    return ClientError("failed", str(error), hint)
