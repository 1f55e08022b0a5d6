"""A revision as the objects of a cluster: a Deployment, a Service, a budget for disruptions, an autoscaler.

Pure. The Deployment owns the others, so that whatever deletes it leaves nothing. Its annotations say exactly which
revision it is; its labels and name say it as far as those may: a model can be called anything.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from serving.image_context import CACHE, HOME, PORT, USER
from serving.kubernetes_models import MOUNT, Fetched
from serving.pod_parts import INSTALLATION, PREFIX, Object, amounts, confined, labels, pulled_with, unprivileged
from serving.revision import Address, Revision

NAME = f"{PREFIX}revision"
"""Label on everything of a revision, its pods as well: the name of its objects."""
OF = f"{PREFIX}of"
"""Annotation of a Deployment: the revision as JSON."""
REVISION = f"{PREFIX}revision-id"
"""Annotation of a Deployment: the revision's id, which labels cannot always hold."""
CONTAINER = "model"
"""The one container of a pod."""

_MARGIN_SECONDS = 5
"""A pod that still runs so long after its drain time is killed."""
_TEMPORARY = "1Gi"
"""Most that a model's temporary files may take."""
_LOG = "/predictions"
"""Where a pod has the claim with the prediction log."""
_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
_NAME_LENGTH = 63
_DIGEST_LENGTH = 11
"""Of the digest at the end of a revision's id, with its hyphen."""


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """How revisions of one installation run in a cluster. `ValueError` names the field that cannot be."""

    namespace: str
    """Where they run."""
    installation: str
    """Name of the installation, on everything of its own."""
    log_url: str = ""
    """URL where predictions are logged; empty for nowhere."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Variables of every model server besides its own; those that anybody may see who can read Deployments."""
    environment_secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys are variables too."""
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets with credentials for the registry."""
    service_account: str = ""
    """Under which pods run; its token is never given to them. Empty for the namespace's default one."""
    node_selector: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Labels that nodes must have."""
    pause_seconds: float = 5.0
    """A pod that is to end goes on for so long before it is told, while everybody learns not to ask it any more."""
    startup_seconds: int = 1800
    """A server that is not ready so long after its start is started again. The policy's `ready` is mostly shorter.

    One that fetches its model has what that may take besides."""

    log_claim: str = ""
    """PersistentVolumeClaim on which predictions are logged instead, which every node can mount; empty for none."""
    models_claim: str = ""
    """PersistentVolumeClaim to which servers fetch models, which every node can mount; each pod by itself without."""
    fetching: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Variables of servers that fetch their models, and of no others; see `environment`."""
    fetching_secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys are variables of those too."""
    headless: bool = True
    """Whether the name of a revision stands for its pods, or for an address that the cluster spreads over them."""

    def __post_init__(self) -> None:
        for name in ("namespace", "installation"):
            given = getattr(self, name)
            if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", given):
                advice = "must be at most 63 small letters, digits and hyphens, no hyphen first or last"
                raise ValueError(f"{name} {given!r} {advice}")
        if self.log_url and self.log_claim:
            raise ValueError("log_url and log_claim: predictions are logged at one place only")
        if self.log_url and "://" not in self.log_url:
            raise ValueError(f"log_url {self.log_url!r} must be a URL that pods reach, such as s3://bucket/predictions")
        if self.pause_seconds < 0 or self.startup_seconds < 1:
            raise ValueError("pause_seconds must not be negative, and startup_seconds at least 1")

    @property
    def selector(self) -> str:
        """What finds everything of the installation."""
        return f"{INSTALLATION}={self.installation}"


def name_of(revision_id: str) -> str:
    """The revision's objects are called so: its id, or what is left of that in a name of a cluster, and its digest."""
    if _LABEL.fullmatch(revision_id):
        return revision_id
    plain = re.sub("[^a-z0-9]+", "-", revision_id.lower()).strip("-")
    named = plain if plain[:1].isalpha() else f"m-{plain}"
    if len(named) <= _NAME_LENGTH:
        return named.rstrip("-")
    return named[: _NAME_LENGTH - _DIGEST_LENGTH].rstrip("-") + named[-_DIGEST_LENGTH:]


def address_of(revision_id: str, settings: ClusterSettings) -> Address:
    """Where the revision is reached inside the cluster: a name that stands for all of its pods that are ready."""
    return Address(f"{name_of(revision_id)}.{settings.namespace}.svc", PORT)


def deployment(
    revision: Revision, settings: ClusterSettings, *, paused: bool = False, fetched: Fetched | None = None
) -> Object:
    """The Deployment; one that is `paused` has no pods, so that its Service can be there before them.

    `fetched`: the revision's model, where that is not in the image.
    """
    metadata = {"labels": _labels(revision, settings), "annotations": scraped(PORT)}
    pods = {"metadata": metadata, "spec": _pod(revision, settings, fetched)}
    spec: Object = {
        "replicas": revision.settings.replicas,
        "revisionHistoryLimit": 0,
        "progressDeadlineSeconds": _startup_seconds(settings, fetched) + 1,
        "selector": {"matchLabels": _selector(revision, settings)},
        "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
        "template": pods,
    }
    annotations = {
        OF: json.dumps(asdict(revision), ensure_ascii=False),
        REVISION: revision.id,
        f"{PREFIX}model": revision.version.model,
        f"{PREFIX}model-version": str(revision.version.version),
    }
    made = _object("apps/v1", "Deployment", revision, settings, spec | ({"paused": True} if paused else {}))
    made["metadata"]["annotations"] = annotations
    return made


def scraped(port: int) -> dict[str, str]:
    """Annotations by which a Prometheus that looks for them finds the metrics of a pod."""
    return {"prometheus.io/scrape": "true", "prometheus.io/port": str(port), "prometheus.io/path": "/metrics"}


def service(revision: Revision, settings: ClusterSettings, owner: Object) -> Object:
    """The Service that gives the pods of the Deployment `owner` a name."""
    spec = {
        **({"clusterIP": "None"} if settings.headless else {"type": "ClusterIP"}),
        "selector": _selector(revision, settings),
        "ports": [{"name": "http", "port": PORT, "protocol": "TCP", "targetPort": "http"}],
    }
    return _owned(_object("v1", "Service", revision, settings, spec), owner)


def budget(revision: Revision, settings: ClusterSettings, owner: Object, api: str) -> Object:
    """Nobody takes more than one of the pods away at a time. `api`: group and version, as the cluster serves it."""
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": _selector(revision, settings)}}
    return _owned(_object(api, "PodDisruptionBudget", revision, settings, spec), owner)


def autoscaler(revision: Revision, settings: ClusterSettings, owner: Object, api: str) -> Object:
    """More pods while those that are there are busy, up to the most that the revision may have. `api`: see `budget`."""
    name, busy = name_of(revision.id), revision.settings.busy_percent
    target = {"type": "Utilization", "averageUtilization": busy}
    newer: Object = {"metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": target}}]}
    spec = {
        "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": name},
        "minReplicas": revision.settings.replicas,
        "maxReplicas": revision.settings.max_replicas,
        **({"targetCPUUtilizationPercentage": busy} if api == "autoscaling/v1" else newer),
    }
    return _owned(_object(api, "HorizontalPodAutoscaler", revision, settings, spec), owner)


def _object(api: str, kind: str, revision: Revision, settings: ClusterSettings, spec: Object) -> Object:
    metadata = {
        "name": name_of(revision.id),
        "namespace": settings.namespace,
        "labels": _labels(revision, settings),
    }
    return {"apiVersion": api, "kind": kind, "metadata": metadata, "spec": spec}


def _owned(made: Object, owner: Object) -> Object:
    reference = {
        "apiVersion": owner["apiVersion"],
        "kind": owner["kind"],
        "name": owner["metadata"]["name"],
        "uid": owner["metadata"]["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    made["metadata"]["ownerReferences"] = [reference]
    return made


def _selector(revision: Revision, settings: ClusterSettings) -> dict[str, str]:
    return {INSTALLATION: settings.installation, NAME: name_of(revision.id)}


def _labels(revision: Revision, settings: ClusterSettings) -> dict[str, str]:
    model = _label(revision.version.model) or "model"
    return {
        **labels(settings.installation, "model-server", name_of(revision.id), name=model),
        "app.kubernetes.io/version": str(revision.version.version),
        **_selector(revision, settings),
    }


def _label(text: str) -> str:
    """As much of it as a label may hold."""
    return re.sub("[^A-Za-z0-9_.-]", "-", text)[:_NAME_LENGTH].strip("-_.")


def _pod(revision: Revision, settings: ClusterSettings, fetched: Fetched | None) -> Object:
    user, group = (int(part) for part in USER.split(":"))
    drain = settings.pause_seconds + revision.settings.drain_seconds
    spec: Object = {
        **unprivileged(user, group),
        **pulled_with(settings.pull_secrets),
        "terminationGracePeriodSeconds": math.ceil(drain) + _MARGIN_SECONDS,
        "topologySpreadConstraints": [_spread(revision, settings, key) for key in ("hostname", "zone")],
        "containers": [_container(revision, settings, fetched)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": _TEMPORARY}},
            *_claimed(settings),
            *([fetched.volume(settings.models_claim)] if fetched else []),
        ],
    }
    if fetched:  # A model has many files, or large ones.
        spec["securityContext"]["fsGroupChangePolicy"] = "OnRootMismatch"
    chosen = {
        "serviceAccountName": settings.service_account,
        "nodeSelector": {**settings.node_selector, **dict(revision.settings.node_labels)},
    }
    return spec | {name: value for name, value in chosen.items() if value}


def _claimed(settings: ClusterSettings) -> list[Object]:
    claim = {"name": "predictions", "persistentVolumeClaim": {"claimName": settings.log_claim}}
    return [claim] if settings.log_claim else []


def _spread(revision: Revision, settings: ClusterSettings, over: str) -> Object:
    """Apart where that is possible."""
    key = "kubernetes.io/hostname" if over == "hostname" else "topology.kubernetes.io/zone"
    return {
        "maxSkew": 1,
        "topologyKey": key,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": _selector(revision, settings)},
    }


def _container(revision: Revision, settings: ClusterSettings, fetched: Fetched | None) -> Object:
    pause = f"import time; time.sleep({settings.pause_seconds})"
    container: Object = {
        "name": CONTAINER,
        "image": revision.image,
        "imagePullPolicy": "IfNotPresent",
        "env": [{"name": name, "value": value} for name, value in _environment(revision, settings, fetched).items()],
        "ports": [{"name": "http", "containerPort": PORT, "protocol": "TCP"}],
        "resources": _resources(revision, fetched.room(settings.models_claim) if fetched else {}),
        "securityContext": confined(),
        "volumeMounts": [
            {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - of a container
            *({"name": volume["name"], "mountPath": _LOG} for volume in _claimed(settings)),
            *([dict(MOUNT)] if fetched else []),
        ],
        "lifecycle": {"preStop": {"exec": {"command": [f"{HOME}/bin/python", "-I", "-S", "-c", pause]}}},
        "startupProbe": _probe("ready", period=1, failures=_startup_seconds(settings, fetched)),
        "readinessProbe": _probe("ready", period=2, failures=3),
        "livenessProbe": _probe("live", period=10, failures=6),
    }
    names = (*settings.environment_secrets, *(settings.fetching_secrets if fetched else ()))
    secrets = [{"secretRef": {"name": name}} for name in names]
    return container | ({"envFrom": secrets} if secrets else {})


def _probe(what: str, *, period: int, failures: int) -> Object:
    """Whether the server is `live` or `ready`. While it loads a model only the first of the three is asked."""
    return {
        "httpGet": {"path": f"/v2/health/{what}", "port": "http", "scheme": "HTTP"},
        "periodSeconds": period,
        "timeoutSeconds": min(5, period),
        "failureThreshold": failures,
    }


def _startup_seconds(settings: ClusterSettings, fetched: Fetched | None) -> int:
    return settings.startup_seconds + (fetched.seconds if fetched else 0)


def _resources(revision: Revision, room: Mapping[str, str]) -> Object:
    """What it may take is what it asks for, so that nobody else is given it, and it is not the first to go.

    Of its node's disk it only asks for `room`: its volumes have limits of their own.
    """
    settings = revision.settings
    gpus = {"nvidia.com/gpu": str(settings.gpus)} if settings.gpus else {}
    limits = amounts(settings.cpus, settings.memory_mb) | gpus
    told = {"requests": {**limits, **room}, "limits": limits}
    return {name: asked for name, asked in told.items() if asked}


def _environment(revision: Revision, settings: ClusterSettings, fetched: Fetched | None) -> dict[str, str]:
    server = {
        "MODEL_NAME": revision.version.model,
        "MODEL_VERSION": str(revision.version.version),
        "REVISION": revision.id,
        "PREDICTION_LOG": _LOG if settings.log_claim else settings.log_url,
        "WORKERS": str(revision.settings.workers),
        "DRAIN": str(revision.settings.drain_seconds),
    }
    fetching = {"MODEL_CACHE": CACHE, **settings.fetching} if fetched else {}
    return server | dict(settings.environment) | fetching | revision.settings.server
