"""The port to the model registry: what the rest of the product may ask of it and tell it.

Five methods carry both directions. Reading is by snapshot, so that a lost event can never lose a wish;
writing is idempotent, so that a tick may repeat it after a crash.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Protocol

from registry_hooks.model_version import Channel, ModelVersion, Snapshot, VersionDetails


class RegistryError(Exception):
    """The registry did not do as asked; `retryable` tells whether trying again can help."""

    def __init__(self, message: str, *, retryable: bool) -> None:
        super().__init__(message)
        self.retryable = retryable


class UnknownVersion(RegistryError):
    """There is no such model or version in the registry."""

    def __init__(self, message: str) -> None:
        super().__init__(message, retryable=False)


class ModelRegistry(Protocol):
    """A model registry. Every method raises `RegistryError`."""

    def snapshot(self, models: Collection[str] | None = None) -> Snapshot:
        """Who holds which channel, read in full for `models`, or for every model where it is None."""
        ...

    def describe(self, version: ModelVersion) -> VersionDetails:
        """One version; `UnknownVersion` where it does not exist."""
        ...

    def assign(self, version: ModelVersion, channel: Channel | None, *, leave: Channel | None = None) -> None:
        """Put `version` into `channel`, and take it out of `leave`; repeating it changes nothing.

        A stage `leave` without a `channel` means stage ``None``; an alias is only removed from the version
        where that version still holds it.
        """
        ...

    def annotate(
        self, version: ModelVersion, tags: Mapping[str, str], files: Mapping[str, bytes] | None = None
    ) -> None:
        """Set tags on the version, and store `files` (path to content) as artifacts of its run.

        An empty value removes the tag; what is there already is not written again.
        Files of a version without a run are kept nowhere, and the method says so with a `RegistryError`
        after the tags were written.
        """
        ...

    def download(self, version: ModelVersion, destination: Path) -> Path:
        """Copy the version's model files below `destination`, whole or not at all.

        Returns the folder that holds ``MLmodel``; a copy that is there already is used.
        """
        ...


class ChangeFeed(Protocol):
    """What changed lately, at the cost of what changed. Every method raises `RegistryError`."""

    def changed(self) -> Snapshot:
        """The models in which a stage changed since the last call, read in full; every model at the first call.

        A new or deleted version counts as a change too; a model that was deleted or renamed away, and an alias that
        was moved, do not.
        """
        ...

    def cost(self, models: int) -> int:
        """How many requests `ModelRegistry.snapshot` makes to read so many models by name."""
        ...
