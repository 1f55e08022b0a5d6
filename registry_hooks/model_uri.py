"""Models by URI, as people give them to MLflow's own commands: a version, an alias, a run's model, a place in a store.

What the URI names is found out first, because most of them name something that never changes, which whoever asks may
have already.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion

from registry_hooks.mlflow_calls import bound_requests, translated
from registry_hooks.mlflow_registry import fetch
from registry_hooks.registry import RegistryError, UnknownVersion

_REGISTERED = re.compile(r"models:/(?P<name>[^/]+?)(?:/(?P<which>[^/]+)|@(?P<alias>[^/@]+))?")
"""A name with a version, a stage, ``latest`` or an alias; alone it is the id of a logged model."""

_OF_RUN = re.compile(r"runs:/+(?P<run>[^/]+)/")


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
    run_id: str | None = None
    """The run that made it, where the URI or the registry tells."""


class ModelUris:
    """Finds and downloads models by URI. Every method raises `RegistryError`."""

    def __init__(self, tracking_uri: str | None = None) -> None:
        """At the MLflow server or store `tracking_uri`, else at the one that MLflow's own settings name."""
        bound_requests()
        self.server = tracking_uri or mlflow.get_tracking_uri()
        self._client = MlflowClient(self.server, self.server)

    def find(self, uri: str) -> NamedModel:
        if not uri.startswith("models:"):
            return NamedModel(_last(uri), 0, uri, "", _run(uri))
        asked = _REGISTERED.fullmatch(uri)
        if asked is None:
            forms = "models:/churn/7, models:/churn/Production, models:/churn/latest or models:/churn@champion"
            raise RegistryError(f"{uri} names no model; write {forms}", retryable=False)
        if asked["which"] is None and asked["alias"] is None:
            return NamedModel(_last(uri), 0, uri, f"{self.server} {uri}")
        with translated(f"looking up {uri}"):
            found = self._version(asked)
        exact = f"models:/{found.name}/{found.version}"
        lasting = f"{self.server} {exact} {found.creation_timestamp}"
        return NamedModel(found.name, int(found.version), exact, lasting, found.run_id or None)

    def download(self, model: NamedModel, destination: Path) -> Path:
        """The folder below `destination` that holds ``MLmodel``."""
        with translated(f"downloading {model.uri}"):
            return fetch(self._place(model), str(destination), self.server)

    def _place(self, model: NamedModel) -> str:
        """Where the files are. (MLflow would look its own URIs up at the server of its settings only.)"""
        if model.version:
            return str(self._client.get_model_version_download_uri(model.name, str(model.version)))
        if model.uri.startswith("models:"):
            return str(self._client.get_logged_model(model.name).artifact_location)
        return model.uri

    def _version(self, asked: re.Match[str]) -> MlflowVersion:
        name, which = asked["name"], asked["which"]
        if which is None:
            return self._client.get_model_version_by_alias(name, asked["alias"])
        if which.isdigit():
            return self._client.get_model_version(name, which)
        versions = [one for one in self._client.search_model_versions(f"name='{name}'") if _in(one, which)]
        if not versions:
            raise UnknownVersion(f"{asked[0]}: no version of {name} is there")
        return max(versions, key=lambda one: int(one.version))


def _in(version: MlflowVersion, which: str) -> bool:
    return which.lower() in ("latest", str(version.current_stage).lower())


def _run(uri: str) -> str | None:
    named = _OF_RUN.match(uri)
    return named["run"] if named else None


def _last(uri: str) -> str:
    """What a model is called that has no other name."""
    return uri.rstrip("/").rpartition("/")[2] or "model"
