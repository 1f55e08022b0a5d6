"""A model that is too large for its image, in containers: the image has a manifest, the servers fetch the model."""

from __future__ import annotations

import io
import re
import tarfile
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from pipelines.platforms import EnginePlatform
from pipelines.settings import Settings, Target
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.docker import DockerTarget
from serving.docker_engine import Engine
from serving.docker_image import DockerImages
from serving.docker_volumes import MANIFEST, remove_unused, volume_for, volumes
from serving.image import BuildState, ImageRequest, ImageStatus, server_digest
from serving.image_context import HOME, Context, Entry
from serving.large_models import LargeModels, artifacts_at, fetching
from serving.local_image import LocalImages
from serving.revision import Revision, RevisionSettings, RevisionState, RevisionStatus, Weights
from serving.router import Route
from serving.runtime.manifest import FILE, sha256
from tests.fixtures.artifacts import artifacts, enlarged
from tests.fixtures.engines import ENGINES, EngineInstallation
from tests.fixtures.gateway import until
from tests.fixtures.registry import MlflowServer, start_mlflow
from tests.fixtures.revisions import FolderRegistry

pytestmark = pytest.mark.timeout(900)

SECONDS = 240.0
"""How long anything here may take on a busy machine."""
SIZE = 20_000_000
WEIGHTS = "data/weights.bin"
ROWS = pd.DataFrame({"tenure": [2.0, 55.0], "charges": [85.0, 25.0]})
VERSION = ModelVersion("churn", 1)


@pytest.fixture(params=ENGINES, scope="module")
def there(request: pytest.FixtureRequest) -> EngineInstallation:
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    return installation


@pytest.fixture(scope="module")
def host(there: EngineInstallation) -> str:
    """Address of this machine in the network of the containers."""
    api = there.engine.api
    return str(api.inspect_network(there.network)["IPAM"]["Config"][0]["Gateway"])


@pytest.fixture(scope="module")
def mlflow_there(host: str, churn_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """An MLflow server that containers reach, with the model as version 1."""
    with start_mlflow(tmp_path_factory.mktemp("mlflow"), host=host) as server, warnings.catch_warnings():
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


def builder(there: EngineInstallation, registry: Any, at: str, limit: int = 0) -> Builds:
    images = LocalImages(there.home, registry)
    large = LargeModels(limit, registry, at)
    return Builds(there.home, DockerImages(there.home, images, there.engine, there.names, large=large))


def built(builder: Builds, source: str) -> ImageStatus:
    request = ImageRequest(VERSION, source, server_digest())
    builder.build(request)
    until(lambda: builder.find(request).state is not BuildState.BUILDING, SECONDS * 2)
    builder.close()
    return builder.find(request)


def started(target: DockerTarget, image: str, replicas: int) -> Revision:
    revision = Revision(VERSION, image, RevisionSettings(drain_seconds=5.0, replicas=replicas))
    target.start(revision)
    return revision


def in_state(target: DockerTarget, revision: Revision, state: RevisionState) -> RevisionStatus:
    until(lambda: target.status()[revision.id].state is state, SECONDS)
    return target.status()[revision.id]


def stopped(target: DockerTarget, revision: Revision) -> None:
    target.stop(revision.id)
    until(lambda: revision.id not in target.status(), SECONDS)


def files_of(there: EngineInstallation, image: str) -> set[str]:
    """Everything below the model's folder in the image."""
    asked = there.engine.api.create_container(image)["Id"]
    try:
        packed, _ = there.engine.api.get_archive(asked, f"{HOME}/model")
        with tarfile.open(fileobj=io.BytesIO(b"".join(packed))) as tar:
            return {member.name for member in tar.getmembers() if member.isfile()}
    finally:
        there.engine.remove(asked)


def test_two_replicas_fetch_once_from_mlflow_and_answer(
    there: EngineInstallation, mlflow_there: MlflowServer, churn_model: Path
) -> None:
    at = artifacts_at(mlflow_there.uri)
    status = built(builder(there, MlflowRegistry(mlflow_there.uri), at), "mlflow")
    assert status.image is not None, status
    assert "the compiled model has 1 MiB, more than baked_model_mb, 0" in status.detail
    assert files_of(there, status.image) == {f"model/{FILE}"}
    target = there.target(fetching=fetching(mlflow_there.uri, at, {}))
    downloads = re.compile(r'"GET /api/2.0/mlflow-artifacts/artifacts/\S*/(\S+) HTTP')
    before = len(downloads.findall(mlflow_there.log.read_text()))
    revision = started(target, status.image, 2)
    ready = in_state(target, revision, RevisionState.READY)
    heard = downloads.findall(mlflow_there.log.read_text())[before:]
    assert sorted(heard) == sorted(path.name for path in churn_model.rglob("*") if path.is_file())
    there.router.set_weights(Route("churn", Weights.all_to(revision), {revision.id: ready.addresses}))
    try:
        url, asked = f"{there.gateway.url}/models/churn/invocations", {"dataframe_records": ROWS.to_dict("records")}
        answer = until(lambda: said.json() if (said := httpx.post(url, json=asked)).is_success else {}, 20)
    finally:
        there.router.remove("churn")
    assert answer["predictions"] == mlflow.pyfunc.load_model(str(churn_model)).predict(ROWS).tolist()
    assert len(volumes(there.engine)) == 1
    stopped(target, revision)
    assert until(lambda: not volumes(there.engine), SECONDS)


def test_how_far_it_is_is_told_and_a_wrong_file_fails_the_revision_with_both_digests(
    there: EngineInstallation, host: str, churn_model: Path, tmp_path: Path
) -> None:
    model = enlarged(churn_model, tmp_path / "churn", SIZE)
    with artifacts(model, host) as store:
        at = artifacts_at(store.url)
        models = Elsewhere({"churn": model})
        status = built(builder(there, models, at, limit=SIZE), "elsewhere")
        assert status.image is not None, status
        assert status.proof is not None
        assert status.proof.compiled
        assert files_of(there, status.image) == {f"model/{FILE}"}
        target = there.target(fetching=fetching(store.url, at, {}))
        listed = sha256(model / WEIGHTS)
        with (model / WEIGHTS).open("r+b") as weights:
            weights.write(b"other")
        store.hold_at = SIZE // 2
        revision = started(target, status.image, 1)
        half = re.compile(r"fetching the model: (49|5\d) % of 20\.\d MB")
        until(lambda: half.fullmatch(target.status()[revision.id].reason), SECONDS)
        seen = target.status()[revision.id]
        assert seen.state is RevisionState.STARTING
        assert seen.fetched in range(49, 60)
        assert volumes(there.engine)
        store.release()
        failed = in_state(target, revision, RevisionState.FAILED)
    assert f"{WEIGHTS} has the sha256 {sha256(model / WEIGHTS)}, and {listed} is listed" in failed.reason
    stopped(target, revision)
    assert until(lambda: not volumes(there.engine), SECONDS)


def test_a_model_that_containers_cannot_fetch_is_one_error_that_names_the_setting(
    there: EngineInstallation, churn_model: Path
) -> None:
    models = Elsewhere({"churn": churn_model})
    status = built(builder(there, models, artifacts_at("http://127.0.0.1:5000")), "unreachable")
    assert status.state is BuildState.FAILED
    assert "churn 1 has 1 MiB, more than baked_model_mb, 0" in status.detail
    assert "the setting artifacts_url" in status.detail


def test_purging_removes_the_volumes_of_the_installation_and_no_others(
    there: EngineInstallation, tmp_path: Path
) -> None:
    kind, name = Target.PODMAN if there.engine.podman else Target.DOCKER, f"promote-tests-{uuid.uuid4().hex[:8]}"
    other, tag = Engine(there.engine.url, name), f"{name}/small:1"
    other.build(Context("scratch", {"a": Entry(b"1")}, {MANIFEST: "0" * 64}), tag, print)
    volume_for(other, tag)
    theirs = volume_for(there.engine, tag)
    assert len(volumes(other)) == 1
    platform = EnginePlatform(Settings(home=tmp_path, target=kind, engine=there.engine.url, installation=name))
    platform.purge()
    platform.close()
    assert volumes(other) == []
    assert volumes(there.engine) == [theirs]
    remove_unused(there.engine)
    other.close()
