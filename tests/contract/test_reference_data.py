"""The data sets of runs on a real MLflow server: which one is taken, from which formats, and what is said otherwise."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.data.dataset import Dataset
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag

from registry_hooks.mlflow_reference import ARTIFACT, MlflowReference
from registry_hooks.reference import LoggedData, ReferenceDataError, Unavailable
from tests.fixtures.drift import Receiver
from tests.fixtures.registry import MlflowServer

pytestmark = pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted:UserWarning")
ROWS = pd.DataFrame({"tenure": [1, 2, 3], "plan": ["a", "b", "a"]})
Log = Callable[..., str]


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    return MlflowClient(tracking_uri=mlflow_server.uri)


@pytest.fixture
def log(client: MlflowClient) -> Log:
    """Make a run with data sets logged under contexts; its id."""

    def make(**datasets: Dataset) -> str:
        run_id = str(client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id)
        inputs = [
            DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", context)])
            for context, data in datasets.items()
        ]
        if inputs:
            client.log_inputs(run_id, inputs)
        return run_id

    return make


def load(server: MlflowServer, run_id: str | None) -> LoggedData | Unavailable:
    return MlflowReference(server.uri).load(run_id)


def saved(rows: pd.DataFrame, path: Path) -> str:
    name = path.name
    if "parquet" in name:
        rows.to_parquet(path)
    elif name.endswith("jsonl"):
        rows.to_json(path, orient="records", lines=True)
    elif name.endswith("json"):
        rows.to_json(path, orient="records")
    else:
        rows.to_csv(path, index=False, sep=";" if "semicolon" in name else ",")
    return str(path)


@pytest.mark.parametrize("name", ["a.parquet", "a.csv", "a.semicolon.csv", "a.csv.gz", "a.json", "a.jsonl"], ids=str)
def test_formats(mlflow_server: MlflowServer, log: Log, tmp_path: Path, name: str) -> None:
    data = from_pandas(ROWS, source=saved(ROWS, tmp_path / name), name="customers")
    found = load(mlflow_server, log(training=data))
    assert isinstance(found, LoggedData)
    assert found.description == "data set customers, logged with the run"
    pd.testing.assert_frame_equal(found.rows, ROWS)


def test_a_data_set_behind_http(mlflow_server: MlflowServer, log: Log, receiver: Receiver) -> None:
    receiver.files["/customers.csv"] = ROWS.to_csv(index=False).encode()
    source = receiver.url.replace("/alerts", "/customers.csv")
    found = load(mlflow_server, log(training=from_pandas(ROWS, source=source)))
    assert isinstance(found, LoggedData)
    pd.testing.assert_frame_equal(found.rows, ROWS)


def test_training_data_go_before_others(mlflow_server: MlflowServer, log: Log, tmp_path: Path) -> None:
    held_out = from_pandas(ROWS.head(1), source=saved(ROWS.head(1), tmp_path / "eval.csv"))
    training = from_pandas(ROWS, source=saved(ROWS, tmp_path / "train.csv"))
    found = load(mlflow_server, log(eval=held_out, training=training))
    assert isinstance(found, LoggedData)
    assert len(found.rows) == 3


def test_the_artifact_goes_before_everything(
    mlflow_server: MlflowServer, client: MlflowClient, log: Log, tmp_path: Path
) -> None:
    run_id = log(training=from_pandas(ROWS, source=saved(ROWS, tmp_path / "train.csv")))
    kept = ROWS.rename(columns=lambda name: f"input.{name}").assign(**{"output.prediction": 0.5})
    folder, name = ARTIFACT.split("/")
    client.log_artifact(run_id, saved(kept, tmp_path / name), folder)
    found = load(mlflow_server, run_id)
    assert isinstance(found, LoggedData)
    pd.testing.assert_frame_equal(found.rows, kept)


def test_what_cannot_be_read_is_said(mlflow_server: MlflowServer, log: Log, tmp_path: Path) -> None:
    gone = from_pandas(ROWS, source=str(tmp_path / "gone.csv"), name="gone")
    only_code = from_pandas(ROWS, name="made")
    (tmp_path / "a.xlsx").write_bytes(b"")
    sheet = from_pandas(ROWS, source=str(tmp_path / "a.xlsx"), name="sheet")
    found = load(mlflow_server, log(training=gone, train=only_code, other=sheet))
    assert isinstance(found, Unavailable)
    assert all(word in found.reason for word in ("gone", "made", "sheet", "code", "neither Parquet nor CSV"))


def test_the_next_best_is_taken_where_the_best_is_gone(mlflow_server: MlflowServer, log: Log, tmp_path: Path) -> None:
    gone = from_pandas(ROWS, source=str(tmp_path / "gone.csv"), name="gone")
    there = from_pandas(ROWS, source=saved(ROWS, tmp_path / "eval.csv"), name="there")
    assert isinstance(load(mlflow_server, log(training=gone, eval=there)), LoggedData)


def test_nothing_was_logged(mlflow_server: MlflowServer, log: Log) -> None:
    assert load(mlflow_server, log()) == Unavailable("no data set was logged with the run")
    assert load(mlflow_server, None) == Unavailable("the version has no run")


def test_a_run_that_cannot_be_read(mlflow_server: MlflowServer) -> None:
    with pytest.raises(ReferenceDataError):
        load(mlflow_server, "0" * 32)
