"""The data sets of MLflow runs: an artifact that the team put there, or what ``mlflow.log_input`` recorded.

MLflow records where a data set came from, not the data, and not which of its columns are targets or
predictions. So the source is read again, and may have changed or gone since: whoever wants to be sure logs the
artifact `ARTIFACT`. Its columns can be named as in the prediction log, which makes its predictions known too.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import mlflow.artifacts
import mlflow.data
import pandas as pd
import requests
from mlflow import MlflowClient
from mlflow.data.filesystem_dataset_source import FileSystemDatasetSource
from mlflow.data.http_dataset_source import HTTPDatasetSource
from mlflow.entities import DatasetInput
from mlflow.exceptions import MlflowException
from mlflow.utils.mlflow_tags import MLFLOW_DATASET_CONTEXT

from registry_hooks.mlflow_calls import bound_requests
from registry_hooks.reference import LoggedData, ReferenceDataError, Unavailable

ARTIFACT = "promote/reference.parquet"
"""Artifact of a version's run that goes before every data set logged with it."""
CONTEXTS = ("reference", "training", "train")
"""What MLflow calls the context of a data set, the most fitting first; other contexts come last."""
MOST_BYTES = 1 << 30
"""Larger files are not read."""

Failures = (MlflowException, requests.RequestException, OSError, ImportError, TypeError, ValueError)


class MlflowReference:
    """Implements `ReferenceData` on an MLflow tracking server."""

    def __init__(self, uri: str) -> None:
        bound_requests()
        self._uri = uri
        self._client = MlflowClient(tracking_uri=uri)

    def load(self, run_id: str | None) -> LoggedData | Unavailable:
        if run_id is None:
            return Unavailable("the version has no run")
        try:
            inputs = self._client.get_run(run_id).inputs
            folder = self._client.list_artifacts(run_id, ARTIFACT.partition("/")[0])
        except (MlflowException, requests.RequestException, OSError) as error:
            raise ReferenceDataError(f"run {run_id} cannot be read: {error}", retryable=True) from error
        if any(file.path == ARTIFACT for file in folder):
            return self._artifact(run_id)
        return _first_that_reads(_fitting_first(inputs.dataset_inputs if inputs else []))

    def _artifact(self, run_id: str) -> LoggedData:
        with tempfile.TemporaryDirectory() as place:
            try:
                path = mlflow.artifacts.download_artifacts(
                    run_id=run_id, artifact_path=ARTIFACT, dst_path=place, tracking_uri=self._uri
                )
                return LoggedData(f"artifact {ARTIFACT} of the run", _read(Path(path)))
            except Failures as error:
                raise ReferenceDataError(f"{ARTIFACT} cannot be read: {error}", retryable=True) from error


def _fitting_first(inputs: list[DatasetInput]) -> Iterator[DatasetInput]:
    def rank(item: DatasetInput) -> int:
        contexts = [tag.value for tag in item.tags if tag.key == MLFLOW_DATASET_CONTEXT]
        return min((CONTEXTS.index(c) for c in contexts if c in CONTEXTS), default=len(CONTEXTS))

    yield from sorted(inputs, key=rank)


def _first_that_reads(inputs: Iterator[DatasetInput]) -> LoggedData | Unavailable:
    reasons = []
    for item in inputs:
        name = f"data set {item.dataset.name}"
        try:
            return LoggedData(f"{name}, logged with the run", _fetch(item))
        except Failures as error:
            reasons.append(f"{name}: {str(error) or type(error).__name__}")
    return Unavailable("; ".join(reasons) or "no data set was logged with the run")


def _fetch(item: DatasetInput) -> pd.DataFrame:
    """Files only: tables of other systems need their own libraries, and code can not be asked for its data."""
    source = mlflow.data.get_source(item)
    if not isinstance(source, FileSystemDatasetSource | HTTPDatasetSource):
        raise TypeError(f"its source, {item.dataset.source_type}, is not a file")
    with tempfile.TemporaryDirectory() as place:
        # A local file is read where it is, everything else is copied first.
        return _read(Path(source.load(None if item.dataset.source_type == "local" else place)))


def _read(path: Path) -> pd.DataFrame:
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    if sum(file.stat().st_size for file in files) > MOST_BYTES:
        raise ValueError(f"{path.name} is larger than {MOST_BYTES >> 20} MiB")
    suffixes = path.suffixes[-2:]
    if path.is_dir() or ".parquet" in suffixes:
        return pd.read_parquet(path)
    if ".csv" in suffixes:
        return pd.read_csv(path, sep=_separator(path))
    if ".json" in suffixes or ".jsonl" in suffixes:
        return pd.read_json(path, lines=".jsonl" in suffixes)
    raise ValueError(f"{path.name} is neither Parquet nor CSV nor JSON")


def _separator(path: Path) -> str:
    with fsspec.open(str(path), "rt", compression="infer") as file:
        head = file.readline()
    return max(",;\t|", key=head.count)
