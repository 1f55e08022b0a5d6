"""A gateway of several pods: what it takes to change a weight, and what it does not take with it when a pod goes."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from examples.load import load
from monitoring.access_log import AccessLogBlocks
from monitoring.remote_log import RemoteLogs
from serving.cluster import CONFIG_MAPS, DEPLOYMENTS, PODS, SECRETS, SERVICES
from serving.cluster_gateway import COMPONENT, takes_requests
from serving.kubernetes import KubernetesTarget
from serving.pod_parts import Object
from serving.revision import Revision, Weights
from serving.router import Route, RouterError
from tests.contract.test_access_log import FOLDING, READING, totals
from tests.contract.test_kubernetes import SECONDS, ready, revision_of, stop_all
from tests.fixtures.cluster import LONG, ClusterFront, ClusterInstallation
from tests.fixtures.gateway import until

pytestmark = LONG
PAYLOAD = b'{"dataframe_split": {"columns": ["tenure", "charges"], "data": [[3.0, 80.0]]}}'
JSON = {"content-type": "application/json"}
PATH = "/models/churn/invocations"


@pytest.fixture(scope="module")
def target(cluster_installation: ClusterInstallation) -> Iterator[KubernetesTarget]:
    target = cluster_installation.target()
    yield target
    stop_all(target)


@pytest.fixture(scope="module")
def revisions(cluster_installation: ClusterInstallation, target: KubernetesTarget) -> tuple[Revision, Revision]:
    """Two that are ready."""
    one, two = (revision_of(cluster_installation, version=version) for version in (1, 2))
    for each in (one, two):
        ready(target, each)
    return one, two


@pytest.fixture
def front(cluster_front: ClusterFront) -> Iterator[ClusterFront]:
    yield cluster_front
    cluster_front.router().remove("churn")


def split(target: KubernetesTarget, revisions: tuple[Revision, Revision], weight: int) -> Route:
    status = target.status()
    ends = {each.id: status[each.id].addresses for each in revisions}
    return Route("churn", Weights(dict(zip(ends, (100 - weight, weight), strict=True))), ends, "ro/0", revisions[1].id)


def test_requests_are_shared_and_every_replica_tells_of_its_own(
    front: ClusterFront, target: KubernetesTarget, revisions: tuple[Revision, Revision], tmp_path: Path
) -> None:
    blocks = AccessLogBlocks(RemoteLogs(3, front.pods.asks).logs, tmp_path, folding=FOLDING, reading=READING)
    blocks.pump()
    wanted = split(target, revisions, 50)
    front.router().set_weights(wanted)
    assert front.router().get_weights()["churn"] == wanted
    result = asyncio.run(load(front.gateway.url + PATH, PAYLOAD, rate=40, seconds=5))
    assert (result.ok, result.failed) == (200, {})

    def seen() -> list[int]:
        blocks.pump()
        return [arm.requests for arm in totals(blocks, "ro")]

    until(lambda: sum(seen()) == 200, 30.0)
    assert all(60 < count < 140 for count in seen()), seen()


def test_no_request_is_lost_while_a_pod_is_taken_away(
    front: ClusterFront,
    cluster_installation: ClusterInstallation,
    target: KubernetesTarget,
    revisions: tuple[Revision, Revision],
) -> None:
    front.router().set_weights(split(target, revisions, 20))
    pods, cluster = front.pods.all(), cluster_installation.cluster
    leaving = pods[0]["metadata"]
    taking = threading.Timer(2.0, lambda: cluster.delete(PODS, leaving["name"], leaving["uid"]))
    taking.start()
    result = asyncio.run(load(front.gateway.url + PATH, PAYLOAD, rate=50, seconds=20))
    taking.join()
    assert (result.ok, result.failed) == (1000, {})
    until(lambda: [takes_requests(pod) for pod in front.pods.all()] == [True, True], SECONDS)
    assert leaving["name"] not in front.pods.asks()
    assert front.router().get_weights()["churn"] == split(target, revisions, 20)


def test_of_a_pod_that_is_killed_without_a_word_only_what_it_was_answering_is_lost(
    front: ClusterFront, cluster_installation: ClusterInstallation, target: KubernetesTarget
) -> None:
    """The other replica answers the rest; requests leave at a bounded rate, so few are with each at a time."""
    there, twins = cluster_installation, revision_of(cluster_installation, "twins", replicas=2)
    ready(target, twins)
    address = target.status()[twins.id].addresses
    front.router().set_weights(Route("twins", Weights.all_to(twins), {twins.id: address}))
    until(lambda: "twins" in front.router().get_weights(), 30.0)
    url = front.gateway.url + PATH.replace("churn", "twins")
    asyncio.run(load(url, PAYLOAD, rate=20, seconds=2))
    killing = threading.Timer(2.0, lambda: kill(there, there.pods(twins)[0]))
    killing.start()
    result = asyncio.run(load(url, PAYLOAD, rate=20, seconds=15))
    killing.join()
    assert result.ok + sum(result.failed.values()) == 300
    assert result.failed == {}
    until(lambda: target.status()[twins.id].ready and len(there.pods(twins)) == 2, SECONDS)
    front.router().remove("twins")


def kill(there: ClusterInstallation, pod: Object) -> None:
    """As when its node is lost: it is told nothing, and neither is anybody else before it is gone."""
    label = f"io.kubernetes.pod.name={pod['metadata']['name']}"
    api = there.docker.engine.api
    (container,) = api.containers(filters={"label": [label, "io.kubernetes.container.name=model"]})
    api.kill(container["Id"], "SIGKILL")


def test_a_revision_is_asked_at_its_address_from_outside(
    front: ClusterFront, target: KubernetesTarget, revisions: tuple[Revision, Revision]
) -> None:
    (address,) = target.status()[revisions[0].id].addresses
    with front.access.client() as client:
        answer = client.post(f"http://{address}/invocations", content=PAYLOAD, headers=JSON)
        assert (answer.status_code, len(answer.json()["predictions"])) == (200, 1)
        assert client.post(f"http://{address}/invocations", content=b"{", headers=JSON).status_code == 400
        with pytest.raises(httpx.ConnectError, match="nobody"):
            client.get(f"http://nobody.{front.cluster.namespace}.svc:8080/ping")
        with pytest.raises(httpx.UnsupportedProtocol, match="no Service of namespace"):
            client.get("http://example.org/")


def test_of_two_writers_one_is_refused(
    front: ClusterFront,
    target: KubernetesTarget,
    revisions: tuple[Revision, Revision],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    router = front.router()
    router.set_weights(split(target, revisions, 10))
    known = front.config_maps.all()
    front.cluster.change(CONFIG_MAPS, front.objects.tables, {"metadata": {"annotations": {"another": "writer"}}})
    with monkeypatch.context() as late:
        late.setattr(front.config_maps, "all", lambda: known)
        with pytest.raises(RouterError, match="modified") as refused:
            router.set_weights(split(target, revisions, 20))
    assert refused.value.retryable
    until(lambda: front.config_maps.all() != known)
    router.set_weights(split(target, revisions, 20))


def test_a_broken_table_is_named(front: ClusterFront) -> None:
    cluster = front.cluster
    broken = {"binaryData": {"routes.json.gz": "AAAA"}}
    before = cluster.get(CONFIG_MAPS, front.objects.tables)
    assert before is not None
    cluster.change(CONFIG_MAPS, front.objects.tables, broken)
    try:
        until(lambda: refused(front), 10.0)
    finally:
        cluster.change(CONFIG_MAPS, front.objects.tables, {"binaryData": before["binaryData"]})
        until(lambda: not refused(front), 10.0)


def refused(front: ClusterFront) -> bool:
    try:
        front.router().get_weights()
    except RouterError as error:
        return "tables are broken" in str(error)
    return False


def test_what_is_stopped_comes_back_with_its_routes(
    front: ClusterFront,
    cluster_installation: ClusterInstallation,
    target: KubernetesTarget,
    revisions: tuple[Revision, Revision],
) -> None:
    wanted, cluster = split(target, revisions, 30), cluster_installation.cluster
    front.router().set_weights(wanted)
    front.gateway.stop(drain_seconds=1.0)
    selector = f"{cluster_installation.settings.selector},{COMPONENT}=gateway"
    left = {kind.plural: len(cluster.list(kind, labelSelector=selector)[0]) for kind in (DEPLOYMENTS, SERVICES, PODS)}
    assert left == {"deployments": 0, "services": 0, "pods": 0}
    assert len(cluster.list(SECRETS, labelSelector=selector)[0]) == 1
    with pytest.raises(RouterError, match="no Envoy takes requests"):
        front.router().get_weights()
    front.gateway.ensure()
    until(lambda: front.router().get_weights().get("churn") == wanted, 30.0)
    assert httpx.post(front.gateway.url + PATH, content=PAYLOAD, headers=JSON).is_success
