"""What the controller learns of its own pod: the image that it runs, and what it goes with."""

from __future__ import annotations

import socket
from functools import cached_property

from pipelines.cluster_manifests import CONTROLLER
from serving.cluster import DEPLOYMENTS, PODS, Cluster, ClusterError
from serving.pod_parts import Object

_CONTAINER = "controller"


class OwnPod:
    """The pod that this process runs in; every method raises `ClusterError`."""

    def __init__(self, cluster: Cluster, name: str = "") -> None:
        """`name`: the host's without, which is the pod's."""
        self._cluster = cluster
        self._name = name or socket.gethostname()

    def image(self) -> str:
        """With its digest: that of the manifest, else the one that the node found behind the manifest's tag."""
        asked, status = self._container("spec", "containers"), self._container("status", "containerStatuses")
        named = str(asked.get("image", ""))
        found = str(status.get("imageID", "")).rpartition("://")[2]
        return found if "@sha256:" not in named and "@sha256:" in found else named

    def owner(self) -> Object | None:
        """The controller's Deployment; None where it has another name."""
        found = self._cluster.get(DEPLOYMENTS, CONTROLLER)
        return None if found is None else {**found, "apiVersion": "apps/v1", "kind": "Deployment"}

    def _container(self, part: str, kind: str) -> Object:
        told = self._pod.get(part, {}).get(kind) or ()
        return next((one for one in told if one["name"] == _CONTAINER), told[0] if told else {})

    @cached_property
    def _pod(self) -> Object:
        found = self._cluster.get(PODS, self._name)
        if found is None:
            raise ClusterError(f"the controller's own pod {self._name} is not to be found", retryable=False)
        return found
