"""Work that comes to an end, as a Job of a cluster; and what the cluster says of it.

Pure. A pod that fails is followed by another one, later each time, by the cluster itself: on another node where the
first one is gone, and whether or not the controller runs meanwhile. What was printed is read from the last pod's log.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.image_context import USER
from serving.kubernetes_objects import INSTALLATION, Object

CONTAINER = "work"
"""The one container of a pod."""

_TEMPORARY = "2Gi"
"""Most that temporary files may take."""
_KEPT_SECONDS = 3600
"""A Job that nobody removed is removed by the cluster so long after its end, where the cluster does such things."""
LOG = "/predictions"
"""Where a pod has the claim with the prediction log."""
RUNS = "has not ended yet"
"""Said of a Job of which there is nothing else to say."""
_WORDS = 400
"""Most characters of one thing that the cluster says."""


@dataclass(frozen=True, slots=True)
class JobSettings:
    """How work of one kind runs in a cluster."""

    namespace: str
    installation: str
    """Name of the installation, on everything of its own."""
    component: str
    """What kind of work it is, as in ``app.kubernetes.io/component``."""
    image: str
    """Of the container, with its digest."""
    memory_mb: int
    """Memory that it asks for and may take, in MiB."""
    cpus: float
    """The same of CPUs."""
    seconds: int
    """From the Job's beginning to its end at the latest, all attempts together."""
    retries: int
    """So many pods may follow one that failed."""
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)
    """Variables that anybody may see who can read Jobs."""
    environment_secrets: tuple[str, ...] = ()
    """Names of Secrets whose keys are variables too."""
    pull_secrets: tuple[str, ...] = ()
    """Names of Secrets with credentials for the registry."""
    log_claim: str = ""
    """PersistentVolumeClaim that is mounted at ``/predictions``; empty for none."""
    owner: Object | None = field(default=None, hash=False)
    """With whose deletion the Job goes; None for nobody's."""

    @property
    def selector(self) -> str:
        """What finds all work of that kind."""
        return f"{INSTALLATION}={self.installation},app.kubernetes.io/component={self.component}"

    @property
    def labels(self) -> dict[str, str]:
        common = "app.kubernetes.io/"
        return {
            f"{common}name": "mlflow-promote",
            f"{common}instance": self.installation,
            f"{common}component": self.component,
            f"{common}part-of": self.installation,
            f"{common}managed-by": "mlflow-promote",
            INSTALLATION: self.installation,
        }


def job(name: str, command: Sequence[str], told: Mapping[str, str], settings: JobSettings) -> Object:
    """The Job that runs the command, which is `told` these variables too."""
    pods = {"metadata": {"labels": settings.labels}, "spec": _pod(command, told, settings)}
    spec = {
        "backoffLimit": settings.retries,
        "activeDeadlineSeconds": settings.seconds,
        "ttlSecondsAfterFinished": _KEPT_SECONDS,
        "template": pods,
    }
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata(name, settings), "spec": spec}


def metadata(name: str, settings: JobSettings) -> Object:
    """Of an object that belongs to such work."""
    owned = {"ownerReferences": [reference(settings.owner)]} if settings.owner is not None else {}
    return {"name": name, "namespace": settings.namespace, "labels": settings.labels, **owned}


def reference(owner: Object) -> Object:
    told = {name: owner["metadata"][name] for name in ("name", "uid")}
    return {"apiVersion": owner["apiVersion"], "kind": owner["kind"], **told}


def _pod(command: Sequence[str], told: Mapping[str, str], settings: JobSettings) -> Object:
    user, group = (int(part) for part in USER.split(":"))
    claim = {"name": "predictions", "persistentVolumeClaim": {"claimName": settings.log_claim}}
    spec: Object = {
        "restartPolicy": "Never",
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
            "fsGroup": group,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(command, told, settings)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": _TEMPORARY}},
            *([claim] if settings.log_claim else []),
        ],
    }
    pulled = [{"name": name} for name in settings.pull_secrets]
    return spec | ({"imagePullSecrets": pulled} if pulled else {})


def _container(command: Sequence[str], told: Mapping[str, str], settings: JobSettings) -> Object:
    variables = {"HOME": "/tmp"} | dict(settings.environment) | dict(told)  # noqa: S108 - of a container
    asked = {"cpu": f"{max(1, round(settings.cpus * 1000))}m", "memory": f"{settings.memory_mb}Mi"}
    mounted = [{"name": "predictions", "mountPath": LOG, "readOnly": True}] if settings.log_claim else []
    container: Object = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": {"requests": asked, "limits": dict(asked)},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounted],  # noqa: S108 - of a container
    }
    secrets = [{"secretRef": {"name": name}} for name in settings.environment_secrets]
    return container | ({"envFrom": secrets} if secrets else {})


@dataclass(frozen=True, slots=True)
class Seen:
    """What a cluster has of one Job."""

    job: Object
    pods: Sequence[Object] = ()
    warnings: Sequence[Object] = ()
    """Events about the Job and its pods."""
    words: Sequence[str] = ()
    """Last lines of the last pod."""

    @property
    def succeeded(self) -> bool:
        return bool(_condition(self.job, "Complete"))

    @property
    def failed(self) -> bool:
        """Whether the cluster has given it up."""
        return bool(_condition(self.job, "Failed"))

    @property
    def telling(self) -> Object | None:
        """The pod that says most of how it went: that which did well, else one that had no memory, else the last."""
        made = sorted(self.pods, key=lambda pod: (_tells(pod), str(pod["metadata"].get("creationTimestamp", ""))))
        return made[-1] if made else None

    @property
    def out_of_memory(self) -> bool:
        """Whether a pod was ended for want of memory, as those after it would be."""
        return any(_no_memory(pod) for pod in self.pods)


def why(seen: Seen, settings: JobSettings) -> str:
    """Why there is no result, or not yet, in the cluster's words."""
    told, pod = _condition(seen.job, "Failed"), seen.telling
    at = _of_pod(pod, seen, settings) if pod is not None else _of_none(seen)
    if told.get("reason") == "DeadlineExceeded":
        return "; ".join(filter(None, [f"did not end within {settings.seconds} s", at]))
    if told and not at:
        return str(told.get("message") or told.get("reason") or "the cluster does not say why")[:_WORDS]
    tries = f" (tried {len(seen.pods)} times)" if told and len(seen.pods) > 1 else ""
    return "\n".join([f"{at or RUNS}{tries}", *seen.words])


def _of_none(seen: Seen) -> str:
    """No pod was made."""
    told = _last_warning(seen.warnings, seen.job["metadata"].get("uid"))
    return f"its pod cannot be made: {told}" if told else ""


def _of_pod(pod: Object, seen: Seen, settings: JobSettings) -> str:
    status, ended = pod.get("status", {}), _ending(pod)
    if _no_memory(pod):
        return f"was ended by the system for want of memory (the limit is {settings.memory_mb} MiB)"
    if ended:
        code = int(ended.get("exitCode", 0))
        return f"ended with status {code}" if code <= 128 else f"was ended by signal {code - 128}"
    if status.get("phase") == "Failed":
        told = filter(None, (status.get("reason", ""), status.get("message", "")))
        return f"its pod was ended: {': '.join(told)[:_WORDS] or 'the cluster does not say why'}"
    placed: Object = next((one for one in status.get("conditions") or () if one["type"] == "PodScheduled"), {})
    if placed.get("status") == "False":
        return f"no node takes it: {placed.get('message', '')[:_WORDS]}"
    waiting = _status(pod).get("state", {}).get("waiting")
    if waiting:
        said = _last_warning(seen.warnings, pod["metadata"].get("uid")) or waiting.get("message", "")[:_WORDS]
        return ": ".join(filter(None, [waiting.get("reason", "waits"), said]))
    return _last_warning(seen.warnings, pod["metadata"].get("uid"))


def _last_warning(warnings: Iterable[Object], uid: str | None) -> str:
    """What the cluster last warned of, without that it waits before it tries again, which says nothing."""
    own = [one for one in warnings if one.get("involvedObject", {}).get("uid") == uid and one.get("type") == "Warning"]
    told = [one for one in own if one.get("reason") != "BackOff" and not str(one.get("message")).startswith("Error: ")]
    latest = sorted(told, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))
    return str(latest[-1].get("message", ""))[:_WORDS] if latest else ""


def _condition(of: Object, kind: str) -> dict[str, Any]:
    told = of.get("status", {}).get("conditions") or ()
    return next((one for one in told if one["type"] == kind and one["status"] == "True"), {})


def _status(pod: Object) -> Object:
    told = pod.get("status", {}).get("containerStatuses") or ()
    return next((one for one in told if one["name"] == CONTAINER), {})


def _tells(pod: Object) -> int:
    return 2 if pod.get("status", {}).get("phase") == "Succeeded" else int(_no_memory(pod))


def _no_memory(pod: Object) -> bool:
    return bool(_ending(pod).get("reason") == "OOMKilled")


def _ending(pod: Object) -> Object:
    ended: Object = _status(pod).get("state", {}).get("terminated") or {}
    return ended
