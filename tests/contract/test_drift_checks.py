"""Where drift checks are carried out, over a prediction log in an object store: in this process, and as Jobs.

The cluster's node has to be this machine: pods reach MLflow and the object store here at the node's address. The Jobs'
image is the controller's own, made as `mlflow-promote k8s image` makes it.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from kubernetes.client import ApiClient, Configuration, CoreV1Api
from mlflow import MlflowClient

from monitoring.drift import DriftPolicy, DriftState
from monitoring.evidently_drift import EvidentlyDrift
from monitoring.logged_rows import LoggedRows
from pipelines.controller_image import controller_image
from pipelines.drift_checks import DriftCheckError, DriftChecks
from pipelines.drift_documents import STATE_TAG
from pipelines.drift_here import DriftChecksHere
from pipelines.drift_jobs import COMPONENT, DriftJobs, secrets_of
from pipelines.drift_reference import DriftCheck
from registry_hooks.mlflow_reference import MlflowReference
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import ModelVersion
from serving.cluster import PODS, SECRETS, Cluster
from serving.cluster_jobs import JOBS, ClusterJobs
from serving.job_objects import JobSettings
from serving.registry_depot import depot_of
from tests.contract.test_cluster_jobs import account
from tests.fixtures.cluster import namespace, secret
from tests.fixtures.drift import customers, log_writer
from tests.fixtures.engines import engine_of
from tests.fixtures.gateway import until
from tests.fixtures.object_store import ObjectStore, only, start_object_store
from tests.fixtures.registries import open_registry
from tests.fixtures.registry import MlflowServer, start_mlflow

LIVE = datetime(2026, 3, 10, 0, 0, tzinfo=UTC)
LATER = LIVE + timedelta(hours=2)
POLICY = DriftPolicy(reference_rows=1000, window_seconds=3600)
STORAGE = "storage"
"""The Secret by which pods reach the object store."""
SECONDS = 300.0
IN_CLUSTER = [pytest.mark.kubernetes, pytest.mark.docker, pytest.mark.nightly, pytest.mark.timeout(1500)]


@dataclass(frozen=True)
class Place:
    """Somewhere where checks are carried out, and what they reach from there."""

    mlflow: MlflowServer
    store: ObjectStore
    make: Callable[[str], DriftChecks]
    """For the prediction log at that URL."""
    left: Callable[[], list[str]]
    """What is there of checks that are over."""
    jobs: Callable[..., DriftJobs] | None = None
    """The same as Jobs whose settings are changed so."""

    def register(self) -> ModelVersion:
        """A version with a run of its own, on which nothing was logged."""
        client, model = MlflowClient(tracking_uri=self.mlflow.uri), f"Übung {uuid.uuid4().hex[:8]}"
        run_id = str(client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id)
        client.create_registered_model(model)
        made = client.create_model_version(model, source=f"runs:/{run_id}/model", run_id=run_id)
        return ModelVersion(model, int(made.version))

    def serve(self, version: ModelVersion, **changed: Any) -> str:
        """Log a reference and, an hour later, rows that changed so; the log's URL."""
        url, apart = f"s3://{self.store.bucket()}/predictions", timedelta(seconds=10)
        write = log_writer(url)
        write(version, customers(1000, 1), LIVE, apart)
        write(version, customers(800, 2, **changed), LIVE + timedelta(hours=1), apart)
        return url

    def tag(self, version: ModelVersion) -> str | None:
        tags = MlflowRegistry(self.mlflow.uri).describe(version).tags
        return tags.get(STATE_TAG)

    def artifact(self, version: ModelVersion, path: str, folder: Path) -> bytes:
        run_id = MlflowRegistry(self.mlflow.uri).describe(version).run_id
        assert run_id
        client = MlflowClient(tracking_uri=self.mlflow.uri)
        return Path(client.download_artifacts(run_id, path, str(folder))).read_bytes()


@pytest.fixture(params=["here", pytest.param("jobs", marks=IN_CLUSTER)])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(f"place_{request.param}")
    return found


@pytest.fixture
def place_here(mlflow_server: MlflowServer, object_store: ObjectStore) -> Place:
    def make(url: str) -> DriftChecks:
        registry, reference = MlflowRegistry(mlflow_server.uri), MlflowReference(mlflow_server.uri)
        return DriftChecksHere(registry, reference, LoggedRows(url), EvidentlyDrift())

    return Place(mlflow_server, object_store, make, list)


@pytest.fixture(scope="module")
def place_jobs(cluster_connection: Configuration, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    node: Any = CoreV1Api(ApiClient(cluster_connection)).list_node().items[0]
    near = next(one.address for one in node.status.addresses if one.type == "InternalIP")
    with ExitStack() as left:
        patch = left.enter_context(pytest.MonkeyPatch.context())
        space = left.enter_context(namespace(cluster_connection))
        store = left.enter_context(only(left.enter_context(start_object_store(near)), patch))
        mlflow = left.enter_context(start_mlflow(tmp_path_factory.mktemp("mlflow"), host=near))
        Cluster(cluster_connection, space).apply(secret(space, STORAGE, store.environment))
        cluster = left.enter_context(closing(Cluster(account(cluster_connection, space), space)))
        settings = JobSettings(
            space, space, COMPONENT, own_image(), 1024, 0.5, int(SECONDS), 0, environment_secrets=(STORAGE,)
        )

        def jobs(url: str, **changes: Any) -> DriftJobs:
            changed, runs = replace(settings, **changes), ClusterJobs(cluster, settings.selector)
            return DriftJobs(cluster, runs, lambda: changed, secrets_of(mlflow.uri, {}), url, 2)

        def remaining() -> list[str]:
            found = [cluster.list(kind, labelSelector=settings.selector)[0] for kind in (JOBS, PODS)]
            return [one["metadata"]["name"] for objects in found for one in objects]

        yield Place(mlflow, store, jobs, remaining, jobs)


def own_image() -> str:
    """The controller's, made without an engine on a base that the registry has, unless somebody made one before."""
    if ready := os.environ.get("TESTBED_CONTROLLER_IMAGE"):
        return ready
    repository = f"{open_registry()}/promote-tests-drift"
    engine = engine_of("docker", "drift")
    engine.api.tag("python:3.11-slim", f"{repository}/python", "3.11-slim")
    engine.push(f"{repository}/python:3.11-slim")
    engine.remove_image(f"{repository}/python:3.11-slim")
    engine.close()
    return controller_image(depot_of(repository, None), repository, f"{repository}/python:{{python}}-slim", print)


def test_drift_is_found_and_kept_with_the_version(place: Place, tmp_path: Path) -> None:
    version = place.register()
    url = place.serve(version, lifted=0.2)
    checked = place.make(url).carry_out(DriftCheck(version, POLICY, LIVE), LATER)
    assert checked.finding.state is DriftState.DRIFTED
    assert checked.finding.drifted == ("output.prediction",)
    assert checked.finding.rollback_helps
    assert (checked.finding.samples.at, checked.finding.samples.current_rows) == (LATER, 800)
    assert (checked.before, place.tag(version)) == ("", "drifted")
    assert "promote/drift/latest.html" in checked.documents
    (told,) = (path for path in checked.documents if path.endswith(".json"))
    assert json.loads(place.artifact(version, told, tmp_path))["drifted"] == ["output.prediction"]
    until(lambda: place.left() == [], SECONDS)


def test_what_was_found_before_is_told_with_what_is_found_now(place: Place) -> None:
    version = place.register()
    MlflowRegistry(place.mlflow.uri).annotate(version, {STATE_TAG: "drifted"}, {})
    checked = place.make(f"s3://{place.store.bucket()}/predictions").carry_out(DriftCheck(version, POLICY, LIVE), LATER)
    assert checked.finding.state is DriftState.NOT_ENOUGH_DATA
    assert checked.before == "drifted"
    assert place.tag(version) == "not enough data"
    until(lambda: place.left() == [], SECONDS)


def test_a_log_that_cannot_be_read_is_no_finding_and_nothing_is_kept(place: Place) -> None:
    version = place.register()
    with pytest.raises(DriftCheckError, match=r"the prediction log cannot be read: .*bucket") as failed:
        place.make("s3://of-nobody/predictions").carry_out(DriftCheck(version, POLICY, LIVE), LATER)
    assert failed.value.retryable
    assert place.tag(version) is None
    until(lambda: place.left() == [], SECONDS)


@pytest.mark.kubernetes
@pytest.mark.docker
@pytest.mark.nightly
@pytest.mark.timeout(1500)
def test_a_check_whose_pod_cannot_succeed_is_told_in_the_clusters_words_and_removed(place_jobs: Place) -> None:
    assert place_jobs.jobs is not None
    version = place_jobs.register()
    cramped = place_jobs.jobs("s3://of-nobody/predictions", memory_mb=40, retries=2)
    with pytest.raises(DriftCheckError, match=r"want of memory \(the limit is 40 MiB\)"):
        cramped.carry_out(DriftCheck(version, POLICY, LIVE), LATER)
    assert place_jobs.tag(version) is None
    until(lambda: place_jobs.left() == [], SECONDS)
    assert cramped.cluster.get(SECRETS, f"{cramped.cluster.namespace}-{COMPONENT}") is not None


def test_a_login_to_mlflow_goes_along_and_nothing_else_does() -> None:
    environment = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_TOKEN": "", "PROMOTE_TOKEN": "no"}
    assert secrets_of("http://mlflow:5000", environment) == {
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_URI": "http://mlflow:5000",
    }
