"""A node of a cluster that runs nothing: its pods say that they are ready as soon as they are placed there.

As much of a kubelet as Deployments take, so that a cluster has thousands of pods that cost next to nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import urllib3
from kubernetes.client import ApiClient, ApiException, Configuration, CoreV1Api, V1Node, V1ObjectMeta
from kubernetes.watch import Watch

LABEL = "mlflow-promote/bench"
_BEAT_SECONDS = 10.0


class FakeNode:
    """One node with room for `pods`, which nobody but pods with its label are placed on."""

    def __init__(self, connection: Configuration, name: str, pods: int) -> None:
        self.name = name
        self._pods = pods
        self._core, self._watching = CoreV1Api(ApiClient(connection)), CoreV1Api(ApiClient(connection))
        self._over = threading.Event()

    def run(self) -> None:
        self._core.create_node(V1Node(metadata=V1ObjectMeta(name=self.name, labels={LABEL: self.name})))
        self._beat()
        for work in (self._live, self._follow):
            threading.Thread(target=work, name=work.__name__, daemon=True).start()

    def end(self) -> None:
        self._over.set()
        self._core.delete_node(self.name)

    def _live(self) -> None:
        while not self._over.wait(_BEAT_SECONDS):
            with suppress(ApiException, urllib3.exceptions.HTTPError):
                self._beat()

    def _beat(self) -> None:
        now = _now()
        room = {"cpu": "10k", "memory": "100Ti", "pods": str(self._pods), "ephemeral-storage": "100Ti"}
        ready = {
            "type": "Ready",
            "status": "True",
            "reason": "Fake",
            "message": "",
            "lastHeartbeatTime": now,
            "lastTransitionTime": now,
        }
        status = {"capacity": room, "allocatable": room, "conditions": [ready]}
        self._core.patch_node_status(self.name, {"status": status})

    def _follow(self) -> None:
        while not self._over.is_set():
            with suppress(ApiException, urllib3.exceptions.HTTPError):
                for event in self._events():
                    self._see(event["object"])

    def _events(self) -> Iterator[Any]:
        selector = f"spec.nodeName={self.name}"
        yield from Watch().stream(
            self._watching.list_pod_for_all_namespaces, field_selector=selector, timeout_seconds=60
        )

    def _see(self, pod: Any) -> None:
        name, space = pod.metadata.name, pod.metadata.namespace
        with suppress(ApiException):
            if pod.metadata.deletion_timestamp is not None:
                self._core.delete_namespaced_pod(name, space, grace_period_seconds=0)
            elif pod.status.phase == "Pending":
                self._core.patch_namespaced_pod_status(name, space, {"status": _running(pod)})


def _running(pod: Any) -> dict[str, Any]:
    now = _now()
    ready = [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in ("Ready", "ContainersReady")]
    containers = [
        {
            "name": one.name,
            "image": one.image,
            "imageID": one.image,
            "ready": True,
            "started": True,
            "restartCount": 0,
            "state": {"running": {"startedAt": now}},
        }
        for one in pod.spec.containers
    ]
    return {"phase": "Running", "podIP": "10.255.255.254", "conditions": ready, "containerStatuses": containers}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


@contextmanager
def fake_node(connection: Configuration, name: str, pods: int) -> Iterator[FakeNode]:
    """A node that is there for a while."""
    node = FakeNode(connection, name, pods)
    node.run()
    try:
        yield node
    finally:
        node.end()
