"""Can the cluster of the settings be used? A part of `pipelines.doctor` that takes the packages for Kubernetes."""

from __future__ import annotations

from serving.cluster import Cluster, ClusterError, connect
from serving.engine_errors import EngineError
from serving.pod_parts import INSTALLATION, Object
from serving.registry_depot import depot_of

_NAME = "mlflow-promote-doctor"


def check_cluster(context: str | None, namespace: str, installation: str) -> tuple[bool, str, str]:
    """Whether it answers, the namespace is there, and the controller may write there; what was found, and advice."""
    try:
        connection = connect(context=context)
    except ClusterError as error:
        return False, str(error), "correct KUBECONFIG, or the setting kube_context"
    cluster = Cluster(connection, namespace)
    try:
        cluster.apply(_nothing(namespace, installation), dry_run=True)
    except ClusterError as error:
        return False, str(error), _advice(error, namespace)
    finally:
        cluster.close()
    return True, f"namespace {namespace} at {connection.host}", ""


def check_registry(repository: str, url: str | None) -> tuple[bool, str, str]:
    """Whether the registry answers, and lets the controller look; what was found, and advice."""
    try:
        depot_of(repository, url).image(f"{repository}/gateway:doctor")
    except EngineError as error:
        return False, str(error), "correct image_repository or registry_url, or log in to the registry"
    return True, f"{repository} answers" + (f" at {url}" if url else ""), ""


def _advice(error: ClusterError, namespace: str) -> str:
    if error.status == 404:
        return f"kubectl create namespace {namespace}, or correct the setting namespace"
    if error.status in (401, 403):
        return "log in to the cluster, or give the controller the rights in k8s/rights/rights.yaml"
    return "see that the cluster runs and is reached from here"


def _nothing(namespace: str, installation: str) -> Object:
    metadata = {"name": _NAME, "namespace": namespace, "labels": {INSTALLATION: installation}}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata}
