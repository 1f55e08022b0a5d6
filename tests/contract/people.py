"""Who works on a registry under test: the engine, by both ports, and people, by MLflow's own means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from registry_hooks.model_version import ModelVersion
from registry_hooks.registry import ChangeFeed, ModelRegistry


class Registry(ModelRegistry, ChangeFeed, Protocol):
    """Both ports in one."""


class Person(Protocol):
    """What people do to a registry."""

    def register(self, model: str, *, run_id: str | None = "run") -> ModelVersion: ...
    def transition_stage(self, model: str, version: int, stage: str | None, archive_existing: bool = False) -> None: ...
    def set_alias(self, model: str, alias: str, version: int | None) -> None: ...
    def delete_version(self, model: str, version: int) -> None: ...
    def delete_model(self, model: str) -> None: ...
    def rename_model(self, model: str, name: str) -> None: ...
    def artifacts(self, version: ModelVersion) -> Mapping[str, bytes]: ...
