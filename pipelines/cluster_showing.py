"""What `kubectl` shows of revisions: labels with their phase and weight, and every decision as an event.

A chore of the controller. It follows what the store says, so what is shown after a crash is what was decided before it;
only events of the time in which nobody led are left out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from pipelines.live import by_model
from pipelines.rollout import Event, Rollout
from pipelines.store import History, RolloutStore
from serving.cluster import DEPLOYMENTS, MANAGER, Cluster
from serving.cluster_view import View
from serving.kubernetes_objects import REVISION
from serving.pod_parts import PREFIX, Object

PHASE, WEIGHT = f"{PREFIX}phase", f"{PREFIX}weight"
"""Labels of a Deployment. A weight is the share in percent that the rollout asks for."""
STABLE, WARM = "stable", "warm"
"""Phases of revisions that are of no rollout."""

_RECENT = 200
"""So many events of all models are looked at in each round."""
_WORDS = 1000
"""Most characters of an event's message, of which a cluster takes 1024."""
_REASONS = {"intent": "Intent", "phase": "Rollout", "alert": "Alert", "drift": "Drift"}


class Showing:
    """Keeps labels and events of one installation's Deployments."""

    def __init__(self, cluster: Cluster, view: View, rollouts: RolloutStore, history: History) -> None:
        self._cluster, self._view, self._rollouts, self._history = cluster, view, rollouts, history
        self._since = datetime.now(UTC)
        self._told: set[Event] = set()

    def look(self) -> None:
        """Show what is not shown yet. Raises `StoreError` or `ClusterError`."""
        deployments = self._view.deployments.all()
        self._label(deployments)
        self._post(deployments)

    def _label(self, deployments: Iterable[Object]) -> None:
        wanted = shown(self._rollouts.active(), self._stable())
        for one in deployments:
            metadata = one["metadata"]
            labels = wanted.get(metadata.get("annotations", {}).get(REVISION, ""), {PHASE: WARM, WEIGHT: "0"})
            if {name: metadata["labels"].get(name) for name in labels} != labels:
                changes = {"metadata": {"labels": dict(labels)}}
                self._view.deployments.take(self._cluster.change(DEPLOYMENTS, metadata["name"], changes))

    def _stable(self) -> list[str]:
        lives = by_model(self._rollouts.lives()).values()
        return [live.stable.id for live in lives if live.stable is not None]

    def _post(self, deployments: Iterable[Object]) -> None:
        recent = [event for event in self._history.read(limit=_RECENT) if event.at >= self._since]
        places: dict[str, list[Object]] = {}
        for one in deployments:
            places.setdefault(one["metadata"].get("annotations", {}).get(f"{PREFIX}model", ""), []).append(one)
        for event in recent:
            if event not in self._told:
                for place in _about(event, places.get(event.model, [])):
                    self._cluster.apply(event_object(event, place))
        self._told = set(recent)


def shown(active: Iterable[Rollout], stable: Iterable[str]) -> Mapping[str, Mapping[str, str]]:
    """Labels by revision."""
    labels = {key: {PHASE: STABLE, WEIGHT: "100"} for key in stable}
    for rollout in active:
        weight = rollout.weight
        if rollout.stable is not None:
            labels[rollout.stable.id] = {PHASE: STABLE, WEIGHT: str(100 - weight)}
        if rollout.candidate is not None:
            labels[rollout.candidate.id] = {PHASE: rollout.phase.value, WEIGHT: str(weight)}
    return labels


def event_object(event: Event, place: Object) -> Object:
    """The event about that Deployment. The same event has the same name, so that it is there once."""
    metadata, at = place["metadata"], event.at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    named = hashlib.sha256(f"{event.model} {event.at.isoformat()} {event.kind} {event.text}".encode()).hexdigest()[:12]
    who = f"{event.actor}: " if event.actor else ""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": f"{metadata['name']}.{named}", "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": "Warning" if event.kind == "alert" else "Normal",
        "reason": _REASONS.get(event.kind, "Rollout"),
        "message": f"{who}{event.text}"[:_WORDS],
        "source": {"component": MANAGER},
        "reportingComponent": MANAGER,
        "reportingInstance": MANAGER,
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }


def _about(event: Event, deployments: list[Object]) -> list[Object]:
    """Those of the version that the event is about; all of the model's where that has none."""
    if event.version is None:
        return deployments
    version = str(event.version)
    return [one for one in deployments if one["metadata"]["annotations"][f"{PREFIX}model-version"] == version]
