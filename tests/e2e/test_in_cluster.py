"""The controller in a cluster, as `mlflow-promote k8s` puts it there: nothing of ours runs on this machine.

MLflow runs in the cluster as well, from the controller's own image. The cluster's node has to be this machine: volumes
are folders of it, and pods reach the registry here by a relay.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import uuid
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from kubernetes import utils
from kubernetes.client import ApiClient, Configuration, CoreV1Api

from pipelines.cluster_install import MANIFESTS
from pipelines.cluster_manifests import CONTROLLER, PART_OF
from serving.cluster import DEPLOYMENTS, EVENTS, PODS, Cluster, Kind
from serving.pod_parts import INSTALLATION, Object
from tests.e2e.loop import PORTS, PROGRAM, Loop, answers, failed, until
from tests.fixtures.cluster import NODE_PORTS, connection, namespace, secret
from tests.fixtures.engines import engine_of
from tests.fixtures.gateway import free_port
from tests.fixtures.object_store import ObjectStore, start_object_store
from tests.fixtures.registries import open_registry
from tests.fixtures.relay import Relay

pytestmark = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.nightly, pytest.mark.timeout(1800)]

MODEL = "drifting-inside"
STORAGE = "storage"
"""The Secret with which the prediction log is reached."""
TOKEN = "a-token-of-these-tests"
BASE = "python:3.11-slim"
KINDS = [
    DEPLOYMENTS,
    PODS,
    *(Kind("v1", kind) for kind in ("services", "configmaps", "secrets", "persistentvolumeclaims", "serviceaccounts")),
    Kind("batch/v1", "jobs"),
    Kind("coordination.k8s.io/v1", "leases"),
    Kind("rbac.authorization.k8s.io/v1", "roles"),
]


@dataclass(frozen=True)
class Inside:
    """An installation in a cluster."""

    connection: Configuration
    cluster: Cluster
    home: Path
    registry_url: str
    """Of the registry of this machine, for pods."""
    ports: dict[str, int]
    store: ObjectStore
    bucket: str

    @property
    def namespace(self) -> str:
        return self.cluster.namespace

    @cached_property
    def core(self) -> CoreV1Api:
        return CoreV1Api(ApiClient(self.connection))

    @property
    def repository(self) -> str:
        return f"{open_registry()}/{self.namespace}"

    def command(self, *words: str) -> Any:
        """What `mlflow-promote k8s` says, as JSON."""
        told = {
            "PROMOTE_HOME": str(self.home),
            "PROMOTE_POLICIES": str(self.home / "policies"),
            "PROMOTE_TARGET": "kubernetes",
            "PROMOTE_NAMESPACE": self.namespace,
            "PROMOTE_INSTALLATION": self.namespace,
            "PROMOTE_IMAGE_REPOSITORY": self.repository,
            "PROMOTE_BASE_IMAGE": f"{self.repository}/python:{{python}}-slim",
            "PROMOTE_GATEWAY_SERVICE": "NodePort",
            "PROMOTE_GATEWAY_PORT": str(self.ports["gateway_port"]),
            "PROMOTE_MLFLOW_URI": "http://mlflow:5000",
            "PROMOTE_PREDICTIONS": f"s3://{self.bucket}/predictions",
            "PROMOTE_PREDICTIONS_SECRET": STORAGE,
            "PROMOTE_POLL_SECONDS": "2",
            "PROMOTE_TOKEN": TOKEN,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMOTE_", "MLFLOW_"))}
        command = [PROGRAM, "k8s", *words, "--json"]
        ended = subprocess.run(command, env=kept | told, capture_output=True, text=True, check=False, timeout=1200)
        assert ended.returncode == 0, f"{command}: {ended.stdout[-3000:]}{ended.stderr[-3000:]}"
        return json.loads(ended.stdout)

    def apply(self, made: Object) -> None:
        made["metadata"]["namespace"] = self.namespace
        self.cluster.apply(made)

    def left(self, label: str) -> dict[str, list[str]]:
        """What the cluster has with that label, by kind."""
        kinds = [*KINDS, Kind(self.cluster.budgets(), "poddisruptionbudgets")]
        found = {kind.plural: self.cluster.list(kind, labelSelector=label)[0] for kind in kinds}
        return {kind: [one["metadata"]["name"] for one in objects] for kind, objects in found.items() if objects}


def publish(cluster: Cluster, name: str, port: int, node_port: int) -> None:
    """Make a Service reachable from this machine."""
    ports = [{"name": "http", "port": port, "targetPort": "http", "nodePort": node_port, "protocol": "TCP"}]
    cluster.change(Kind("v1", "services"), name, {"spec": {"type": "NodePort", "ports": ports}})


@contextmanager
def volume(core: CoreV1Api, space: str, claim: str, folder: Path) -> Iterator[None]:
    """A folder of this machine for a claim, as a cluster without storage of its own has it."""
    folder.mkdir(parents=True)
    folder.chmod(0o777)
    name = f"{space}-{claim}"
    spec = {
        "capacity": {"storage": "20Gi"},
        "accessModes": ["ReadWriteOnce", "ReadWriteMany"],
        "hostPath": {"path": str(folder)},
        "claimRef": {"namespace": space, "name": claim},
    }
    made = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}
    utils.create_from_dict(core.api_client, made)
    yield
    core.delete_persistent_volume(name)


@pytest.fixture
def inside(tmp_path: Path) -> Iterator[Inside]:
    where, registry = connection(), open_registry()
    engine = engine_of("docker", f"inside-{uuid.uuid4().hex[:8]}")
    core = CoreV1Api(ApiClient(where))
    node: Any = core.list_node().items[0]
    near = (next(one.address for one in node.status.addresses if one.type == "InternalIP"), free_port())
    host, _, port = registry.partition(":")
    relay = Relay(near, (host, int(port)))
    ports = dict(zip(PORTS, random.sample(NODE_PORTS, len(PORTS)), strict=True))
    tmp_path.chmod(0o755)
    with (
        namespace(where) as space,
        closing(Cluster(where, space)) as cluster,
        volume(core, space, "mlflow-promote-home", tmp_path / "volume" / "home"),
        volume(core, space, "mlflow", tmp_path / "volume" / "mlflow"),
        start_object_store(near[0]) as store,
    ):
        url = f"http://{near[0]}:{near[1]}"
        there = Inside(where, cluster, tmp_path / "person", url, ports, store, store.bucket())
        cluster.apply(secret(space, STORAGE, store.environment))
        there.home.mkdir()
        engine.api.tag(BASE, f"{there.repository}/python", "3.11-slim")
        engine.push(f"{there.repository}/python:3.11-slim")
        engine.remove_image(f"{there.repository}/python:3.11-slim")
        engine.close()
        yield there
    relay.cut()


def with_mlflow(there: Inside, image: str) -> None:
    for made in yaml.safe_load_all((MANIFESTS / "overlays" / "trial" / "mlflow.yaml").read_text()):
        if made["kind"] == "Deployment":
            made["spec"]["template"]["spec"]["containers"][0]["image"] = image
        there.apply(made)
    publish(there.cluster, "mlflow", 5000, there.ports["mlflow_port"])


def controllers(there: Inside) -> list[str]:
    found, _ = there.cluster.list(PODS, labelSelector="app.kubernetes.io/component=controller")
    return [one["metadata"]["name"] for one in found]


def shown(there: Inside) -> dict[str, tuple[str, str]]:
    """Phase and weight of each version, as `kubectl get deployments -L` shows them."""
    found, _ = there.cluster.list(DEPLOYMENTS, labelSelector="app.kubernetes.io/component=model-server")
    labels = [one["metadata"]["labels"] for one in found]
    return {
        one["app.kubernetes.io/version"]: (one.get("mlflow-promote/phase", ""), one.get("mlflow-promote/weight", ""))
        for one in labels
    }


def drift(person: Loop) -> str:
    """What the last check found; empty before the first one."""
    told = httpx.get(f"{person.api_url}/models/{MODEL}/drift", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=30)
    if told.status_code == 404:
        return ""
    told.raise_for_status()
    return str(told.json()["data"]["state"])


def test_a_team_with_nothing_but_a_cluster(inside: Inside) -> None:
    there = inside
    person = Loop(there.home, ports=there.ports)
    person.prepare()
    # given the controller's image in the registry, made without an engine
    image = there.command("image")["image"]
    # and MLflow and the controller in the cluster
    with_mlflow(there, image)
    told = there.command("install", "--image", image, "--registry-url", there.registry_url)
    assert told["namespace"] == there.namespace
    publish(there.cluster, CONTROLLER, 8400, there.ports["api_port"])
    until(lambda: answers(f"{person.mlflow_url}/health"), 240, "MLflow answers")
    # when a person moves a version to Production
    first = person.register(MODEL)
    person.transition(MODEL, first, "Production")
    # then it is built in the cluster, and goes live
    person.await_state(MODEL, first, "succeeded", seconds=900)
    until(lambda: person.answers(MODEL), 60, "the gateway answers")
    assert person.served(MODEL) == str(first)
    until(lambda: shown(there) == {str(first): ("stable", "100")}, 30, "the labels say so")

    # when the next version follows, and the controller is lost in the middle of its canary
    second = person.register(MODEL)
    with person.traffic(MODEL) as results:
        person.transition(MODEL, second, "Production")
        person.await_state(MODEL, second, "progressing", seconds=600)
        until(lambda: shown(there).get(str(second), ("",))[0] == "progressing", 30, "the label says so")
        (lost,) = controllers(there)
        there.core.delete_namespaced_pod(lost, there.namespace, grace_period_seconds=0)
        person.await_state(MODEL, second, "succeeded", seconds=600)
    # then no request is lost, another controller has gone on, and the cluster shows all of it
    assert failed(results) == {}
    assert person.served(MODEL) == str(second)
    assert lost not in controllers(there)
    until(lambda: shown(there)[str(second)] == ("stable", "100"), 30, "the labels follow")
    until(lambda: shown(there)[str(first)] == ("warm", "0"), 30, "the labels follow there too")
    events, _ = there.cluster.list(EVENTS, fieldSelector="involvedObject.kind=Deployment")
    ours = [one["message"] for one in events if one.get("source", {}).get("component") == "mlflow-promote"]
    assert any("progressing" in message for message in ours), ours
    # and the schedule has drift looked for, by a Job that reads what the model servers wrote to the bucket
    assert there.store.keys(there.bucket)
    until(lambda: drift(person) == "stable", 240, "a check has come to its end")
    events, _ = there.cluster.list(EVENTS, fieldSelector="involvedObject.kind=Job")
    assert {one["reason"] for one in events} >= {"SuccessfulCreate", "Completed"}, events
    # and installing it again changes nothing of the secrets
    before = there.core.read_namespaced_secret("mlflow-promote", there.namespace).data
    there.command("install", "--image", image, "--registry-url", there.registry_url)
    assert there.core.read_namespaced_secret("mlflow-promote", there.namespace).data == before

    # when it is taken out
    there.command("uninstall", "--purge")
    # then nothing of it is left
    own = ",".join(f"{key}={value}" for key, value in PART_OF.items())
    until(lambda: there.left(own) | there.left(f"{INSTALLATION}={there.namespace}") == {}, 120, "all is gone")
