"""Where a model's files come from: MLflow's own server, whatever fsspec knows; and who is shown credentials."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import mlflow
import pytest

from serving.runtime.fetch_source import HttpSource, Source, SourceError, source_at
from serving.runtime.manifest import Listed, of_folder
from serving.runtime.model_cache import FetchError, ModelCache
from tests.fixtures.artifacts import artifacts, enlarged
from tests.fixtures.registry import MlflowServer

SIZE = 70_000_000
"""Two parts."""
TOKEN = {"MLFLOW_TRACKING_TOKEN": "secret"}
OF_MLFLOW = "/api/2.0/mlflow-artifacts/artifacts"


class Silent:
    """Wants to know nothing."""

    def at(self, now: Callable[[], tuple[str, int]]) -> None:
        pass

    def warn(self, text: str) -> None:
        raise AssertionError(text)


def fetched(source: Path, url: str, cache: Path) -> bool:
    """Whether the model at `url` arrives as it is in the folder `source`."""
    made = of_folder(source, url)
    return of_folder(ModelCache(cache, made, 1, Silent()).model(), url) == made


def read(source: Source, file: Listed) -> bytes:
    return b"".join(source.ask(file, 0, file.bytes).pieces)


def test_mlflow_s_own_server_gives_a_model_in_ranges(
    mlflow_server: MlflowServer, churn_model: Path, tmp_path: Path
) -> None:
    model = enlarged(churn_model, tmp_path / "model", SIZE)
    client = mlflow.MlflowClient(mlflow_server.uri)
    run = client.create_run(client.create_experiment(tmp_path.name)).info
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        client.log_artifacts(run.run_id, str(model), "model")
    assert run.artifact_uri.startswith("mlflow-artifacts:/")
    url = f"{mlflow_server.uri}{OF_MLFLOW}{run.artifact_uri.removeprefix('mlflow-artifacts:')}/model"
    weights = next(file for file in of_folder(model, url).files if file.bytes == SIZE)
    assert not source_at(url).ask(weights, 1000, 2000).whole
    assert fetched(model, url, tmp_path / "cache")


def test_a_model_is_fetched_by_fsspec(churn_model: Path, tmp_path: Path) -> None:
    model = enlarged(churn_model, tmp_path / "model", SIZE)
    assert fetched(model, model.as_uri(), tmp_path / "cache")
    made = of_folder(model, model.as_uri())
    (model / "MLmodel").unlink()
    with pytest.raises(FetchError, match=r"cannot be fetched from file:.*MLmodel"):
        ModelCache(tmp_path / "other", made, 1, Silent()).model()


def test_a_url_that_nobody_knows_is_said(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="nowhere"):
        source_at("nowhere://bucket/model")


def test_what_mlflow_serves_is_below_the_url_that_the_environment_says(tmp_path: Path) -> None:
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "c").write_bytes(b"abc")
    file = Listed("c", 3, "0" * 64)
    with artifacts(tmp_path) as store:
        source = source_at("mlflow-artifacts:/a b", {"ARTIFACTS_URL": f"{store.url}{OF_MLFLOW}/"})
        assert read(source, file) == b"abc"
    with pytest.raises(SourceError, match="ARTIFACTS_URL"):
        source_at("mlflow-artifacts:/a b", {})


def test_a_source_whose_file_has_another_size_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abcd")
    file = Listed("a", 3, "0" * 64)
    with artifacts(tmp_path) as store, pytest.raises(SourceError, match="has 4 bytes at its source, not 3"):
        HttpSource(store.url, {}).ask(file, 0, 3)


def test_mlflow_s_credentials_are_shown_to_its_own_server_and_to_nobody_that_it_sends_us_on_to(tmp_path: Path) -> None:
    (tmp_path / "a b").write_bytes(b"abc")
    file = Listed("a b", 3, "0" * 64)
    with artifacts(tmp_path) as store, artifacts(tmp_path) as other:
        assert read(HttpSource(store.url + OF_MLFLOW, TOKEN), file) == b"abc"
        assert store.heard[-1]["authorization"] == "Bearer secret"
        basic = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "secret"}
        assert read(HttpSource(store.url + OF_MLFLOW, basic), file) == b"abc"
        assert store.heard[-1]["authorization"] == "Basic bWU6c2VjcmV0"
        assert read(HttpSource(store.url, TOKEN), file) == b"abc"
        assert "authorization" not in store.heard[-1]
        store.sends_to = other.url
        assert read(HttpSource(store.url + OF_MLFLOW, TOKEN), file) == b"abc"
        assert "authorization" not in other.heard[-1]
        assert other.heard[-1]["range"] == "bytes=0-2"
