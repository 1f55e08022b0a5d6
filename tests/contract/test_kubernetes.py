"""What only a cluster can show: how pods are confined, what keeps them from running, and that nothing is left."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from kubernetes.client import (
    AuthenticationV1TokenRequest,
    Configuration,
    V1ObjectMeta,
    V1ResourceQuota,
    V1ResourceQuotaSpec,
    V1ServiceAccount,
    V1TokenRequestSpec,
)

from registry_hooks.model_version import ModelVersion
from serving.cluster import DEPLOYMENTS, PODS, Cluster, ClusterError, Kind
from serving.cluster_view import View
from serving.engine_errors import EngineError
from serving.kubernetes import KubernetesTarget
from serving.kubernetes_objects import deployment, name_of, service
from serving.pod_parts import Object
from serving.revision import Revision, RevisionSettings, RevisionState, RevisionStatus
from serving.target import TargetError
from tests.fixtures.cluster import LONG, ClusterInstallation
from tests.fixtures.gateway import until

pytestmark = LONG
SECONDS = 180.0
OURS = (
    DEPLOYMENTS,
    PODS,
    Kind("apps/v1", "replicasets"),
    Kind("v1", "services"),
    Kind("policy/v1beta1", "poddisruptionbudgets"),
)


@pytest.fixture
def there(cluster_installation: ClusterInstallation) -> ClusterInstallation:
    return cluster_installation


@pytest.fixture
def target(there: ClusterInstallation) -> Iterator[KubernetesTarget]:
    target = there.target()
    yield target
    stop_all(target)


def stop_all(target: KubernetesTarget) -> None:
    for revision in target.status():
        target.stop(revision)
    until(lambda: not target.status(), SECONDS)


def revision_of(there: ClusterInstallation, model: str = "churn", version: int = 1, **settings: Any) -> Revision:
    settings = {"drain_seconds": 2.0, **settings}
    return Revision(ModelVersion(model, version), there.image("churn"), RevisionSettings(**settings))


def in_state(target: KubernetesTarget, revision: Revision, state: RevisionState) -> RevisionStatus:
    until(lambda: target.status()[revision.id].state is state, SECONDS)
    return target.status()[revision.id]


def ready(target: KubernetesTarget, revision: Revision) -> RevisionStatus:
    target.start(revision)
    return in_state(target, revision, RevisionState.READY)


def says(target: KubernetesTarget, revision: Revision, *words: str) -> RevisionStatus:
    """The status, once its reason has these words."""
    until(lambda: all(word in target.status()[revision.id].reason for word in words), SECONDS)
    return target.status()[revision.id]


def reported(target: KubernetesTarget, revision: Revision) -> bool:
    return revision.id in target.status()


def counted(there: ClusterInstallation) -> Mapping[str, int]:
    """How many objects of ours there are of each kind."""
    served = [kind for kind in OURS if "/" not in kind.api or there.cluster.serves(kind.api)]
    return {kind.plural: len(there.cluster.list(kind, labelSelector=there.settings.selector)[0]) for kind in served}


def test_a_pod_may_do_nothing_but_serve_and_is_reached_by_its_name(
    there: ClusterInstallation, target: KubernetesTarget
) -> None:
    revision = revision_of(there, "Übung 3d", memory_mb=1024, cpus=0.25)
    (address,) = ready(target, revision).addresses
    (pod,) = there.pods(revision)
    assert pod["status"]["qosClass"] == "Guaranteed"
    assert not any("secret" in volume for volume in pod["spec"]["volumes"])
    inside = there.run(
        revision,
        "import os, time, urllib.error, urllib.request as r\n"
        "print('user', os.getuid(), os.getgid())\n"
        "print('capable', [l.split()[1] for l in open('/proc/self/status') if l.startswith('CapEff')])\n"
        "print('writes', [p for p in ('/', '/opt/model', '/tmp') if not os.system(f'touch {p}/x 2>/dev/null')])\n"
        "print('token', os.path.exists('/var/run/secrets/kubernetes.io'))\n"
        "for left in range(30, -1, -1):\n"  # a name is known to everybody a moment after it is given
        "    try:\n"
        f"        print('ready', r.urlopen('http://{address}/v2/health/ready').status)\n"
        "        break\n"
        "    except urllib.error.URLError:\n"
        "        if not left: raise\n"
        "        time.sleep(1)\n",
    )
    assert inside.split("\n")[:5] == [
        "user 65532 65532",
        "capable ['0000000000000000']",
        "writes ['/tmp']",
        "token False",
        "ready 200",
    ]


def test_want_of_memory_is_said_as_such_and_counted_once_it_is_started_again(
    there: ClusterInstallation, target: KubernetesTarget
) -> None:
    revision = revision_of(there, memory_mb=40)
    target.start(revision)
    status = in_state(target, revision, RevisionState.FAILED)
    assert "memory (the limit is 40 MiB)" in status.reason
    assert status.restarts == 0
    target.start(revision)
    again = target.status()[revision.id]
    assert again.restarts >= 1
    assert "40 MiB" in again.reason


def test_one_of_two_replicas_that_dies_is_told_and_the_other_goes_on(
    there: ClusterInstallation, target: KubernetesTarget
) -> None:
    revision = revision_of(there, replicas=2)
    ready(target, revision)
    assert counted(there)["poddisruptionbudgets"] == 1
    there.end(revision)
    status = says(target, revision, "of 2 replicas", "ended with status 0")
    assert status.ready
    status = says(target, revision, "1 of 2 replicas died and answer again")
    assert (status.state, status.restarts) == (RevisionState.READY, 1)


def test_once_it_has_run_well_for_a_while_the_cluster_starts_it_again_without_a_word(
    there: ClusterInstallation,
) -> None:
    target = there.target(settled_seconds=0.0)
    revision = revision_of(there, version=2)
    try:
        ready(target, revision)
        there.end(revision)
        until(lambda: target.status()[revision.id].restarts == 1, SECONDS)
        assert in_state(target, revision, RevisionState.READY).reason == ""
    finally:
        stop_all(target)


def test_a_stop_leaves_nothing_and_every_controller_sees_it(
    there: ClusterInstallation, target: KubernetesTarget
) -> None:
    before = counted(there)
    revision = revision_of(there, version=3, replicas=2)
    ready(target, revision)
    assert all(count > before[kind] for kind, count in counted(there).items())
    target.stop(revision.id)
    second = there.another_target()
    assert second.status()[revision.id].state is RevisionState.STOPPING
    with pytest.raises(TargetError, match="still stopping"):
        second.start(revision)
    until(lambda: revision.id not in target.status(), SECONDS)
    until(lambda: counted(there) == before, SECONDS)
    assert target.logs(revision.id)


def test_it_answers_for_a_moment_after_it_was_stopped(there: ClusterInstallation, target: KubernetesTarget) -> None:
    revision = revision_of(there, version=4)
    ready(target, revision)
    (pod,) = there.pods(revision)
    target.stop(revision.id)
    until(lambda: there.pods(revision)[0]["metadata"].get("deletionTimestamp"), SECONDS)
    asked = f"import urllib.request as r; print(r.urlopen('http://{pod['status']['podIP']}:8080/ping').status)"
    assert there.run(revision, asked).strip() == "200"
    assert there.pods(revision)[0]["metadata"]["deletionGracePeriodSeconds"] >= 7


def test_what_was_half_started_is_seen_finished_and_removed(
    there: ClusterInstallation, target: KubernetesTarget
) -> None:
    one, other = revision_of(there, version=5), revision_of(there, version=6)
    for revision in (one, other):
        there.cluster.apply(deployment(revision, there.settings, paused=True))
        until(partial(reported, target, revision), SECONDS)
        assert target.status()[revision.id].state is RevisionState.FAILED
    ready(target, one)
    target.stop(other.id)
    until(lambda: other.id not in target.status(), SECONDS)


def test_applying_the_same_again_changes_nothing(there: ClusterInstallation, target: KubernetesTarget) -> None:
    revision = revision_of(there, version=7)
    ready(target, revision)
    before = there.cluster.get(DEPLOYMENTS, name_of(revision.id))
    assert before is not None
    assert there.cluster.get(Kind(there.cluster.budgets(), "poddisruptionbudgets"), name_of(revision.id)) is None
    after = there.cluster.apply(deployment(revision, there.settings))
    assert after["metadata"]["generation"] == before["metadata"]["generation"]
    first = there.cluster.apply(service(revision, there.settings, before))
    second = there.cluster.apply(service(revision, there.settings, before))
    assert first["spec"] == second["spec"]


def test_a_busy_revision_grows_and_takes_its_autoscaler_with_it(
    there: ClusterInstallation, target: KubernetesTarget
) -> None:
    revision = revision_of(there, version=12, cpus=0.5, max_replicas=2, busy_percent=10)
    ready(target, revision)
    scalers = Kind("autoscaling/v1", "horizontalpodautoscalers")
    made = there.cluster.get(scalers, name_of(revision.id))
    assert made is not None
    assert (made["spec"]["minReplicas"], made["spec"]["maxReplicas"]) == (1, 2)
    busy = "import time; end = time.monotonic() + 45\nwhile time.monotonic() < end: pass"
    working = threading.Thread(target=there.run, args=(revision, busy))
    working.start()
    until(lambda: len([pod for pod in there.pods(revision) if is_ready(pod)]) == 2, SECONDS)
    assert target.status()[revision.id].ready
    working.join()
    target.stop(revision.id)
    until(lambda: revision.id not in target.status(), SECONDS)
    until(lambda: there.cluster.get(scalers, name_of(revision.id)) is None, SECONDS)


def is_ready(pod: Object) -> bool:
    return any(one["type"] == "Ready" and one["status"] == "True" for one in pod["status"].get("conditions", ()))


def test_what_no_node_takes_says_so(there: ClusterInstallation) -> None:
    chosen = replace(there.settings, node_selector={"somewhere": "else"})
    target = KubernetesTarget(there.home, there.cluster, there.view, chosen, there.docker.engine.in_registry)
    revision = revision_of(there, version=8)
    target.start(revision)
    status = says(target, revision, "no node takes it", "0/")
    assert status.state is RevisionState.STARTING
    stop_all(target)


def test_an_image_that_the_cluster_cannot_pull_says_so(there: ClusterInstallation) -> None:
    target = KubernetesTarget(there.home, there.cluster, there.view, there.settings, lambda _: True)
    image = f"{there.image('churn').partition('@')[0]}@sha256:{'0' * 64}"
    revision = replace(revision_of(there, version=9), image=image)
    target.start(revision)
    status = in_state(target, revision, RevisionState.FAILED)
    assert "ImagePullBackOff" in status.reason
    assert "manifest" in status.reason
    stop_all(target)


def test_a_registry_that_does_not_answer_is_told_and_asked_again(there: ClusterInstallation) -> None:
    def silent(image: str) -> bool:
        raise EngineError(f"{image}: nobody answers", retryable=True)

    target = KubernetesTarget(there.home, there.cluster, there.view, there.settings, silent)
    with pytest.raises(TargetError, match="nobody answers") as refused:
        target.start(revision_of(there, version=13))
    assert refused.value.retryable


def test_a_quota_that_is_used_up_says_so(there: ClusterInstallation, target: KubernetesTarget) -> None:
    core, namespace = there.core, there.settings.namespace
    quota = V1ResourceQuota(metadata=V1ObjectMeta(name="none"), spec=V1ResourceQuotaSpec(hard={"pods": "0"}))
    core.create_namespaced_resource_quota(namespace, quota)
    until(lambda: core.read_namespaced_resource_quota("none", namespace).to_dict()["status"]["used"], SECONDS)
    try:
        revision = revision_of(there, version=10)
        target.start(revision)
        assert says(target, revision, "exceeded quota").state is RevisionState.FAILED
    finally:
        core.delete_namespaced_resource_quota("none", namespace)


def test_installations_do_not_touch_each_other(there: ClusterInstallation, target: KubernetesTarget) -> None:
    settings = replace(there.settings, installation="another")
    view = View(there.cluster, settings.selector)
    other = KubernetesTarget(there.home, there.cluster, view, settings, there.docker.engine.in_registry)
    revision = revision_of(there, version=11)
    ready(target, revision)
    assert revision.id not in other.status()
    with pytest.raises(TargetError, match="is not of installation another") as refused:
        other.start(revision)
    assert not refused.value.retryable
    other.stop(revision.id)
    assert target.status()[revision.id].ready
    view.close()


def test_a_right_that_is_missing_and_a_field_that_is_wrong_are_named(there: ClusterInstallation) -> None:
    powerless = Cluster(account(there, "powerless"), there.settings.namespace)
    target = KubernetesTarget(there.home, powerless, there.view, there.settings, there.docker.engine.in_registry)
    with pytest.raises(TargetError, match=r'cannot get resource "deployments" in API group "apps"') as refused:
        target.start(revision_of(there, version=12))
    assert not refused.value.retryable
    wrong = deployment(revision_of(there, version=12, environment=(("a b", "1"),)), there.settings)
    with pytest.raises(ClusterError, match=r"spec.template.spec.containers\[0\].env\[\d+\].name") as invalid:
        there.cluster.apply(wrong)
    assert (invalid.value.status, invalid.value.retryable) == (422, False)
    powerless.close()


def account(there: ClusterInstallation, name: str) -> Configuration:
    """The way to the cluster for a service account that may do nothing."""
    core, namespace = there.core, there.settings.namespace
    core.create_namespaced_service_account(namespace, V1ServiceAccount(metadata=V1ObjectMeta(name=name)))
    wanted = AuthenticationV1TokenRequest(spec=V1TokenRequestSpec(audiences=[]))
    token = core.create_namespaced_service_account_token(name, namespace, wanted).to_dict()["status"]["token"]
    made = Configuration(host=there.connection.host)
    made.ssl_ca_cert, made.api_key = there.connection.ssl_ca_cert, {"authorization": f"Bearer {token}"}
    return made
