"""A model that is too large for its image, in containers: the image has a manifest, the servers fetch the model."""

from __future__ import annotations

import re
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.platforms import EnginePlatform
from pipelines.settings import Settings, Target
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.docker_engine import Engine
from serving.docker_volumes import remove_unused, volume_for, volumes
from serving.image import BuildState, ImageRequest, ImageStatus, server_digest
from serving.image_context import MANIFEST, Context, Entry
from serving.large_models import artifacts_at, fetching
from serving.revision import Revision, RevisionSettings, RevisionState, RevisionStatus
from serving.runtime.manifest import FILE, sha256
from serving.target import ServingTarget
from tests.fixtures.artifacts import ArtifactServer, artifacts, enlarged
from tests.fixtures.cluster import LONG, ClusterInstallation
from tests.fixtures.engines import ENGINES, EngineInstallation
from tests.fixtures.gateway import until
from tests.fixtures.large_models import Place, in_cluster, in_engine
from tests.fixtures.registry import MlflowServer, start_mlflow
from tests.fixtures.revisions import FolderRegistry

pytestmark = pytest.mark.timeout(900)

SECONDS = 240.0
"""How long anything here may take on a busy machine."""
SIZE = 20_000_000
WEIGHTS = "data/weights.bin"
ROWS = pd.DataFrame({"tenure": [2.0, 55.0], "charges": [85.0, 25.0]})
VERSION = ModelVersion("churn", 1)
HALF = re.compile(r"fetching the model: (49|5\d) % of 20\.\d MB")


@pytest.fixture(params=[*ENGINES, pytest.param("kubernetes", marks=LONG)], scope="module")
def there(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    if request.param == "kubernetes":
        cluster: ClusterInstallation = request.getfixturevalue("cluster_installation")
        with in_cluster(cluster, tmp_path_factory.mktemp("models")) as place:
            yield place
        return
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    yield in_engine(installation)


@pytest.fixture(params=ENGINES, scope="module")
def engine_there(request: pytest.FixtureRequest) -> EngineInstallation:
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    return installation


@pytest.fixture(scope="module")
def mlflow_there(there: Place, churn_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server that containers reach, with the model as version 1."""
    with start_mlflow(tmp_path_factory.mktemp("mlflow"), host=there.host) as server, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client = MlflowClient(server.uri, server.uri)
        run = client.create_run(client.create_experiment("churn")).info.run_id
        client.log_artifacts(run, str(churn_model), "model")
        client.create_registered_model("churn")
        client.create_model_version("churn", f"runs:/{run}/model", run)
        yield server


class Elsewhere(FolderRegistry):
    """Says that every model is at the top of MLflow's artifacts."""

    def location(self, version: ModelVersion) -> str:
        return "mlflow-artifacts:/"


def built(builder: Builds, source: str) -> ImageStatus:
    request = ImageRequest(VERSION, source, server_digest())
    builder.build(request)
    until(lambda: builder.find(request).state is not BuildState.BUILDING, SECONDS * 2)
    builder.close()
    return builder.find(request)


def started(target: ServingTarget, image: str, replicas: int) -> Revision:
    revision = Revision(VERSION, image, RevisionSettings(drain_seconds=5.0, replicas=replicas))
    target.start(revision)
    return revision


def in_state(target: ServingTarget, revision: Revision, state: RevisionState) -> RevisionStatus:
    until(lambda: target.status()[revision.id].state is state, SECONDS)
    return target.status()[revision.id]


def at_half(target: ServingTarget, revision: Revision) -> RevisionStatus:
    until(lambda: HALF.search(target.status()[revision.id].reason), SECONDS)
    return target.status()[revision.id]


def stopped(target: ServingTarget, revision: Revision) -> None:
    target.stop(revision.id)
    until(lambda: revision.id not in target.status(), SECONDS)


def large_image(there: Place, store: ArtifactServer, model: Path, source: str) -> str:
    """Of a model that is too large by a little."""
    status = built(there.builder(Elsewhere({"churn": model}), artifacts_at(store.url), limit=SIZE), source)
    assert status.image is not None, status
    assert status.proof is not None
    assert status.proof.compiled
    return status.image


def test_two_replicas_fetch_once_from_mlflow_and_answer(
    there: Place, mlflow_there: MlflowServer, churn_model: Path
) -> None:
    at, kept = artifacts_at(mlflow_there.uri), there.caches()
    status = built(there.builder(MlflowRegistry(mlflow_there.uri), at), "mlflow")
    assert status.image is not None, status
    assert "the compiled model has 1 MiB, more than baked_model_mb, 0" in status.detail
    assert there.files_of(status.image) == {f"model/{FILE}"}
    target = there.target(fetching(mlflow_there.uri, at, {}))
    downloads = re.compile(r'"GET /api/2.0/mlflow-artifacts/artifacts/\S*/(\S+) HTTP')
    before = len(downloads.findall(mlflow_there.log.read_text()))
    revision = started(target, status.image, 2)
    ready = in_state(target, revision, RevisionState.READY)
    heard = downloads.findall(mlflow_there.log.read_text())[before:]
    assert sorted(heard) == sorted(path.name for path in churn_model.rglob("*") if path.is_file())
    answer = there.predicts(revision, ready, {"dataframe_records": ROWS.to_dict("records")})
    assert answer == mlflow.pyfunc.load_model(str(churn_model)).predict(ROWS).tolist()
    assert there.caches() == kept + 1
    stopped(target, revision)
    assert until(lambda: there.caches() == kept + there.kept, SECONDS)


def test_how_far_it_is_is_told_and_a_wrong_file_fails_the_revision_with_both_digests(
    there: Place, churn_model: Path, tmp_path: Path
) -> None:
    kept = there.caches()
    model = enlarged(churn_model, tmp_path / "churn", SIZE)
    with artifacts(model, there.host) as store:
        image = large_image(there, store, model, "elsewhere")
        assert there.files_of(image) == {f"model/{FILE}"}
        target = there.target(fetching(store.url, artifacts_at(store.url), {}))
        listed = sha256(model / WEIGHTS)
        with (model / WEIGHTS).open("r+b") as weights:
            weights.write(b"other")
        store.hold_at = SIZE // 2
        revision = started(target, image, 1)
        seen = at_half(target, revision)
        assert seen.state is RevisionState.STARTING
        assert seen.fetched in range(49, 60)
        store.release()
        failed = in_state(target, revision, RevisionState.FAILED)
    assert f"{WEIGHTS} has the sha256 {sha256(model / WEIGHTS)}, and {listed} is listed" in failed.reason
    stopped(target, revision)
    assert until(lambda: there.caches() <= kept + there.kept, SECONDS)


def test_a_model_that_containers_cannot_fetch_is_one_error_that_names_the_setting(
    there: Place, churn_model: Path
) -> None:
    models = Elsewhere({"churn": churn_model})
    status = built(there.builder(models, artifacts_at("http://127.0.0.1:5000")), "unreachable")
    assert status.state is BuildState.FAILED
    assert "churn 1 has 1 MiB, more than baked_model_mb, 0" in status.detail
    assert "the setting artifacts_url" in status.detail


def test_purging_removes_the_volumes_of_the_installation_and_no_others(
    engine_there: EngineInstallation, tmp_path: Path
) -> None:
    kind = Target.PODMAN if engine_there.engine.podman else Target.DOCKER
    name = f"promote-tests-{uuid.uuid4().hex[:8]}"
    other, tag = Engine(engine_there.engine.url, name), f"{name}/small:1"
    other.build(Context("scratch", {"a": Entry(b"1")}, {MANIFEST: "0" * 64}), tag, print)
    volume_for(other, tag)
    theirs = volume_for(engine_there.engine, tag)
    assert len(volumes(other)) == 1
    platform = EnginePlatform(Settings(home=tmp_path, target=kind, engine=engine_there.engine.url, installation=name))
    platform.purge()
    platform.close()
    assert volumes(other) == []
    assert volumes(engine_there.engine) == [theirs]
    remove_unused(engine_there.engine)
    other.close()
