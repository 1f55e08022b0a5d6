"""Rows of the data sets of runs: which ones, in which words, and why there are none, without ever failing."""

from __future__ import annotations

import socket
import time
import uuid
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from pathlib import Path
from threading import Thread

import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient
from mlflow.data.pandas_dataset import from_pandas
from mlflow.entities import DatasetInput, InputTag

from registry_hooks.logged_sample import MOST_VALUES, ROWS, LoggedSamples, sample
from registry_hooks.mlflow_reference import MlflowReference
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import LoggedData, ReferenceData, ReferenceDataError, Sample
from serving.image import BuildState, ImageRequest, server_digest
from serving.local_image import LocalImageBuilder
from tests.fakes.drift import FakeReferenceData
from tests.fixtures.registry import MlflowServer
from tests.fixtures.revisions import with_kept_environments

pytestmark = pytest.mark.filterwarnings("ignore:The specified dataset source can be interpreted:UserWarning")

VERSION = ModelVersion("churn", 7)
Log = Callable[[str], str]


@pytest.fixture
def client(mlflow_server: MlflowServer) -> MlflowClient:
    return MlflowClient(mlflow_server.uri, mlflow_server.uri)


@pytest.fixture
def log(client: MlflowClient) -> Log:
    """Make a run that logged a data set with that source; its id."""

    def make(source: str) -> str:
        run_id = str(client.create_run(client.create_experiment(uuid.uuid4().hex)).info.run_id)
        data = from_pandas(pd.DataFrame({"tenure": [1.0]}), source=source, name="customers")
        client.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity(), [InputTag("mlflow.data.context", "eval")])])
        return run_id

    return make


def samples(server: MlflowServer, run_id: str | None, seconds: float = 60.0) -> LoggedSamples:
    return LoggedSamples(lambda: MlflowReference(server.uri), lambda _: run_id, seconds)


def model(folder: Path, run_id: str | None = None) -> Path:
    """As much of a model's folder as says of which run it is."""
    (folder / "MLmodel").write_text(f"run_id: {run_id}\n" if run_id else "flavors: {}\n")
    return folder


def of(rows: pd.DataFrame) -> Sample:
    return sample(LoggedData("data set customers", rows))


@pytest.mark.parametrize("count", [1, 999, 1000, 1001, 1999, 5000])
def test_rows_are_of_all_over_the_data_set(count: int) -> None:
    taken = [row[0] for row in of(pd.DataFrame({"tenure": range(count)})).rows]
    assert len(taken) == len(set(taken)) == min(count, ROWS)
    assert (taken[0], taken[-1]) == (0, count - 1)
    steps = np.diff([int(str(position)) for position in taken])
    assert not len(steps) or steps.max() - steps.min() <= 1


def test_of_a_wide_data_set_there_are_fewer() -> None:
    wide = pd.DataFrame(np.zeros((ROWS, MOST_VALUES // 500)))
    assert len(of(wide).rows) == 500


def test_values_are_as_requests_have_them() -> None:
    rows = pd.DataFrame(
        {
            "fraction": [0.1 + 0.2, 5e-324, np.inf, np.nan],
            "short": np.array([0.1, 1, 2, 3], "float32"),
            "whole": pd.array([2**60 + 1, None, 3, 4], "Int64"),
            "word": pd.Categorical(["a", None, "a", "ü"]),
            "flag": [True, False, True, None],
            "moment": pd.to_datetime(["2026-01-31T12:00:00.123456789", *[None] * 3]),
            "day": [date(2026, 1, 31)] * 4,
            "bytes": [b"a"] * 4,
            "amount": [Decimal(1)] * 4,
            "list": [[1]] * 4,
        }
    )
    found = of(rows)
    assert found.columns == tuple(rows.columns[:-2]), "what no request can have is left out"
    first = (0.1 + 0.2, float(np.float32(0.1)), 2**60 + 1, "a", True, "2026-01-31T12:00:00.123456789")
    assert found.rows[0] == (*first, "2026-01-31", "YQ==")
    assert found.rows[1][:6] == (5e-324, 1.0, None, None, False, None)
    assert found.rows[2][0] == np.inf
    assert found.rows[3][0] is None


def test_of_columns_as_in_the_prediction_log_the_inputs_are_taken() -> None:
    found = of(pd.DataFrame({"input.tenure": [1], "output.prediction": [0.5], "timestamp": ["now"]}))
    assert (found.columns, found.rows) == (("tenure",), ((1,),))


def test_a_data_set_without_rows_or_values_is_told() -> None:
    assert of(pd.DataFrame({"tenure": []})).rows == ()
    assert "no columns of plain values" in of(pd.DataFrame({"list": [[1]]})).told


@pytest.mark.parametrize("by", ["registry", "files"])
@pytest.mark.parametrize("name", ["a.csv", "a.parquet", "a.jsonl"])
def test_rows_of_the_data_set_that_the_run_logged(
    mlflow_server: MlflowServer, log: Log, tmp_path: Path, by: str, name: str
) -> None:
    rows = pd.DataFrame({"tenure": [1.5, 2.5], "plan": ["a", "b"]})
    path = tmp_path / name
    write = {"a.csv": rows.to_csv, "a.parquet": rows.to_parquet, "a.jsonl": rows.to_json}[name]
    write(path, **({"orient": "records", "lines": True} if "json" in name else {"index": False}))
    run_id = log(str(path))
    told = samples(mlflow_server, run_id if by == "registry" else None).take(VERSION, model(tmp_path, run_id))
    assert told == Sample("data set customers, logged with the run", ("tenure", "plan"), ((1.5, "a"), (2.5, "b")))


def test_why_there_are_no_rows(mlflow_server: MlflowServer, log: Log, tmp_path: Path) -> None:
    def told(run_id: str | None) -> tuple[str, bool]:
        found = samples(mlflow_server, run_id).take(VERSION, model(tmp_path))
        assert not found.columns
        assert "\n" not in found.told
        return found.told, found.retryable

    (tmp_path / "torn.parquet").write_bytes(b"PAR1")
    (tmp_path / "customers.xlsx").write_bytes(b"PK")
    assert told(None) == ("the model names no run", False)
    assert "0" * 32 in told("0" * 32)[0]
    assert "gone.csv" in told(log(str(tmp_path / "gone.csv")))[0]
    assert "data set customers: " in told(log(str(tmp_path / "torn.parquet")))[0]
    assert "neither Parquet nor CSV" in told(log(str(tmp_path / "customers.xlsx")))[0]


def test_a_folder_without_readable_mlmodel_names_no_run(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    assert "MLmodel" in samples(mlflow_server, None).take(VERSION, tmp_path).told
    (tmp_path / "MLmodel").write_text("no: [yaml")
    assert samples(mlflow_server, None).take(VERSION, tmp_path).columns == ()


def test_an_mlflow_that_is_not_there_is_asked_again_another_time(tmp_path: Path) -> None:
    def nobody() -> ReferenceData:
        raise ReferenceDataError("nobody at https://me:secret@host/data?signature=abc has it", retryable=True)

    found = LoggedSamples(nobody, lambda _: "run").take(VERSION, model(tmp_path))
    assert found == Sample("nobody at https://host/data has it", retryable=True)


def test_what_fails_in_words_of_its_own_is_told_as_well(tmp_path: Path) -> None:
    def strange(_: ModelVersion) -> str:
        raise LookupError("a library's\nown words")

    found = LoggedSamples(FakeReferenceData, strange).take(VERSION, model(tmp_path))
    assert found == Sample("LookupError: a library's own words", retryable=True)


def test_a_source_that_does_not_answer_is_not_waited_for(mlflow_server: MlflowServer, log: Log, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        run_id = log(f"http://127.0.0.1:{silent.getsockname()[1]}/customers.csv")
        began = time.monotonic()
        found = samples(mlflow_server, run_id, seconds=0.5).take(VERSION, model(tmp_path))
        assert time.monotonic() - began < 5
        assert found == Sample("reading it took longer than 0.5 s", retryable=True)


def test_whoever_waits_is_let_go_when_builds_end(mlflow_server: MlflowServer, log: Log, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        reader = samples(mlflow_server, log(f"http://127.0.0.1:{silent.getsockname()[1]}/customers.csv"))
        found: list[Sample] = []
        waiting = Thread(target=lambda: found.append(reader.take(VERSION, model(tmp_path))))
        waiting.start()
        silent.accept()[0].close()
        reader.close()
        waiting.join(30)
        assert not waiting.is_alive()
        found.append(reader.take(VERSION, model(tmp_path)))
        assert found[1] == Sample("the build was ended", retryable=True)


def test_a_versions_own_data_set_is_part_of_its_proof(
    mlflow_server: MlflowServer, client: MlflowClient, log: Log, churn_model: Path, tmp_path: Path
) -> None:
    rows = pd.DataFrame({"tenure": [3.0, 400.0, None], "charges": [80.5, -1.0, 2.0], "left": [1, 0, 0]})
    rows.to_csv(tmp_path / "customers.csv", index=False)
    name, registry = f"proved-{uuid.uuid4().hex}", MlflowRegistry(mlflow_server.uri)
    client.create_registered_model(name)
    for source in ("customers.csv", "gone.csv"):
        run_id = log(str(tmp_path / source))
        client.log_artifacts(run_id, str(churn_model), "model")
        client.create_model_version(name, f"runs:/{run_id}/model", run_id)

    def proved(version: int) -> str:
        """The line of the proof, from a home of its own."""
        known = LoggedSamples(lambda: MlflowReference(mlflow_server.uri), lambda one: registry.describe(one).run_id)
        home = with_kept_environments(tmp_path / str(version))
        builder = LocalImageBuilder(home, registry, samples=known)
        request = ImageRequest(ModelVersion(name, version), f"models:/{name}/{version}", server_digest())
        builder.build(request)
        while (status := builder.find(request)).state is BuildState.BUILDING:
            time.sleep(0.02)
        builder.close()
        assert status.proof, status
        assert status.proof.compiled
        return status.proof.data

    assert proved(1).startswith("2 rows of data set customers, logged with the run; not fitting: 1, ")
    assert proved(2).startswith("no data set: data set customers: ")
