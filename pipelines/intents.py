"""From what changed in the registry to what is wished.

Pure. A transition that the engine made itself is nobody's wish; everything else that enters a managed
channel is one. Leaving a channel makes no intent of its own: a rollout sees by the holders that its
candidate was withdrawn, and an empty live channel is told by `emptied`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from pipelines.live import Live
from pipelines.reconcile import expected, told
from pipelines.rollout import Goal, Intent, Origin, Rollout
from registry_hooks.model_version import Change, Channel, ModelVersion, Transition


@dataclass(frozen=True, slots=True)
class Managed:
    """What the intents of one model depend on."""

    live_channel: Channel
    pre_live: Channel | None
    live: Live | None
    rollouts: tuple[Rollout, ...] = ()
    """The model's active rollouts."""


def wish(transition: Transition, managed: Managed, now: datetime) -> Intent | None:
    """The intent that follows from `transition`, or None where nobody wished anything."""
    if transition.change is not Change.ENTERED or _own(transition, managed.rollouts):
        return None
    if transition.channel == managed.live_channel:
        return _live_wish(transition, managed, now)
    if transition.channel == managed.pre_live and not _ready_already(transition.version, managed):
        return _intent(transition, Goal.READY)
    return None


def emptied(channel: Channel, live: Live | None, holders: Iterable[int], rollouts: Iterable[Rollout]) -> bool:
    """Whether the live channel is empty although something is live and nothing is under way."""
    under_way = any(rollout.intent.channel == channel and not told(rollout) for rollout in rollouts)
    return live is not None and live.stable is not None and not under_way and not set(holders)


def rollout_id(intent: Intent) -> str:
    """The id of the rollout that carries out `intent`; the same intent never makes two."""
    return hashlib.sha256(intent.id.encode()).hexdigest()[:12]


def _own(transition: Transition, rollouts: Iterable[Rollout]) -> bool:
    made = (transition.version, transition.channel, transition.change)
    return any(made in expected(rollout) for rollout in rollouts)


def _live_wish(transition: Transition, managed: Managed, now: datetime) -> Intent | None:
    version = transition.version.version
    live = managed.live
    if _is_live(transition.version, live):
        busy = any(rollout.intent.channel == transition.channel for rollout in managed.rollouts)
        return _intent(transition, Goal.ABORT) if busy else None
    fast = live is not None and live.served(version, now)
    return _intent(transition, Goal.RESTORE if fast else Goal.LIVE)


def _is_live(version: ModelVersion, live: Live | None) -> bool:
    return live is not None and live.stable is not None and live.stable.version == version


def _ready_already(version: ModelVersion, managed: Managed) -> bool:
    """A version that is live, or on its way there, needs no second rollout for the channel before it."""
    return _is_live(version, managed.live) or any(
        rollout.version == version and rollout.intent.goal is not Goal.READY for rollout in managed.rollouts
    )


def _intent(transition: Transition, goal: Goal) -> Intent:
    parts = (transition.version, transition.channel, transition.at, goal)
    return Intent(
        id=hashlib.sha256(repr(parts).encode()).hexdigest()[:20],
        goal=goal,
        channel=transition.channel,
        model=transition.version.model,
        version=transition.version.version,
        origin=Origin.TRANSITION,
        at=transition.at,
        actor=transition.actor,
        reason=f"version {transition.version.version} entered {transition.channel}",
        came_from=transition.came_from,
    )
