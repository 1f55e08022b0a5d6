"""Candidates that a cluster cannot run, or not for long: each rollout ends in the cluster's words, with nothing left.

One live version stands beside all of them and goes on untouched.
"""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import pytest
from kubernetes.client import V1ObjectMeta, V1ResourceQuota, V1ResourceQuotaSpec

from pipelines.rollout import Phase
from serving.kubernetes import KubernetesTarget
from serving.revision import Revision
from tests.contract.cluster_rollouts import SECONDS, Rollouts, everything, steady
from tests.fixtures.cluster import LONG, ClusterInstallation
from tests.fixtures.gateway import until

pytestmark = LONG
BROKEN = (("MOOD", "broken"),)


@dataclass(frozen=True)
class Beside:
    """A live version, and all that there was of it before a candidate came."""

    cluster: ClusterInstallation
    rollouts: Rollouts
    before: Mapping[str, frozenset[str]]

    def taken_back(self, version: int) -> str:
        """Why, once nothing is left of it and the live version is as it was."""
        reason = self.rollouts.ends(version, Phase.FAILED)
        self.rollouts.until(lambda: self.there() == self.before)
        status = self.rollouts.target.status()[self.rollouts.stable.id]
        assert (status.ready, status.restarts, status.reason) == (True, 0, "")
        return reason

    def there(self) -> Mapping[str, frozenset[str]]:
        return everything(self.cluster.cluster, self.cluster.settings.selector)


@pytest.fixture(scope="module")
def live(cluster_installation: ClusterInstallation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    there = cluster_installation

    def target() -> KubernetesTarget:
        """For which every image is in the registry, so that the cluster has to find out."""
        return KubernetesTarget(there.home, there.cluster, there.view, there.settings, lambda _: True)

    rollouts = Rollouts(tmp_path_factory.mktemp("candidates"), there.image("moody"), target)
    rollouts.goes_live()
    yield rollouts
    for revision in rollouts.target.status():
        rollouts.target.stop(revision)
    until(lambda: not rollouts.target.status(), SECONDS)


@pytest.fixture
def beside(cluster_installation: ClusterInstallation, live: Rollouts) -> Beside:
    there, live.proof = cluster_installation, True
    return Beside(there, live, steady(there.cluster, there.settings.selector))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        pytest.param(
            {"environment": BROKEN},
            ("the candidate crash-loops (3 restarts)", "ended with status 1", "this model cannot be loaded"),
            id="crash-loops",
        ),
        pytest.param(
            {"memory_mb": 40},
            ("the candidate crash-loops (3 restarts)", "want of memory (the limit is 40 MiB)"),
            id="out-of-memory",
        ),
        pytest.param(
            {"cpus": 0.01, "ready_seconds": 20.0},
            ("starting took longer than 20 s", "does not say that it is ready", "Startup probe failed"),
            id="never-ready",
        ),
        pytest.param(
            {"node_labels": (("somewhere", "else"),), "ready_seconds": 5.0},
            ("starting took longer than 5 s", "no node takes it", "0/1 nodes are available"),
            id="no-node",
        ),
    ],
)
def test_a_candidate_that_does_not_get_ready_is_taken_back_and_the_cluster_says_why(
    beside: Beside, settings: dict[str, Any], words: tuple[str, ...]
) -> None:
    reason = beside.taken_back(beside.rollouts.enters(**settings))
    assert all(word in reason for word in words), reason


def test_a_candidate_whose_image_does_not_exist(beside: Beside) -> None:
    rollouts = beside.rollouts
    image = f"{rollouts.builder.image.partition('@')[0]}@sha256:{'0' * 64}"
    rollouts.builder.others[len(rollouts.registry.models[rollouts.model].versions) + 1] = image
    reason = beside.taken_back(rollouts.enters(ready_seconds=30.0))
    assert re.search("ErrImagePull|ImagePullBackOff", reason)  # whether it tries just now, or waits to try again
    assert "manifest" in reason


def test_a_candidate_for_which_the_namespace_has_no_room_left(beside: Beside) -> None:
    core, namespace = beside.cluster.core, beside.cluster.settings.namespace
    hard = {"pods": str(len(core.list_namespaced_pod(namespace).items))}
    quota = V1ResourceQuota(metadata=V1ObjectMeta(name="full"), spec=V1ResourceQuotaSpec(hard=hard))
    core.create_namespaced_resource_quota(namespace, quota)
    until(lambda: core.read_namespaced_resource_quota("full", namespace).to_dict()["status"]["used"], SECONDS)
    try:
        reason = beside.taken_back(beside.rollouts.enters(ready_seconds=10.0))
    finally:
        core.delete_namespaced_resource_quota("full", namespace)
    assert "its pods cannot be made" in reason
    assert "exceeded quota: full" in reason


def test_a_candidate_that_dies_in_its_canary(beside: Beside) -> None:
    version = in_canary(beside.rollouts)
    beside.cluster.end(beside.rollouts.candidate(version))
    reason = beside.taken_back(version)
    assert reason.startswith("the candidate died: ended with status 0")


def test_a_candidate_that_was_ready_and_does_not_answer_any_more(beside: Beside) -> None:
    """Its server stands still: it neither answers nor ends. The rollout gets less patience than the cluster has."""
    rollouts = beside.rollouts
    version = in_canary(rollouts)
    rollout = rollouts.rollout(version)
    assert rollout is not None
    rollouts.store.save(replace(rollout, policy=replace(rollout.policy, ready_seconds=5.0)))
    os.kill(process_of(beside.cluster, rollouts.candidate(version)), signal.SIGSTOP)
    reason = beside.taken_back(version)
    assert reason.startswith("the candidate was ready and is not any more, for 5 s: does not say that it is ready")
    assert re.search("(Readiness|Liveness) probe failed", reason)


def in_canary(rollouts: Rollouts) -> int:
    """A version whose canary gets too few requests to come to an end."""
    rollouts.proof = False
    version = rollouts.enters()
    rollouts.reaches(version, Phase.PROGRESSING)
    return version


def process_of(there: ClusterInstallation, revision: Revision) -> int:
    """The server of its only pod, as this machine knows it."""
    (pod,) = there.pods(revision)
    label = f"io.kubernetes.pod.name={pod['metadata']['name']}"
    api = there.docker.engine.api
    labels = [label, "io.kubernetes.container.name=model"]
    (container,) = api.containers(filters={"label": labels})
    return int(api.inspect_container(container["Id"])["State"]["Pid"])
