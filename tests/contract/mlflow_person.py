"""What a person does to a real MLflow registry, with the same words as `FakeRegistry`."""

from __future__ import annotations

import inspect
import sqlite3
import tempfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts, list_artifacts
from mlflow.exceptions import MlflowException

from registry_hooks.model_version import ModelVersion
from tests.fixtures.registry import MlflowServer

_transition = inspect.unwrap(MlflowClient.transition_model_version_stage)


class MlflowPerson:
    """Acts through MLflow's API as the UI does."""

    def __init__(self, uri: str, database: Path) -> None:
        self.client = MlflowClient(uri, uri)
        self._uri = uri
        self._database = database

    @classmethod
    def at(cls, server: MlflowServer) -> MlflowPerson:
        return cls(server.uri, server.log.parent / "mlflow.db")

    def register(self, model: str, *, run_id: str | None = "run") -> ModelVersion:
        """With a run: one that logged a small model. Without: a source outside MLflow."""
        self._ensure(model)
        if run_id is None:
            return self.version_of(model, "s3://nowhere/model", None)
        run = self.run_with_model()
        return self.version_of(model, f"runs:/{run}/model", run)

    def version_of(self, model: str, source: str, run_id: str | None, model_id: str | None = None) -> ModelVersion:
        self._ensure(model)
        made = self.client.create_model_version(model, source, run_id, await_creation_for=0, model_id=model_id)
        return ModelVersion(model, int(made.version))

    def run_with_model(self) -> str:
        """A run with a model folder ``model`` among its artifacts."""
        run = str(self.client.create_run("0").info.run_id)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "MLmodel").write_text("flavors: {}\n")
            (Path(folder) / "data").mkdir()
            (Path(folder) / "data" / "weights.bin").write_bytes(b"\0\1")
            self.client.log_artifacts(run, folder, "model")
        return run

    def logged_model(self) -> str:
        """A logged model of MLflow 3, which registered versions name as ``models:/m-...``."""
        made = self.client.create_logged_model("0")
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "MLmodel").write_text("flavors: {}\n")
            self.client.log_model_artifacts(made.model_id, folder)
        self.client.finalize_logged_model(made.model_id, "READY")
        return str(made.model_id)

    def transition_stage(self, model: str, version: int, stage: str | None, archive_existing: bool = False) -> None:
        _transition(self.client, model, str(version), stage or "None", archive_existing)

    def set_alias(self, model: str, alias: str, version: int | None) -> None:
        if version is None:
            self.client.delete_registered_model_alias(model, alias)
        else:
            self.client.set_registered_model_alias(model, alias, str(version))

    def delete_version(self, model: str, version: int) -> None:
        self.client.delete_model_version(model, str(version))

    def delete_model(self, model: str) -> None:
        self.client.delete_registered_model(model)

    def rename_model(self, model: str, name: str) -> None:
        self.client.rename_registered_model(model, name)

    def artifacts(self, version: ModelVersion) -> Mapping[str, bytes]:
        """What ``promote/`` of the version's run holds."""
        run = str(self.client.get_model_version(version.model, str(version.version)).run_id)
        found = list_artifacts(run_id=run, artifact_path="promote", tracking_uri=self._uri) or []
        return {item.path: self._content(run, item.path) for item in found}

    def stamp(self, model: str) -> int:
        """MLflow's time stamp of the model, in milliseconds."""
        return int(self.client.get_registered_model(model).last_updated_timestamp)

    def promote_stamped(self, version: ModelVersion, stamp: int) -> None:
        """A transition to Production as another server of the same registry would write it with that time stamp."""
        with closing(sqlite3.connect(self._database, timeout=30)) as database, database:
            database.execute(
                "UPDATE model_versions SET current_stage = 'Production', last_updated_time = ? "
                "WHERE name = ? AND version = ?",
                (stamp, version.model, version.version),
            )
            database.execute(
                "UPDATE registered_models SET last_updated_time = ? WHERE name = ?", (stamp, version.model)
            )

    def _content(self, run: str, path: str) -> bytes:
        with tempfile.TemporaryDirectory() as folder:
            return Path(
                download_artifacts(run_id=run, artifact_path=path, dst_path=folder, tracking_uri=self._uri)
            ).read_bytes()

    def _ensure(self, model: str) -> None:
        try:
            self.client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
