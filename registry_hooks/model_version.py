"""What the registry says, as values: versions, channels, who holds them, and what changed.

Pure: no I/O and no third-party import, so that every decision about the registry can be tested as a table.
A channel hides the one difference that matters to the rest of the product, whether a team marks its live
version by a stage (several versions can hold it at once) or by an alias (exactly one can).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


@dataclass(frozen=True, slots=True, order=True)
class ModelVersion:
    """One version of one registered model, for example ``churn`` 7."""

    model: str
    version: int

    def __str__(self) -> str:
        return f"{self.model} {self.version}"


class ChannelKind(StrEnum):
    """How a channel is written down in MLflow."""

    STAGE = "stage"
    """A stage such as ``Production``; several versions can hold it at once."""
    ALIAS = "alias"
    """An alias such as ``@champion``; at most one version holds it."""


@dataclass(frozen=True, slots=True, order=True)
class Channel:
    """A place in the registry that says what should be live or made ready."""

    kind: ChannelKind
    name: str

    @classmethod
    def parse(cls, text: str) -> Channel:
        """``Production`` is a stage, ``@champion`` an alias; `ValueError` for anything else."""
        if text.startswith("@") and len(text) > 1:
            return cls(ChannelKind.ALIAS, text[1:])
        if text in STAGES:
            return cls(ChannelKind.STAGE, text)
        raise ValueError(f"{text!r} is neither a stage ({', '.join(STAGES)}) nor an alias (@name)")

    def __str__(self) -> str:
        return f"@{self.name}" if self.kind is ChannelKind.ALIAS else self.name


STAGES = ("Staging", "Production", "Archived")
"""MLflow's stages a version can be in, other than ``None``."""


@dataclass(frozen=True, slots=True, order=True)
class Holding:
    """A version holds a channel, since a time that the registry tells (stages) or that we saw (aliases)."""

    version: ModelVersion
    channel: Channel
    since: datetime = field(compare=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What the registry said at one moment about the models in `models`.

    A model in `models` without holdings exists and holds no channel; a model in `gone` no longer exists.
    Models in neither were not read, and nothing follows about them.
    """

    models: frozenset[str]
    holdings: frozenset[Holding]
    gone: frozenset[str] = frozenset()
    at: datetime | None = field(default=None, compare=False)
    """When the reading began; dates what the registry itself gives no time for."""
    idle: Mapping[ModelVersion, datetime] = field(default_factory=dict, compare=False)
    """When a version that is in no stage last changed, which dates its leaving one; the rest can be left out."""

    @property
    def known(self) -> frozenset[str]:
        """The models that were read, whether they are there or not."""
        return self.models | self.gone

    def then(self, later: Snapshot) -> Snapshot:
        """This snapshot with everything that `later` says in place of what this one says of the same models."""
        known = later.known
        kept = frozenset(h for h in self.holdings if h.version.model not in known)
        idle = {version: since for version, since in self.idle.items() if version.model not in known}
        return Snapshot(
            models=(self.models - later.gone) | later.models,
            holdings=kept | later.holdings,
            gone=(self.gone - later.models) | later.gone,
            at=self.at or later.at,
            idle={**idle, **later.idle},
        )


class Change(StrEnum):
    """What a version did to a channel."""

    ENTERED = "entered"
    """The version holds the channel now and did not before."""
    LEFT = "left"
    """The version held the channel before and does not now."""


@dataclass(frozen=True, slots=True)
class Transition:
    """A version entering or leaving a channel, as observed.

    `came_from` is the stage that the version was in before it entered, None where it had none.
    """

    version: ModelVersion
    channel: Channel
    change: Change
    at: datetime
    actor: str | None = None
    came_from: str | None = None


@dataclass(frozen=True, slots=True)
class VersionDetails:
    """Everything about one version that the checks, the build and the drift job need."""

    version: ModelVersion
    run_id: str | None
    source: str
    status: str
    """MLflow's own word: ``READY``, ``PENDING_REGISTRATION`` or ``FAILED_REGISTRATION``."""
    stage: str | None
    aliases: tuple[str, ...]
    tags: Mapping[str, str]
    created: datetime
