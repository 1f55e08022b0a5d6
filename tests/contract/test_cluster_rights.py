"""The rights that `k8s/rights` gives are enough for the controller, and the cluster refuses everything else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from kubernetes import utils
from kubernetes.client import ApiClient, Configuration, RbacAuthorizationV1Api

from serving.cluster import CONFIG_MAPS, SECRETS, Cluster, ClusterError, Kind
from serving.cluster_access import Outside
from serving.cluster_gateway import ClusterGateway, GatewayPods
from serving.cluster_tables import ConfigMapTables
from serving.cluster_view import View, Watched
from serving.envoy_router import EnvoyRouter
from serving.kubernetes import KubernetesTarget
from serving.pod_parts import Object
from serving.revision import Weights
from serving.router import Route
from tests.contract.test_kubernetes import account, ready, revision_of, stop_all
from tests.fixtures.cluster import LONG, ClusterFront, ClusterInstallation

pytestmark = LONG
K8S = Path(__file__).parents[2] / "k8s"
NAME = "mlflow-promote"


@dataclass(frozen=True)
class Limited:
    """The cluster with the rights of one service account."""

    cluster: Cluster
    connection: Configuration


@pytest.fixture(scope="module")
def limited(cluster_installation: ClusterInstallation) -> Iterator[Limited]:
    """The cluster, as the service account of `k8s/rights` sees it, with the rights of a controller outside."""
    there = cluster_installation
    namespace, api = there.settings.namespace, ApiClient(there.connection)
    for made in yaml.safe_load_all((K8S / "rights" / "rights.yaml").read_text()):
        if made["kind"] == "ServiceAccount":
            continue
        if made["kind"] == "Role":
            made["rules"] += [patch["value"] for patch in outside_patches()]
        made["subjects"] = [{**one, "namespace": namespace} for one in made.get("subjects", ())]
        utils.create_from_dict(api, {key: value for key, value in made.items() if value}, namespace=namespace)
    shown = account(there, NAME)
    with closing(Cluster(shown, namespace)) as cluster:
        yield Limited(cluster, shown)
    rights = RbacAuthorizationV1Api(api)
    rights.delete_namespaced_role_binding(NAME, namespace)
    rights.delete_namespaced_role(NAME, namespace)


def outside_patches() -> list[Object]:
    overlay = yaml.safe_load((K8S / "overlays" / "outside" / "kustomization.yaml").read_text())
    return [patch for one in overlay["patches"] for patch in yaml.safe_load(one["patch"])]


def test_they_are_enough_to_serve_a_revision_behind_the_gateway(
    limited: Limited, cluster_front: ClusterFront, cluster_installation: ClusterInstallation
) -> None:
    there, cluster = cluster_installation, limited.cluster
    view = View(cluster, there.settings.selector)
    maps = Watched(cluster, CONFIG_MAPS, labelSelector=there.settings.selector)
    gateway = ClusterGateway(
        cluster, view, cluster_front.gateway.settings, cluster_front.objects.name, lambda: cluster_front.objects
    )
    gateway.ensure()
    target = KubernetesTarget(there.home, cluster, view, there.settings, there.docker.engine.in_registry)
    pods = GatewayPods(view, Outside(cluster), lambda: gateway.key)
    tables = ConfigMapTables(cluster, maps, cluster_front.objects.tables, pods.all)
    router = EnvoyRouter(tables, gateway.settings, pods.admins, 30.0, silent_are_gone=False)
    revision = revision_of(there, version=21, replicas=2)
    route = Route("rights", Weights({revision.id: 100}), {revision.id: ready(target, revision).addresses})
    router.set_weights(route)
    assert router.get_weights()["rights"] == route
    assert target.logs(revision.id)
    with Outside(cluster).client() as client:
        assert client.get(f"http://{route.endpoints[revision.id][0]}/ping").status_code == 200
    assert all(ask("GET", "/admin/ready")[0] == 200 for ask in pods.asks().values())
    router.remove("rights")
    stop_all(target)
    view.close()
    maps.close()


@pytest.mark.parametrize("kind", [SECRETS, Kind("v1", "persistentvolumeclaims"), Kind("apps/v1", "daemonsets")])
def test_nothing_else_is_read(limited: Limited, kind: Kind) -> None:
    with pytest.raises(ClusterError, match=f'cannot list resource "{kind.plural}"') as refused:
        limited.cluster.list(kind)
    assert (refused.value.status, refused.value.retryable) == (403, False)


def test_nothing_is_done_outside_its_namespace(limited: Limited) -> None:
    for namespace in ("default", "kube-system"):
        with pytest.raises(ClusterError) as refused:
            Cluster(limited.connection, namespace).list(CONFIG_MAPS)
        assert refused.value.status == 403
