"""An MLflow server as `ModelRegistry` and `ChangeFeed`.

Writing looks first and changes only what differs, so that repeating it after a crash leaves no mark, not even
a newer time stamp. MLflow has no compare-and-set: between the look and the write lies the time of one request,
and the next poll shows who won.
"""

from __future__ import annotations

import inspect
import tempfile
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion as MlflowVersion
from mlflow.utils.mlflow_tags import MLFLOW_GIT_COMMIT

from registry_hooks.mlflow_calls import bound_requests, of_store, translated
from registry_hooks.mlflow_reading import MlflowReading
from registry_hooks.model_version import STAGES, Channel, ChannelKind, ModelVersion, Snapshot, VersionDetails
from registry_hooks.registry import RegistryError

NO_STAGE = "None"
"""MLflow's name for being in no stage."""

_transition = inspect.unwrap(MlflowClient.transition_model_version_stage)
"""The call without MLflow's notice that stages are to go away, which our users have decided about already."""


class MlflowRegistry:
    """Implements `ModelRegistry` and `ChangeFeed` over the MLflow server at `uri`."""

    def __init__(self, uri: str) -> None:
        bound_requests()
        self._uri = uri
        self._client = MlflowClient(uri, uri)
        self._reading = MlflowReading(self._client)

    def snapshot(self, models: Collection[str] | None = None) -> Snapshot:
        with translated(f"reading {self._uri}"):
            return self._reading.everything() if models is None else self._reading.by_name(models)

    def changed(self) -> Snapshot:
        with translated(f"asking {self._uri} what changed"):
            return self._reading.changed()

    def cost(self, models: int) -> int:
        return self._reading.cost(models)

    def describe(self, version: ModelVersion) -> VersionDetails:
        found = self._get(version)
        return VersionDetails(
            version=version,
            run_id=found.run_id or None,
            source=found.source or "",
            status=found.status,
            stage=_stage(found),
            aliases=tuple(sorted(found.aliases)),
            tags=dict(found.tags),
            created=datetime.fromtimestamp(found.creation_timestamp / 1000, UTC),
        )

    def commit(self, version: ModelVersion) -> str | None:
        """The git commit that the version's run was made from; None where it has no run, or that does not tell it.

        Raises `RegistryError`.
        """
        run = self._get(version).run_id
        if not run:
            return None
        try:
            with translated(f"looking up the run of {version}", of_version=False):
                return self._client.get_run(run).data.tags.get(MLFLOW_GIT_COMMIT)
        except RegistryError as error:
            if error.retryable:
                raise
            return None

    def assign(self, version: ModelVersion, channel: Channel | None, *, leave: Channel | None = None) -> None:
        now = self.describe(version)
        with translated(f"moving {version} to {channel or NO_STAGE}"):
            if channel is not None and not _holds(now, channel):
                self._enter(version, channel)
            if leave is not None and _holds(now, leave) and not _replaced(leave, channel):
                self._leave(version, leave)

    def annotate(
        self, version: ModelVersion, tags: Mapping[str, str], files: Mapping[str, bytes] | None = None
    ) -> None:
        now = self.describe(version)
        with translated(f"setting tags on {version}"):
            for key, value in tags.items():
                if value and now.tags.get(key) != value:
                    self._client.set_model_version_tag(version.model, str(version.version), key, value)
                elif not value and key in now.tags:
                    self._client.delete_model_version_tag(version.model, str(version.version), key)
        if files:
            self._keep(now, files)

    def download(self, version: ModelVersion, destination: Path) -> Path:
        whole = destination / "model"
        if (whole / "MLmodel").is_file():
            return whole
        with translated(f"asking where {version} is"):
            source = self._client.get_model_version_download_uri(version.model, str(version.version))
        doing = f"downloading {version} from {source}"
        with of_store(doing), translated(doing, of_version=False):
            destination.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".download-", dir=destination) as folder:
                _move_in(fetch(source, folder, self._uri), whole)
        return whole

    def location(self, version: ModelVersion) -> str:
        """URI of the folder with the version's files in their store. `RegistryError`."""
        with translated(f"asking where {version} is"):
            named = urlsplit(self._client.get_model_version_download_uri(version.model, str(version.version)))
            if named.scheme == "models":
                return str(self._client.get_logged_model(named.path.strip("/")).artifact_location)
            if named.scheme == "runs":
                run, _, path = named.path.lstrip("/").partition("/")
                return f"{self._client.get_run(run).info.artifact_uri}/{path}"
            return named.geturl()

    def _get(self, version: ModelVersion) -> MlflowVersion:
        with translated(f"looking up {version}"):
            return self._client.get_model_version(version.model, str(version.version))

    def _enter(self, version: ModelVersion, channel: Channel) -> None:
        if channel.kind is ChannelKind.ALIAS:
            self._client.set_registered_model_alias(version.model, channel.name, str(version.version))
        else:
            _transition(self._client, version.model, str(version.version), channel.name)

    def _leave(self, version: ModelVersion, leave: Channel) -> None:
        if leave.kind is ChannelKind.ALIAS:
            self._client.delete_registered_model_alias(version.model, leave.name)
        else:
            _transition(self._client, version.model, str(version.version), NO_STAGE)

    def _keep(self, details: VersionDetails, files: Mapping[str, bytes]) -> None:
        if details.run_id is None:
            raise RegistryError(f"{details.version} has no run that could keep files", retryable=False)
        storing = translated(f"storing files of {details.version}", of_version=False)
        with storing, tempfile.TemporaryDirectory() as folder:
            for name, content in files.items():
                path = PurePosixPath(name)
                local = Path(folder) / path.name
                local.write_bytes(content)
                self._client.log_artifact(details.run_id, str(local), str(path.parent) if path.parent.name else None)


def fetch(source: str, folder: str, uri: str) -> Path:
    """Download into `folder`; the folder below it that holds ``MLmodel``."""
    got = Path(mlflow.artifacts.download_artifacts(source, dst_path=folder, tracking_uri=uri, registry_uri=uri))
    if not (got / "MLmodel").is_file():
        raise RegistryError(f"{source} holds no MLmodel", retryable=False)
    return got


def _move_in(copy: Path, whole: Path) -> None:
    """Put the finished copy in its place, unless another one got there meanwhile."""
    try:
        copy.rename(whole)
    except OSError:
        if not (whole / "MLmodel").is_file():
            raise


def _stage(found: MlflowVersion) -> str | None:
    return found.current_stage if found.current_stage in STAGES else None


def _holds(details: VersionDetails, channel: Channel) -> bool:
    return channel.name in details.aliases if channel.kind is ChannelKind.ALIAS else channel.name == details.stage


def _replaced(leave: Channel, channel: Channel | None) -> bool:
    """A version is in one stage at a time, so that entering another one left this one already."""
    both = (leave.kind, channel and channel.kind) == (ChannelKind.STAGE, ChannelKind.STAGE)
    return leave == channel or both
