"""What only a real MLflow server can show of the registry over it: stamps, sources of models, and being away.

`tests/mlflow_bounds.sh` runs this file with other releases of MLflow.
"""

from __future__ import annotations

import logging
import os
import socket
import time
import uuid
from pathlib import Path

import httpx
import pytest

from registry_hooks.mlflow_reading import FIRST_PAGE, ChangeCursor
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import ModelVersion
from registry_hooks.registry import RegistryError
from serving.large_models import artifacts_at
from serving.runtime.fetch_source import place_of
from tests.contract.mlflow_person import MlflowPerson
from tests.contract.small_controller import until
from tests.fixtures.registry import MlflowServer


@pytest.fixture
def person(mlflow_server: MlflowServer) -> MlflowPerson:
    return MlflowPerson.at(mlflow_server)


@pytest.fixture
def registry(mlflow_server: MlflowServer) -> MlflowRegistry:
    return MlflowRegistry(mlflow_server.uri)


@pytest.fixture
def churn() -> str:
    """A model name that no other test uses."""
    return f"churn-{uuid.uuid4().hex[:8]}"


def test_stamps_count_as_read_once_they_were_seen_long_ago() -> None:
    cursor = ChangeCursor(newest=100_000, polled=0)
    assert cursor.settled == 90_000
    cursor.polled(5, 104_000)
    assert cursor.settled == 90_000
    cursor.polled(10, 104_000)
    assert cursor.settled == 100_000
    cursor.polled(16, 103_000)
    assert cursor.settled == 104_000
    cursor.polled(60, 150_000)
    assert cursor.settled == 104_000


def test_nothing_new_is_one_small_request(
    mlflow_server: MlflowServer,
    registry: MlflowRegistry,
    person: MlflowPerson,
    churn: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr("registry_hooks.mlflow_reading.LATE_SECONDS", 0.5)
    caplog.set_level(logging.DEBUG, "urllib3.connectionpool")
    for n in range(FIRST_PAGE + 2):
        person.register(f"{churn}-{n}", run_id=None)
    registry.changed()

    def requests() -> list[str]:
        caplog.clear()
        registry.changed()
        return [line for line in caplog.messages if line.startswith(mlflow_server.uri) and " HTTP/" in line]

    until(lambda: len(requests()) == 1)
    for _ in range(5):
        (request,) = requests()
        assert f"max_results={FIRST_PAGE}" in request


@pytest.mark.parametrize("late", [0, 1, 3000])
def test_a_change_that_appears_behind_what_was_read_is_found(
    registry: MlflowRegistry, person: MlflowPerson, churn: str, late: int
) -> None:
    first, second = (person.register(f"{churn}-{n}", run_id=None) for n in range(2))
    person.transition_stage(first.model, 1, "Production")
    registry.changed()
    registry.changed()
    person.promote_stamped(second, person.stamp(first.model) - late)
    assert second in {h.version for h in registry.changed().holdings}


def test_logged_models_are_downloaded(
    registry: MlflowRegistry, person: MlflowPerson, churn: str, tmp_path: Path
) -> None:
    model = person.logged_model()
    version = person.version_of(churn, f"models:/{model}", None, model)
    assert (registry.download(version, tmp_path) / "MLmodel").is_file()


def test_proxied_artifacts_are_downloaded(
    registry: MlflowRegistry, person: MlflowPerson, churn: str, tmp_path: Path
) -> None:
    run = person.run_with_model()
    source = f"{person.client.get_run(run).info.artifact_uri}/model"
    assert source.startswith("mlflow-artifacts:")
    folder = registry.download(person.version_of(churn, source, run), tmp_path)
    assert (folder / "data" / "weights.bin").read_bytes() == b"\0\1"


def test_where_a_version_s_files_are_is_told_as_their_store_names_them(
    mlflow_server: MlflowServer, registry: MlflowRegistry, person: MlflowPerson, churn: str
) -> None:
    run, model = person.run_with_model(), person.logged_model()
    stored = f"{person.client.get_run(run).info.artifact_uri}/model"
    versions = [
        person.version_of(churn, f"models:/{model}", None, model),
        person.version_of(churn, f"runs:/{run}/model", run),
        person.version_of(churn, stored, run),
    ]
    for place in map(registry.location, versions):
        assert place.startswith("mlflow-artifacts:/")
        url = place_of(place, artifacts_at(mlflow_server.uri))
        assert httpx.get(f"{url}/MLmodel").is_success, url


def test_a_source_without_a_model_is_given_up(
    registry: MlflowRegistry, person: MlflowPerson, churn: str, tmp_path: Path
) -> None:
    run = person.run_with_model()
    version = person.version_of(churn, f"runs:/{run}/model/data", run)
    with pytest.raises(RegistryError, match="no MLmodel") as raised:
        registry.download(version, tmp_path)
    assert not raised.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_a_dead_server_answers_soon_and_can_be_tried_again(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        dead = MlflowRegistry(f"http://127.0.0.1:{closed.getsockname()[1]}")
        began = time.monotonic()
        for call in (dead.changed, dead.snapshot, lambda: dead.describe(ModelVersion("churn", 1))):
            with pytest.raises(RegistryError) as raised:
                call()
            assert raised.value.retryable
        assert time.monotonic() - began < 5


def test_a_silent_server_is_given_up_within_the_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        registry = MlflowRegistry(f"http://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(RegistryError) as raised:
            registry.changed()
        assert raised.value.retryable
        assert 1 <= time.monotonic() - began < 5
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "1"


@pytest.mark.parametrize("source", ["runs:/RUN/not-there", "s3://bucket/model"])
def test_a_source_that_cannot_be_read_is_given_up(
    registry: MlflowRegistry, person: MlflowPerson, churn: str, tmp_path: Path, source: str
) -> None:
    run = person.run_with_model()
    version = person.version_of(churn, source.replace("RUN", run), run)
    with pytest.raises(RegistryError, match=churn) as raised:
        registry.download(version, tmp_path)
    assert not raised.value.retryable
    assert list(tmp_path.iterdir()) == []


def test_what_mlflow_refuses_is_not_tried_again(registry: MlflowRegistry, person: MlflowPerson, churn: str) -> None:
    version = person.register(churn, run_id=None)
    with pytest.raises(RegistryError) as raised:
        registry.annotate(version, {"k" * 300: "too long a key"})
    assert not raised.value.retryable


def test_the_commit_is_that_of_the_versions_run(registry: MlflowRegistry, person: MlflowPerson, churn: str) -> None:
    run = person.run_with_model()
    version = person.version_of(churn, f"runs:/{run}/model", run)
    assert registry.commit(version) is None
    person.client.set_tag(run, "mlflow.source.git.commit", "5f0c2d1")
    assert registry.commit(version) == "5f0c2d1"
    assert registry.commit(person.register(churn, run_id=None)) is None
    assert registry.commit(person.version_of(churn, "s3://nowhere/model", "f" * 32)) is None
