"""A registry in memory: the port, the feed, and what a person can do to a real one.

Times come from `clock`, which a test sets; `broken` makes every call of the port fail as an unreachable
server does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from registry_hooks.model_version import (
    STAGES,
    Channel,
    ChannelKind,
    Holding,
    ModelVersion,
    Snapshot,
    VersionDetails,
)
from registry_hooks.registry import RegistryError, UnknownVersion


@dataclass(frozen=True, slots=True)
class StoredVersion:
    """One version as the registry keeps it."""

    created: datetime
    changed: datetime
    stage: str | None = None
    tags: Mapping[str, str] = field(default_factory=dict)
    run_id: str | None = None
    files: Mapping[str, bytes] = field(default_factory=lambda: {"MLmodel": b"flavors: {}\n"})
    artifacts: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(slots=True)
class StoredModel:
    """One registered model: its versions, its aliases, and a count that every stage change moves on."""

    versions: dict[int, StoredVersion] = field(default_factory=dict)
    aliases: dict[str, int] = field(default_factory=dict)
    last: int = 0
    change: int = 0


class FakeRegistry:
    """Implements `ModelRegistry` and `ChangeFeed`."""

    def __init__(self, clock: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self.clock = clock
        self.broken = False
        self.models: dict[str, StoredModel] = {}
        self._changes = 0
        self._seen: int | None = None

    # What a person does.

    def register(self, model: str, *, run_id: str | None = "run") -> ModelVersion:
        """Add the next version of `model`, and the model where it is new."""
        stored = self.models.setdefault(model, StoredModel())
        stored.last += 1
        now = self.clock()
        stored.versions[stored.last] = StoredVersion(created=now, changed=now, run_id=run_id)
        self._touch(stored)
        return ModelVersion(model, stored.last)

    def transition_stage(self, model: str, version: int, stage: str | None, archive_existing: bool = False) -> None:
        """Move a version to a stage; with `archive_existing`, whoever holds it now is archived."""
        self._stored(ModelVersion(model, version))
        stored = self.models[model]
        holders = [v for v, s in stored.versions.items() if s.stage == stage and v != version]
        for holder in holders if archive_existing else []:
            self._change(stored, holder, "Archived")
        self._change(stored, version, stage)

    def set_alias(self, model: str, alias: str, version: int | None) -> None:
        """Point an alias at a version, or remove it."""
        if version is None:
            self.models[model].aliases.pop(alias, None)
        else:
            self._stored(ModelVersion(model, version))
            self.models[model].aliases[alias] = version

    def delete_version(self, model: str, version: int) -> None:
        stored = self.models[model]
        del stored.versions[version]
        stored.aliases = {alias: holder for alias, holder in stored.aliases.items() if holder != version}
        self._touch(stored)

    def delete_model(self, model: str) -> None:
        del self.models[model]

    def rename_model(self, model: str, name: str) -> None:
        stored = self.models[name] = self.models.pop(model)
        for version in stored.versions:
            self._change(stored, version, stored.versions[version].stage)

    # `ModelRegistry`.

    def snapshot(self, models: Collection[str] | None = None) -> Snapshot:
        self._answer()
        names = frozenset(self.models if models is None else models)
        there = names & self.models.keys()
        now = self.clock()
        return Snapshot(
            models=there,
            holdings=frozenset(holding for name in there for holding in self._holdings(name, now)),
            gone=names - there,
            at=now,
            idle={
                ModelVersion(name, number): version.changed
                for name in there
                for number, version in self.models[name].versions.items()
                if version.stage is None
            },
        )

    def describe(self, version: ModelVersion) -> VersionDetails:
        self._answer()
        stored = self._stored(version)
        aliases = self.models[version.model].aliases
        return VersionDetails(
            version=version,
            run_id=stored.run_id,
            source=f"models:/{version.model}/{version.version}",
            status="READY",
            stage=stored.stage,
            aliases=tuple(sorted(alias for alias, holder in aliases.items() if holder == version.version)),
            tags=stored.tags,
            created=stored.created,
        )

    def assign(self, version: ModelVersion, channel: Channel | None, *, leave: Channel | None = None) -> None:
        self._answer()
        self._stored(version)
        if channel is not None:
            self._enter(version, channel)
        if leave is not None and leave != channel:
            self._leave(version, leave)

    def annotate(
        self, version: ModelVersion, tags: Mapping[str, str], files: Mapping[str, bytes] | None = None
    ) -> None:
        self._answer()
        stored = self._stored(version)
        kept = {key: value for key, value in {**stored.tags, **tags}.items() if value}
        artifacts = {**stored.artifacts, **((files or {}) if stored.run_id else {})}
        self.models[version.model].versions[version.version] = replace(stored, tags=kept, artifacts=artifacts)
        if files and not stored.run_id:
            raise RegistryError(f"{version} has no run that could keep files", retryable=False)

    def download(self, version: ModelVersion, destination: Path) -> Path:
        self._answer()
        folder = destination / "model"
        for name, content in self._stored(version).files.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(content)
        return folder

    # `ChangeFeed`.

    def changed(self) -> Snapshot:
        self._answer()
        seen, self._seen = self._seen, self._changes
        if seen is None:
            return self.snapshot()
        return self.snapshot([name for name, model in self.models.items() if model.change > seen])

    def cost(self, models: int) -> int:
        return 2 * models

    def artifacts(self, version: ModelVersion) -> Mapping[str, bytes]:
        """What `annotate` stored with the version's run."""
        return self._stored(version).artifacts

    def _answer(self) -> None:
        if self.broken:
            raise RegistryError("the registry does not answer", retryable=True)

    def _stored(self, version: ModelVersion) -> StoredVersion:
        model = self.models.get(version.model)
        if model is None or version.version not in model.versions:
            raise UnknownVersion(f"there is no {version}")
        return model.versions[version.version]

    def _holdings(self, name: str, now: datetime) -> Iterable[Holding]:
        model = self.models[name]
        for number, version in model.versions.items():
            if version.stage in STAGES:
                yield Holding(ModelVersion(name, number), Channel(ChannelKind.STAGE, version.stage), version.changed)
        for alias, holder in model.aliases.items():
            yield Holding(ModelVersion(name, holder), Channel(ChannelKind.ALIAS, alias), now)

    def _enter(self, version: ModelVersion, channel: Channel) -> None:
        model = self.models[version.model]
        if channel.kind is ChannelKind.ALIAS:
            model.aliases[channel.name] = version.version
        elif model.versions[version.version].stage != channel.name:
            self._change(model, version.version, channel.name)

    def _leave(self, version: ModelVersion, leave: Channel) -> None:
        model = self.models[version.model]
        if leave.kind is ChannelKind.STAGE and model.versions[version.version].stage == leave.name:
            self._change(model, version.version, None)
        if leave.kind is ChannelKind.ALIAS and model.aliases.get(leave.name) == version.version:
            del model.aliases[leave.name]

    def _change(self, model: StoredModel, version: int, stage: str | None) -> None:
        held = None if stage == "None" else stage
        model.versions[version] = replace(model.versions[version], stage=held, changed=self.clock())
        self._touch(model)

    def _touch(self, model: StoredModel) -> None:
        self._changes += 1
        model.change = self._changes
