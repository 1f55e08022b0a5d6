"""What people do to a revision's Deployment by `kubectl` is put right, or told where it is not ours to undo."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from kubernetes.client import ApiClient, AppsV1Api

from pipelines.rollout import Phase
from serving.cluster import DEPLOYMENTS, PODS
from serving.kubernetes_objects import NAME, name_of
from serving.pod_parts import INSTALLATION, Object
from serving.revision import Revision
from tests.contract.cluster_rollouts import SECONDS, Rollouts, everything, steady
from tests.fixtures.cluster import CLUSTER, ClusterInstallation
from tests.fixtures.gateway import until

pytestmark = [*CLUSTER.marks, pytest.mark.timeout(900)]


class People:
    """What they do in a namespace, each with a name under which the cluster remembers their fields."""

    def __init__(self, there: ClusterInstallation) -> None:
        self._there = there
        self._apps = AppsV1Api(ApiClient(there.connection))

    def edit(self, revision: Revision, changes: Object) -> None:
        name, namespace = name_of(revision.id), self._there.settings.namespace
        self._apps.patch_namespaced_deployment(name, namespace, changes, field_manager="kubectl-edit")

    def delete(self, revision: Revision) -> None:
        """As `kubectl delete` does: what it owns goes later."""
        name, namespace = name_of(revision.id), self._there.settings.namespace
        self._apps.delete_namespaced_deployment(name, namespace, propagation_policy="Background")


@pytest.fixture
def people(cluster_installation: ClusterInstallation) -> People:
    return People(cluster_installation)


@pytest.fixture(scope="module")
def rollouts(cluster_installation: ClusterInstallation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rollouts]:
    """With a live version."""
    there = cluster_installation
    rollouts = Rollouts(tmp_path_factory.mktemp("people"), there.image("moody"), there.target)
    rollouts.goes_live()
    steady(there.cluster, there.settings.selector)
    yield rollouts
    for revision in rollouts.target.status():
        rollouts.target.stop(revision)
    until(lambda: not rollouts.target.status(), SECONDS)


def deployment_of(there: ClusterInstallation, revision: Revision) -> Object:
    return there.cluster.get(DEPLOYMENTS, name_of(revision.id)) or {}


def well(rollouts: Rollouts, revision: Revision) -> bool:
    status = rollouts.target.status().get(revision.id)
    return status is not None and status.ready and not status.altered


def counted(there: ClusterInstallation) -> dict[str, int]:
    return {kind: len(names) for kind, names in everything(there.cluster, there.settings.selector).items()}


def told(rollouts: Rollouts) -> list[str]:
    return [f"{alert.title}: {alert.text}" for alert in rollouts.alerts()]


@pytest.mark.nightly
def test_a_live_revision_that_was_scaled_to_nothing_is_scaled_back_and_somebody_is_told(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People
) -> None:
    stable, before = rollouts.stable, counted(cluster_installation)
    people.edit(stable, {"spec": {"replicas": 0}})
    until(lambda: rollouts.target.status()[stable.id].altered, SECONDS)
    rollouts.until(lambda: well(rollouts, stable))
    assert deployment_of(cluster_installation, stable)["spec"]["replicas"] == 1
    assert any("changed by somebody else: it was scaled to 0 replicas" in one for one in told(rollouts)), told(rollouts)
    rollouts.until(lambda: counted(cluster_installation) == before)


@pytest.mark.nightly
def test_another_image_is_taken_out_again_before_it_answers_anybody(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People
) -> None:
    there, stable = cluster_installation, rollouts.stable
    rollouts.until(lambda: well(rollouts, stable))
    (serving,) = there.pods(stable)
    image = f"{stable.image.partition('@')[0]}@sha256:{'0' * 64}"
    people.edit(stable, {"spec": {"template": {"spec": {"containers": [{"name": "model", "image": image}]}}}})
    until(lambda: rollouts.target.status()[stable.id].altered, SECONDS)
    rollouts.until(lambda: well(rollouts, stable))
    rollouts.until(lambda: len(there.pods(stable)) == 1)
    (kept,) = there.pods(stable)
    assert kept["metadata"]["uid"] == serving["metadata"]["uid"]
    (container,) = deployment_of(there, stable)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == stable.image
    assert any(f"its image was changed to {image}" in one for one in told(rollouts)), told(rollouts)


@pytest.mark.parametrize("label", [INSTALLATION, NAME])
def test_a_label_that_was_taken_off_is_put_back_on(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People, label: str
) -> None:
    stable, before = rollouts.stable, counted(cluster_installation)
    people.edit(stable, {"metadata": {"labels": {label: None}}})
    until(lambda: stable.id not in rollouts.target.status(), SECONDS)
    rollouts.until(lambda: well(rollouts, stable))
    assert counted(cluster_installation) == before


def test_what_was_given_to_another_installation_is_left_there_and_said(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People, caplog: pytest.LogCaptureFixture
) -> None:
    stable = rollouts.stable
    people.edit(stable, {"metadata": {"labels": {INSTALLATION: "somebody-else"}}})
    until(lambda: stable.id not in rollouts.target.status(), SECONDS)
    with caplog.at_level(logging.WARNING):
        rollouts.until(lambda: "is not of installation" in caplog.text)
    labels = deployment_of(cluster_installation, stable)["metadata"]["labels"]
    assert labels[INSTALLATION] == "somebody-else"
    people.edit(stable, {"metadata": {"labels": {INSTALLATION: cluster_installation.settings.installation}}})
    rollouts.until(lambda: well(rollouts, stable))


def test_what_people_add_of_their_own_stays(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People
) -> None:
    stable = rollouts.stable
    people.edit(stable, {"metadata": {"labels": {"team": "ada"}, "annotations": {"why": "because"}}})
    until(lambda: deployment_of(cluster_installation, stable)["metadata"]["labels"].get("team"), SECONDS)
    for _ in range(5):
        rollouts.round()
    metadata = deployment_of(cluster_installation, stable)["metadata"]
    assert (metadata["labels"]["team"], metadata["annotations"]["why"]) == ("ada", "because")
    assert not rollouts.target.status()[stable.id].altered


@pytest.mark.nightly
def test_a_live_revision_that_was_deleted_comes_back(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People
) -> None:
    there, stable, before = cluster_installation, rollouts.stable, counted(cluster_installation)
    uid = deployment_of(there, stable)["metadata"]["uid"]
    people.delete(stable)
    rollouts.until(lambda: (made := deployment_of(there, stable)) and made["metadata"]["uid"] != uid)
    rollouts.until(lambda: well(rollouts, stable))
    rollouts.until(lambda: counted(there) == before)
    assert [pod["metadata"]["labels"][NAME] for pod in there.pods(stable)] == [name_of(stable.id)]


@pytest.mark.nightly
def test_a_candidate_that_was_deleted_in_its_canary_ends_the_rollout(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People
) -> None:
    there, stable = cluster_installation, rollouts.stable
    before = steady(there.cluster, there.settings.selector)
    rollouts.proof = False
    version = rollouts.enters()
    rollouts.reaches(version, Phase.PROGRESSING)
    people.delete(rollouts.candidate(version))
    assert rollouts.ends(version, Phase.FAILED) == "the candidate is gone from its target"
    rollouts.until(lambda: everything(there.cluster, there.settings.selector) == before)
    assert well(rollouts, stable)


@pytest.mark.nightly
def test_a_candidate_that_was_scaled_to_nothing_in_its_canary_is_scaled_back_and_goes_live(
    cluster_installation: ClusterInstallation, rollouts: Rollouts, people: People
) -> None:
    there = cluster_installation
    before = counted(there)
    rollouts.proof = False
    version = rollouts.enters()
    rollouts.reaches(version, Phase.PROGRESSING)
    candidate = rollouts.candidate(version)
    people.edit(candidate, {"spec": {"replicas": 0}})
    until(lambda: rollouts.target.status()[candidate.id].altered, SECONDS)
    rollouts.until(lambda: well(rollouts, candidate))
    rollouts.proof = True
    rollouts.ends(version, Phase.SUCCEEDED)
    rollouts.until(lambda: counted(there) == before)
    pods, _ = there.cluster.list(PODS, labelSelector=f"{there.settings.selector},{NAME}")
    assert [pod["metadata"]["labels"][NAME] for pod in pods] == [name_of(candidate.id)]
