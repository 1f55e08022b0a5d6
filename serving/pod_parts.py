"""What pods of every kind have in common: what they may do, what they ask for, and what the cluster tells of them.

Pure. Nothing of ours needs more than this, so that it runs where the 'restricted' Pod Security profile is in force.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

Object = dict[str, Any]
"""One object of a cluster, as JSON has it."""

PREFIX = "mlflow-promote/"
INSTALLATION = f"{PREFIX}installation"
"""Label on everything of ours: the name of the installation that it belongs to."""
_WAITING_TO_TRY_AGAIN = "BackOff"


def unprivileged(user: int, group: int) -> Object:
    """What a pod's specification has in any case: it runs as that user, and is given no token of the cluster."""
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": user,
            "runAsGroup": group,
            "fsGroup": group,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
    }


def confined() -> Object:
    """`securityContext` of a container."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def pulled_with(secrets: Iterable[str]) -> Object:
    """The part of a pod's specification that says so; empty without any."""
    named = [{"name": name} for name in secrets]
    return {"imagePullSecrets": named} if named else {}


def labels(installation: str, component: str, instance: str, *, name: str = "mlflow-promote") -> dict[str, str]:
    """Labels that tools look for, and ours."""
    told = {"name": name, "instance": instance, "component": component, "part-of": installation}
    common = {f"app.kubernetes.io/{key}": value for key, value in (told | {"managed-by": "mlflow-promote"}).items()}
    return {**common, INSTALLATION: installation}


def amounts(cpus: float | None, memory_mb: int | None) -> dict[str, str]:
    """So much of each resource, as a cluster writes it; without those of which nothing is said."""
    told = {
        "cpu": f"{max(1, round(cpus * 1000))}m" if cpus else "",
        "memory": f"{memory_mb}Mi" if memory_mb else "",
    }
    return {name: amount for name, amount in told.items() if amount}


def container(pod: Object, name: str) -> Object:
    """What the cluster tells of that container of the pod; empty before it does."""
    told = pod.get("status", {}).get("containerStatuses") or ()
    return next((one for one in told if one["name"] == name), {})


def condition(of: Object, kind: str) -> Object:
    """That condition of an object, true or not; empty where it has none."""
    told = of.get("status", {}).get("conditions") or ()
    return next((one for one in told if one["type"] == kind), {})


def unplaced(pod: Object) -> str:
    """Why no node takes the pod, in the cluster's words; empty where one does, or none was looked for yet."""
    placed = condition(pod, "PodScheduled")
    return f"no node takes it: {placed.get('message', '')}" if placed.get("status") == "False" else ""


def how_ended(code: int) -> str:
    """What an exit code says."""
    return f"ended with status {code}" if code <= 128 else f"was ended by signal {code - 128}"


def pod_ended(pod: Object) -> str:
    """Of one that was ended as a whole, so that no container says why: what the cluster gives as its reason."""
    status = pod.get("status", {})
    told = ": ".join(filter(None, (status.get("reason", ""), status.get("message", ""))))
    return f"its pod was ended: {told or 'the cluster does not say why'}"


def starved(limit_mb: int | None) -> str:
    """Of a container that was ended for want of memory."""
    limit = f"the limit is {limit_mb} MiB" if limit_mb else "no limit"
    return f"was ended by the system for want of memory ({limit})"


def waits(reason: Object, warnings: Iterable[Object]) -> str:
    """Of a container that waits: its reason, and what the cluster last warned of, which says more than the rest.

    `warnings`: events, the latest last.
    """
    return ": ".join(filter(None, [reason.get("reason", "waits"), last_warning(warnings) or reason.get("message", "")]))


def last_warning(warnings: Iterable[Object]) -> str:
    """The latest of these events that says something.

    That it waits before it tries again, or that there was an error, does not.
    """
    told = [str(one.get("message", "")) for one in warnings if one.get("reason") != _WAITING_TO_TRY_AGAIN]
    return next((message for message in reversed(told) if not message.startswith("Error: ")), "")
