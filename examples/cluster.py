"""Where the story plays in a cluster: a namespace of its own, and a volume for the prediction log.

The controller runs on this machine, so the volume is a folder of this machine: the cluster's node has to be this one,
as it is with k3s or kubeadm on one machine. Models' images go below the name that REPOSITORY gives.
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Mapping
from pathlib import Path

from urllib3.exceptions import HTTPError

from examples.telling import StoryError

_CLAIM = "predictions"
_NODE_PORTS = range(30100, 32700)
_GONE_SECONDS = 180.0


class DemoNamespace:
    """A namespace that is there from `make` to `remove`."""

    def __init__(self, predictions: Path) -> None:
        repository = os.environ.get("REPOSITORY")
        if not repository:
            advice = "such as 127.0.0.1:5000/demo: a registry to which Docker pushes and from which the cluster pulls"
            raise StoryError(f"TARGET=kubernetes takes REPOSITORY as well, {advice}")
        self.name = f"promote-demo-{uuid.uuid4().hex[:8]}"
        self._predictions, self._made = predictions, False
        self.settings: Mapping[str, str | int] = {
            "namespace": self.name,
            "image_repository": f"{repository}/{self.name}",
            "gateway_service": "NodePort",
            "gateway_port": random.choice(_NODE_PORTS),
            "predictions_claim": _CLAIM,
        }

    def make(self) -> None:
        """`StoryError` where the cluster does not take it."""
        from kubernetes import client, config, utils

        try:
            config.load_kube_config()
        except config.ConfigException as error:
            raise StoryError(f"KUBECONFIG does not lead to a cluster: {error}") from error
        api = client.ApiClient()
        self._predictions.mkdir(parents=True)
        self._predictions.chmod(0o777)  # pods run as nobody that this machine knows
        labels = {"pod-security.kubernetes.io/enforce": "restricted"}
        size, modes = {"storage": "1Gi"}, ["ReadWriteMany"]
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": self.name, "labels": labels}}
        volume = {
            "apiVersion": "v1",
            "kind": "PersistentVolume",
            "metadata": {"name": self.name},
            "spec": {
                "capacity": size,
                "accessModes": modes,
                "hostPath": {"path": str(self._predictions)},
                "claimRef": {"namespace": self.name, "name": _CLAIM},
                "storageClassName": "",
            },
        }
        claim = {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": _CLAIM, "namespace": self.name},
            "spec": {
                "accessModes": modes,
                "resources": {"requests": size},
                "storageClassName": "",
                "volumeName": self.name,
            },
        }
        for made in (namespace, volume, claim):
            try:
                utils.create_from_dict(api, made, namespace=self.name)
            except (utils.FailToCreateError, HTTPError) as error:
                raise StoryError(f"the cluster has not made {made['kind']} {self.name}: {error}") from error
            self._made = True

    def remove(self) -> None:
        """Where there is anything to remove; `StoryError` where it does not go."""
        from kubernetes import client

        if not self._made:
            return
        core, deadline = client.CoreV1Api(), time.monotonic() + _GONE_SECONDS
        core.delete_namespace(self.name)
        while core.list_namespace(field_selector=f"metadata.name={self.name}").items:
            if time.monotonic() > deadline:
                raise StoryError(f"namespace {self.name} is still there")
            time.sleep(1.0)
        if core.list_persistent_volume(field_selector=f"metadata.name={self.name}").items:
            core.delete_persistent_volume(self.name)
