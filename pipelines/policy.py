"""What a team wants for its models: which channels count, how a rollout goes, what is watched afterwards."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from monitoring.drift import DriftPolicy
from pipelines.rollout import RolloutPolicy
from registry_hooks.model_version import Channel, ChannelKind


class PolicyError(Exception):
    """A policy that cannot be used; `problems` has one line for each mistake."""

    def __init__(self, problems: tuple[str, ...]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


class OnEmpty(StrEnum):
    """What follows when no version holds the live channel any more."""

    KEEP = "keep"
    """Traffic stays on the last good version, and an alert says so."""
    REMOVE = "remove"
    """The model is taken off the gateway."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What applies to one model."""

    live: Channel = Channel(ChannelKind.STAGE, "Production")
    """The channel whose holder gets the traffic."""
    pre_live: Channel | None = Channel(ChannelKind.STAGE, "Staging")
    """A version that enters this channel is checked, built and proved, so that going live is fast."""
    on_empty: OnEmpty = OnEmpty.KEEP
    require: tuple[Channel, ...] = ()
    """Channels that a version must be in, or have been in, before it may enter the live one."""
    rollout: RolloutPolicy = RolloutPolicy()
    drift: DriftPolicy | None = DriftPolicy()
    """None where the model is not watched."""
