"""Work that comes to an end, as a Job of a cluster; and what the cluster says of it.

Pure. A pod that fails is followed by another one, later each time, by the cluster itself: on another node where the
first one is gone, and whether or not the controller runs meanwhile. What was printed is read from the last pod's log.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from serving.image_context import USER
from serving.pod_parts import (
    INSTALLATION,
    Object,
    amounts,
    condition,
    confined,
    container,
    how_ended,
    labels,
    last_warning,
    pod_ended,
    pulled_with,
    starved,
    unplaced,
    unprivileged,
    waits,
)

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
        return labels(self.installation, self.component, self.installation)


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
    return {
        "restartPolicy": "Never",
        **unprivileged(user, group),
        **pulled_with(settings.pull_secrets),
        "containers": [_container(command, told, settings)],
        "volumes": [
            {"name": "tmp", "emptyDir": {"sizeLimit": _TEMPORARY}},
            *([claim] if settings.log_claim else []),
        ],
    }


def _container(command: Sequence[str], told: Mapping[str, str], settings: JobSettings) -> Object:
    variables = {"HOME": "/tmp"} | dict(settings.environment) | dict(told)  # noqa: S108 - of a container
    asked = amounts(settings.cpus, settings.memory_mb)
    mounted = [{"name": "predictions", "mountPath": LOG, "readOnly": True}] if settings.log_claim else []
    made: Object = {
        "name": CONTAINER,
        "image": settings.image,
        "imagePullPolicy": "IfNotPresent",
        "command": list(command),
        "env": [{"name": name, "value": value} for name, value in variables.items()],
        "resources": {"requests": asked, "limits": dict(asked)},
        "securityContext": confined(),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}, *mounted],  # noqa: S108 - of a container
    }
    secrets = [{"secretRef": {"name": name}} for name in settings.environment_secrets]
    return made | ({"envFrom": secrets} if secrets else {})


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
        return bool(_holds(self.job, "Complete"))

    @property
    def failed(self) -> bool:
        """Whether the cluster has given it up."""
        return bool(_holds(self.job, "Failed"))

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
    told, pod = _holds(seen.job, "Failed"), seen.telling
    at = _of_pod(pod, seen, settings) if pod is not None else _of_none(seen)
    if told.get("reason") == "DeadlineExceeded":
        return "; ".join(filter(None, [f"did not end within {settings.seconds} s", at]))
    if told and not at:
        return str(told.get("message") or told.get("reason") or "the cluster does not say why")[:_WORDS]
    tries = f" (tried {len(seen.pods)} times)" if told and len(seen.pods) > 1 else ""
    return "\n".join([f"{at or RUNS}{tries}", *seen.words])


def _of_none(seen: Seen) -> str:
    """No pod was made."""
    told = last_warning(_warnings(seen.job, seen))
    return f"its pod cannot be made: {told[:_WORDS]}" if told else ""


def _of_pod(pod: Object, seen: Seen, settings: JobSettings) -> str:
    ended = _ending(pod)
    if _no_memory(pod):
        return starved(settings.memory_mb)
    if ended:
        return how_ended(int(ended.get("exitCode", 0)))
    if pod.get("status", {}).get("phase") == "Failed":
        return pod_ended(pod)[:_WORDS]
    waiting, warnings = container(pod, CONTAINER).get("state", {}).get("waiting"), _warnings(pod, seen)
    return (unplaced(pod) or (waits(waiting, warnings) if waiting else last_warning(warnings)))[:_WORDS]


def _warnings(of: Object, seen: Seen) -> list[Object]:
    """The latest last."""
    uid = of["metadata"].get("uid")
    own = [one for one in seen.warnings if one.get("involvedObject", {}).get("uid") == uid]
    told = [one for one in own if one.get("type") == "Warning"]
    return sorted(told, key=lambda one: str(one.get("lastTimestamp") or one.get("eventTime") or ""))


def _holds(of: Object, kind: str) -> Object:
    """That condition of an object, where it is true."""
    told = condition(of, kind)
    return told if told.get("status") == "True" else {}


def _tells(pod: Object) -> int:
    return 2 if pod.get("status", {}).get("phase") == "Succeeded" else int(_no_memory(pod))


def _no_memory(pod: Object) -> bool:
    return bool(_ending(pod).get("reason") == "OOMKilled")


def _ending(pod: Object) -> Object:
    ended: Object = container(pod, CONTAINER).get("state", {}).get("terminated") or {}
    return ended
