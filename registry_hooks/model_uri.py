"""Models by URI, as people give them to MLflow's own commands: a version, an alias, a run's model, a place in a store.

What the URI names is found out first, because most of them name something that never changes, which whoever asks may
have already.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.store.artifact.utils.models import get_model_name_and_version

from registry_hooks.mlflow_calls import bound_requests, translated
from registry_hooks.mlflow_registry import fetch


@dataclass(frozen=True, slots=True)
class NamedModel:
    """What a URI names."""

    name: str
    version: int
    """0 where it is no version of a registered model."""
    uri: str
    """The same in exact words: an alias or a stage stands for a version."""
    lasting: str
    """Names the content for good; empty where that may change under the same URI."""


class ModelUris:
    """Finds and downloads models by URI. Every method raises `RegistryError`."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        """At the MLflow server or store `tracking_uri`, else at the one that MLflow's own settings name."""
        bound_requests()
        self._server = tracking_uri or mlflow.get_tracking_uri()
        mlflow.set_tracking_uri(self._server)
        self._client = MlflowClient(self._server, self._server)

    def find(self, uri: str) -> NamedModel:
        scheme, _, rest = uri.partition(":/")
        last = rest.rstrip("/").rpartition("/")[2] or "model"
        if scheme != "models":
            return NamedModel(last, 0, uri, "")
        with translated(f"looking up {uri}"):
            found = get_model_name_and_version(self._client, uri)  # type: ignore[no-untyped-call]
        if len(found) == 1:  # a logged model, by its id
            return NamedModel(last, 0, uri, f"{self._server} {uri}")
        return self._version(found[0], int(found[1]))

    def download(self, model: NamedModel, destination: Path) -> Path:
        """The folder below `destination` that holds ``MLmodel``."""
        with translated(f"downloading {model.uri}"):
            return fetch(model.uri, str(destination), self._server)

    def _version(self, name: str, number: int) -> NamedModel:
        """A version that was deleted and made again under its old number is told apart by its time."""
        uri = f"models:/{name}/{number}"
        with translated(f"looking up {uri}"):
            found = self._client.get_model_version(name, str(number))
        return NamedModel(name, number, uri, f"{self._server} {uri} {found.creation_timestamp}")
