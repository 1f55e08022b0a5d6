"""Models that are too large for an image: what stands in their place, and where servers are told to fetch them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import pytest

from registry_hooks.model_version import ModelVersion
from serving.image import ImageError
from serving.image_context import CACHE, HOME, model_context
from serving.large_models import LargeModels, artifacts_at, fetching, source_of
from serving.runtime import manifest, model_files, plan
from serving.runtime.manifest import Listed
from serving.runtime.model_files import listed
from serving.runtime.plan import Compiled, Plan

VERSION = ModelVersion("churn", 7)
STORE = "mlflow-artifacts:/1/models/m-1/artifacts"
PROXY = "http://mlflow:5000/api/2.0/mlflow-artifacts/artifacts"
LOCK = "numpy==2.0.0 \\\n    --hash=sha256:00\ns3fs==2026.1.0\n"


@dataclass(frozen=True, slots=True)
class At:
    """Says that every model is there."""

    place: str

    def location(self, _: ModelVersion) -> str:
        return self.place


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "data").mkdir(parents=True)
    (folder / "MLmodel").write_bytes(b"")
    (folder / "data" / "weights").write_bytes(b"abc")
    return folder


def large(limit: int = 2, place: str = STORE, artifacts: str = PROXY) -> LargeModels:
    return LargeModels(limit, At(place), artifacts)


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_only_a_model_over_the_limit_has_a_manifest(model: Path) -> None:
    assert large(limit=3).manifest(VERSION, listed(model), LOCK) is None
    made = large(limit=2).manifest(VERSION, listed(model), LOCK)
    assert made is not None
    assert made.source == STORE
    assert made.files == (Listed("MLmodel", 0, sha256(b"")), Listed("data/weights", 3, sha256(b"abc")))


def test_its_image_holds_the_manifest_and_a_place_for_the_volume_and_is_named_by_every_file(
    model: Path, tmp_path: Path
) -> None:
    digests = []
    for content in (b"abc", b"abd"):
        (model / "data" / "weights").write_bytes(content)
        made = large().manifest(VERSION, listed(model), LOCK)
        assert made is not None
        made.write(tmp_path / "instead")
        context = model_context("packages:1", tmp_path / "instead", tmp_path / "no plan", {}, fetched=True)
        there = {path for path in context.entries if path.startswith(f"{HOME[1:]}/model/")}
        assert there == {f"{HOME[1:]}/model/{manifest.FILE}", CACHE[1:]}
        assert context.entries[CACHE[1:]].mode == 0o777
        digests.append(context.digest)
    assert len(set(digests)) == 2


def test_a_compiled_form_over_the_limit_is_left_out_and_the_plan_says_why(tmp_path: Path) -> None:
    folder = tmp_path / "plan"
    compiled = Compiled("model.onnx", sha256(b"abc"), (), (), frame=False, tolerance=0.0, rows=9)
    Plan("sklearn", True, batching=True, compiled=compiled).write(folder)
    (folder / "model.onnx").write_bytes(b"abc")
    model_files.write({}, folder)
    assert large(limit=3).plan(folder, tmp_path / "smaller") == folder
    smaller = large(limit=2).plan(folder, tmp_path / "smaller")
    read = plan.read(smaller)
    assert (read.compiled, read.batching) == (None, True)
    assert "baked_model_mb" in read.why
    assert {path.name for path in smaller.iterdir()} == {plan.FILE, model_files.FILE}


@pytest.mark.parametrize(
    ("place", "artifacts", "said"),
    [
        (STORE, artifacts_at("http://127.0.0.1:5000"), "http://127.0.0.1:5000/api/2.0/mlflow-artifacts/artifacts/1/"),
        (STORE, artifacts_at("http://localhost:5000"), "the setting artifacts_url"),
        (STORE, artifacts_at("https://[::1]:5000"), "the setting artifacts_url"),
        (STORE, "gs://bucket/mlflow", "gs://bucket/mlflow/1/models/m-1/artifacts is read with gcsfs"),
        ("file:///models/churn", PROXY, "file:///models/churn is a place that containers do not reach"),
        ("/models/churn", PROXY, "have MLflow serve its artifacts"),
        ("http://127.0.0.1/churn", PROXY, "an address of this machine's own"),
    ],
)
def test_a_place_that_containers_cannot_fetch_from_is_one_error(
    model: Path, place: str, artifacts: str, said: str
) -> None:
    with pytest.raises(ImageError) as refused:
        large(place=place, artifacts=artifacts).manifest(VERSION, listed(model), LOCK)
    assert said in str(refused.value)
    assert "churn 7 has 1 MiB, more than baked_model_mb, 0" in str(refused.value)
    assert not refused.value.retryable


def test_a_file_that_cannot_be_listed_is_refused(model: Path) -> None:
    (model / "a\\b").write_bytes(b"")
    with pytest.raises(ImageError, match=r"churn 7 cannot be fetched by its servers: .*is no path"):
        large().manifest(VERSION, listed(model), LOCK)


@pytest.mark.parametrize(
    ("place", "artifacts", "source"),
    [
        (STORE, PROXY, STORE),
        (STORE, "s3://bucket/mlflow", STORE),
        ("s3://bucket/churn", PROXY, "s3://bucket/churn"),
        ("mlflow-artifacts://other:80/1/a", PROXY, "http://other:80/api/2.0/mlflow-artifacts/artifacts/1/a"),
    ],
)
def test_the_manifest_names_what_does_not_depend_on_who_reaches_it(
    model: Path, place: str, artifacts: str, source: str
) -> None:
    assert source_of(place, artifacts) == source
    made = large(place=place, artifacts=artifacts).manifest(VERSION, listed(model), LOCK)
    assert made is not None
    assert made.source == source


def test_containers_are_told_places_and_credentials_and_nothing_else() -> None:
    environment = {"MLFLOW_TRACKING_TOKEN": "t", "AWS_PROFILE": "p", "PROMOTE_TOKEN": "hidden", "HOME": "/root"}
    assert fetching("http://mlflow:5000", PROXY, environment) == {
        "ARTIFACTS_URL": PROXY,
        "MLFLOW_TRACKING_TOKEN": "t",
        "AWS_PROFILE": "p",
    }
    assert fetching("http://me:p%40ss@mlflow:5000", PROXY, {}) == {
        "ARTIFACTS_URL": PROXY,
        "MLFLOW_TRACKING_USERNAME": "me",
        "MLFLOW_TRACKING_PASSWORD": "p@ss",
    }


def test_the_credentials_of_an_address_are_no_part_of_where_artifacts_are() -> None:
    assert artifacts_at("http://me:pass@mlflow:5000/") == PROXY
    assert artifacts_at("http://mlflow:5000", "s3://bucket/mlflow") == "s3://bucket/mlflow"
