"""Which of the stored images stay, and why; all others may go.

Pure. An image stays while something needs it: a rollout under way, what is live or kept warm, or what runs. Besides
stays the newest image of each of the versions of a model that were built last, by the time of the build: what was
built last is what people go back and forth between, also where that is an old version. What a kept image stands on
stays with it. The gateway's newest image stays, because a gateway may be about to start from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from pipelines.live import Live
from pipelines.rollout import Intent, Rollout
from registry_hooks.model_version import ModelVersion
from serving.revision import Revision
from serving.stock import Kind, Stored


@dataclass(frozen=True, slots=True)
class Needed:
    """What is needed, and what for in words."""

    images: Mapping[str, str] = field(default_factory=dict, hash=False)
    """By a name that revisions know the image by."""
    versions: Mapping[ModelVersion, str] = field(default_factory=dict, hash=False)
    """Versions whose image is about to be looked for."""


@dataclass(frozen=True, slots=True)
class Kept:
    """Whether something stays."""

    stored: Stored
    why: str
    """Why it stays; empty where it goes."""


def needed(rollouts: Iterable[Rollout], waiting: Iterable[Intent], lives: Iterable[Live]) -> Needed:
    """What active `rollouts`, the intents that wait for one, and what is live need."""
    images, versions = dict[str, str](), dict[ModelVersion, str]()
    for intent in waiting:
        if intent.version is not None:
            versions[ModelVersion(intent.model, intent.version)] = "wished for"
    for rollout in rollouts:
        versions[rollout.version] = f"rollout {rollout.id}"
        images |= _named(f"rollout {rollout.id}", rollout.stable, rollout.candidate)
    for live in lives:
        images |= _named("kept warm", *(warm.revision for warm in live.warm))
        images |= _named("live", live.stable)
    return Needed(images, versions)


def _named(why: str, *revisions: Revision | None) -> dict[str, str]:
    return {revision.image: why for revision in revisions if revision is not None}


def judged(stored: Sequence[Stored], needs: Needed, last: int) -> tuple[Kept, ...]:
    """What stays of all that is `stored`; of each model also the `last` versions that were built."""
    newest = _newest(stored, last)
    why = {one.name: _needed(one, needs) or newest.get(one.name, "") for one in stored}
    by_name = {one.name: one for one in stored}
    open_ = [name for name, reason in why.items() if reason]
    while open_:
        above = by_name[open_.pop()]
        below = [name for name in above.stands_on if name in by_name and not why[name]]
        why |= dict.fromkeys(below, f"below {_called(above)}")
        open_ += below
    return tuple(Kept(one, why[one.name]) for one in stored)


def _needed(one: Stored, needs: Needed) -> str:
    by_image = next((needs.images[name] for name in sorted(one.names) if name in needs.images), "")
    by_version = next((needs.versions[version] for version in sorted(one.versions) if version in needs.versions), "")
    return by_image or (f"in use: {one.used}" if one.used else "") or by_version


def _newest(stored: Sequence[Stored], last: int) -> dict[str, str]:
    """Names of what stays because it is new, and how that is said."""
    built: dict[tuple[Kind, str], dict[int, tuple[datetime, str]]] = {}
    for one in stored:
        for version, at in one.versions.items():
            of_model = built.setdefault((one.kind, version.model), {})
            of_model[version.version] = max((at, one.name), of_model.get(version.version, (at, one.name)))
    why = f"of the last {last} versions built" if last > 1 else "of the last version built"
    ranked = [sorted(of_model.values(), reverse=True)[:last] for of_model in built.values()]
    gateways = [one for one in stored if one.kind is Kind.GATEWAY]
    latest = max(gateways, key=lambda one: (one.made, one.name), default=None)
    newest = {latest.name: "the newest of the gateway"} if latest is not None else {}
    return newest | {name: why for of_model in ranked for _, name in of_model}


def _called(one: Stored) -> str:
    """For people: the versions, or the name where it is of none."""
    return ", ".join(map(str, sorted(one.versions))) or one.name
