"""One policy file: what may stand in it, and what it says.

The keys are made from the dataclasses that hold the values, so that a new field there is a new key here, with
its default and its words: the field ``ready_seconds`` is the key ``ready``, a duration. What a type cannot
say, such as rising steps, is checked afterwards, and the dataclasses' own rules last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from apscheduler.triggers.cron import CronTrigger
from pydantic import AfterValidator, BeforeValidator, Field, PlainValidator, ValidationError, WithJsonSchema

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.drift import DriftPolicy
from monitoring.label_policy import LabelMode, LabelPolicy
from monitoring.policy_section import Positive, made, model, section
from monitoring.replay_gate_policy import ReplayGatePolicy
from monitoring.replay_policy import ANALYSIS, Chance
from monitoring.shadow_policy import ShadowMode, ShadowPolicy
from monitoring.written import DURATION_SCHEMA, MalformedError, Mistake, mistakes, read_mapping, seconds
from pipelines.abilities import RouterKind, beyond, fitted
from pipelines.policy import OnEmpty, Policy, PolicyError
from pipelines.rollout import RolloutPolicy
from registry_hooks.model_version import Channel
from serving.revision import RevisionSettings

_INLINE = re.compile(r"^models?:[ \t]*(.+)$", re.MULTILINE)
_BELOW = re.compile(r"^models:[ \t]*\n((?:[ \t]*-[ \t].*\n?)+)", re.MULTILINE)

WILDCARDS = frozenset("*?[")
"""What makes a name a pattern."""


def _channel(given: str) -> str:
    return str(Channel.parse(given))


def _schedule(given: object) -> float | str:
    """Seconds, or a cron expression of five fields."""
    if isinstance(given, str) and len(given.split()) == 5:
        return _cron(given)
    every = seconds(given, otherwise="a cron expression such as '0 6 * * *'")
    if isinstance(every, bool) or not isinstance(every, int | float) or not every > 0:
        raise ValueError(f"must be a positive duration or a cron expression such as '0 6 * * *', not {given!r}")
    return float(every)


def _cron(given: str) -> str:
    try:
        CronTrigger.from_crontab(given, "UTC")
    except ValueError as error:
        raise ValueError(f"must be a duration or a cron expression, not {given!r}: {error}") from error
    return given


def _timezone(given: str) -> str:
    try:
        ZoneInfo(given)
    except (ZoneInfoNotFoundError, ValueError) as error:
        raise ValueError(f"must be the name of a time zone such as Europe/Berlin, not {given!r}") from error
    return given


def _exact(given: str) -> str:
    if WILDCARDS & set(given):
        raise ValueError(f"must be one name; patterns stand under 'models', not {given!r}")
    return given


def _column(given: str) -> str:
    if "," in given:
        raise ValueError(f"must not hold a comma, as {given!r}")
    return given


def _unquoted_off(given: object) -> object:
    """YAML takes `off` for a truth value."""
    return "off" if given is False else given


def _listed(given: object) -> object:
    if isinstance(given, str):
        return (given,)
    return tuple(given) if isinstance(given, list) else given


Name = Annotated[str, Field(min_length=1)]
Names = Annotated[tuple[Name, ...], BeforeValidator(_listed)]
ONE_OR_MORE = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
AnyChannel = Annotated[
    str, AfterValidator(_channel), WithJsonSchema({"type": "string", "examples": ["Production", "@champion"]})
]
NoChannel = Annotated[AnyChannel | None, BeforeValidator(lambda given: None if given == "none" else given)]
Schedule = Annotated[
    float | str, PlainValidator(_schedule), WithJsonSchema({"anyOf": [*DURATION_SCHEMA["anyOf"], {"type": "string"}]})
]
Columns = tuple[Annotated[str, AfterValidator(_column)], ...]

CHANNELS = model(
    "Channels",
    live=(AnyChannel, "Production", "The channel whose holder gets the traffic: a stage, or an alias as @name."),
    pre_live=(NoChannel, "Staging", "A version that enters this channel is checked, built and proved; or none."),
)
ROLLOUT = section(
    "Rollout",
    RolloutPolicy,
    without=("settings", "analysis", "replay", "shadow", "labels"),
    steps=tuple[Annotated[int, Field(ge=1, le=100)], ...],
    step_max_seconds=Positive,
    wide_margin=Chance,
    bake_weight=Annotated[int, Field(ge=0, le=50)],
    build_seconds=Positive,
    ready_seconds=Positive,
    promote_seconds=Positive,
    pause_seconds=Positive,
)
REPLAY = section(
    "Replay",
    ReplayGatePolicy,
    max_seconds=Positive,
    request_seconds=Positive,
    most_changed=Chance | None,
)
SHADOW = section(
    "Shadow",
    ShadowPolicy,
    mode=Annotated[ShadowMode, BeforeValidator(_unquoted_off)],
    requests=Annotated[int, Field(ge=1)],
    max_seconds=Positive,
    most_changed=Chance | None,
)
LABELS = section(
    "Labels",
    LabelPolicy,
    mode=Annotated[LabelMode, BeforeValidator(_unquoted_off)],
    wait_seconds=Positive,
    deadline_seconds=Positive,
    scale=Annotated[float, Field(gt=0)] | None,
)
SERVING = section(
    "Serving",
    RevisionSettings,
    without=("environment", "node_labels"),
    workers=Annotated[int, Field(ge=1, le=64)],
    replicas=Annotated[int, Field(ge=1, le=64)],
    memory_mb=Annotated[int, Field(ge=1)] | None,
    cpus=Annotated[float, Field(gt=0)] | None,
    max_replicas=Annotated[int, Field(ge=1, le=1000)] | None,
    busy_percent=Annotated[int, Field(ge=10, le=100)],
    gpus=Annotated[int, Field(ge=0, le=64)],
    more={
        "node_labels": (dict[str, str], {}, "Labels of the nodes that may run it (target `kubernetes`)."),
        "environment": (dict[str, str], {}, "Environment variables of the model server."),
        "log_drop": (Columns, (), "Columns that are left out of the prediction log."),
        "log_hash": (Columns, (), "Columns of which the prediction log keeps a keyed hash only."),
    },
)
DRIFT = section(
    "Drift",
    DriftPolicy,
    schedule=Schedule,
    timezone=Annotated[str, AfterValidator(_timezone)],
    more={"enabled": (bool, True, "Whether the model is watched for drift.")},
)
FILE = model(
    "Policy",
    model=(Annotated[Name, AfterValidator(_exact)] | None, None, "The registered model that the policy is for."),
    models=(
        Annotated[Names, WithJsonSchema(ONE_OR_MORE)] | None,
        None,
        "Instead of `model`: names or patterns such as churn-*; the more exact one wins.",
    ),
    channels=(CHANNELS, CHANNELS(), "Which places in the registry count."),
    require=(tuple[AnyChannel, ...], (), "Channels that a version must be or have been in before it goes live."),
    on_empty=(OnEmpty, OnEmpty.KEEP, "When nobody holds the live channel: keep the traffic, or remove the model."),
    rollout=(ROLLOUT, ROLLOUT(), "How a rollout goes."),
    replay=(REPLAY, REPLAY(), "Whether a candidate answers logged requests before any other."),
    shadow=(SHADOW, SHADOW(), "Whether a candidate answers copies of requests before it gets any."),
    labels=(LABELS, LABELS(), "What becomes known of answers afterwards, and what it is for."),
    analysis=(ANALYSIS, ANALYSIS(), "What is tolerated of a candidate, and how sure a decision has to be."),
    serving=(SERVING, SERVING(), "How the model runs."),
    drift=(DRIFT, DRIFT(), "How the model is watched afterwards."),
)


@dataclass(frozen=True, slots=True)
class PolicyFile:
    """What one file says."""

    names: tuple[str, ...]
    """Models that it is for, by name or pattern."""
    policy: Policy


def read_policy(path: Path, router: RouterKind = RouterKind.ENVOY) -> PolicyFile:
    """What the file says with this router.

    `PolicyError` with one line for each mistake, each beginning with the file's name.
    """
    try:
        given = read_mapping(path)
        found = FILE.model_validate_json(json.dumps(given, default=str))
    except MalformedError as error:
        raise PolicyError((f"{path.name}: {error}",)) from error
    except ValidationError as error:
        raise PolicyError(tuple(f"{path.name}: {mistake}" for mistake in mistakes(error, FILE))) from error
    wrong: list[Mistake] = []
    policy = _policy(found, wrong)
    wrong += _impossible(found)
    wrong += beyond(found, _names(found), router)
    if wrong:
        raise PolicyError(tuple(f"{path.name}: {mistake}" for mistake in wrong))
    return PolicyFile(_names(found), fitted(policy, router))


def schema() -> dict[str, Any]:
    """The JSON Schema of a policy file, for editors."""
    about = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "mlflow-promote policy"}
    return {**FILE.model_json_schema(), **about}


def _names(found: Any) -> tuple[str, ...]:
    return (found.model,) if found.model is not None else tuple(found.models or ())


def _policy(found: Any, wrong: list[Mistake]) -> Policy:
    """The values; what a dataclass itself refuses is added to `wrong`, and its defaults stand in."""
    rollout = made(RolloutPolicy, found.rollout, "rollout", wrong)
    analysis = made(AnalysisPolicy, found.analysis, "analysis", wrong)
    replay = made(ReplayGatePolicy, found.replay, "replay", wrong)
    shadow = made(ShadowPolicy, found.shadow, "shadow", wrong)
    labels = made(LabelPolicy, found.labels, "labels", wrong)
    settings = _settings(found.serving, wrong)
    return Policy(
        live=Channel.parse(found.channels.live),
        pre_live=Channel.parse(found.channels.pre_live) if found.channels.pre_live else None,
        on_empty=found.on_empty,
        require=tuple(Channel.parse(channel) for channel in found.require),
        rollout=replace(rollout, analysis=analysis, replay=replay, shadow=shadow, labels=labels, settings=settings),
        drift=made(DriftPolicy, found.drift, "drift", wrong) if found.drift.enabled else None,
    )


def _settings(serving: Any, wrong: list[Mistake]) -> RevisionSettings:
    private = {"PREDICTION_LOG_DROP": serving.log_drop, "PREDICTION_LOG_HASH": serving.log_hash}
    variables = serving.environment | {name: ",".join(columns) for name, columns in private.items() if columns}
    settings = made(RevisionSettings, serving, "serving", wrong)
    labels = tuple(sorted(serving.node_labels.items()))
    return replace(settings, environment=tuple(sorted(variables.items())), node_labels=labels)


def _wrong_serving(serving: Any) -> Iterator[Mistake]:
    if serving.max_replicas is None:
        return
    if serving.max_replicas < serving.replicas:
        counts = f"{serving.replicas}, not {serving.max_replicas}"
        yield Mistake("serving.max_replicas", f"must not be below replicas, {counts}")
    if serving.cpus is None:
        yield Mistake("serving.cpus", "must be given with max_replicas: a replica is busy by its share of them")


def _impossible(found: Any) -> Iterator[Mistake]:
    """Values that are each allowed and do not go together."""
    if (found.model is None) == (not found.models):
        yield Mistake("model", "must name the model, or 'models' several; one of the two")
    yield from _wrong_steps(found.rollout.steps)
    if found.rollout.step_min > found.rollout.step_max:
        times = f"{found.rollout.step_max:g} s, not {found.rollout.step_min:g} s"
        yield Mistake("rollout.step_min", f"must not be above step_max, {times}")
    if found.replay.max >= found.rollout.ready:
        times = f"{found.rollout.ready:g} s, not {found.replay.max:g} s"
        yield Mistake("replay.max", f"must be below rollout.ready, {times}")
    if found.analysis.weight_labels and found.labels.mode is LabelMode.OFF:
        yield Mistake(
            "analysis.weight_labels", "must be 0 where labels.mode is off; 'report' or 'gate' has them waited for"
        )
    if found.labels.mode is LabelMode.GATE:
        if found.rollout.steps[:1] == (100,):
            yield Mistake("labels.mode", "must not be gate where rollout.steps has no step before 100")
        if found.shadow.mode is ShadowMode.INSTEAD:
            yield Mistake(
                "labels.mode", "must not be gate where shadow.mode is instead: nobody labels answers to copies"
            )
    yield from _wrong_serving(found.serving)
    if found.channels.pre_live == found.channels.live:
        yield Mistake("channels.pre_live", f"must be another channel than live, not {found.channels.live} too")
    if found.channels.live in found.require:
        yield Mistake("require", f"must not hold the live channel itself, {found.channels.live}")
    for column in sorted(set(found.serving.log_drop) & set(found.serving.log_hash)):
        yield Mistake("serving.log_hash", f"must not hold {column!r}, which log_drop leaves out")


def _wrong_steps(steps: tuple[int, ...]) -> Iterator[Mistake]:
    if not steps:
        yield Mistake("rollout.steps", "must hold at least one step; the last one is 100")
        return
    for index, (before, step) in enumerate(pairwise(steps), start=1):
        if step <= before:
            yield Mistake(f"rollout.steps[{index}]", f"must be above the step before it, {before}, not {step}")
    if steps[-1] != 100:
        yield Mistake(f"rollout.steps[{len(steps) - 1}]", f"must be 100, because it is the last step, not {steps[-1]}")


def claimed(path: Path) -> tuple[str, ...]:
    """The models that a broken file is for, as far as it can be told: better too many than one too few."""
    try:
        given = read_mapping(path)
    except MalformedError:
        return _scanned(path)
    listed = _listed(given.get("models"))
    names = [given.get("model"), *(listed if isinstance(listed, tuple) else ())]
    return tuple(name for name in names if isinstance(name, str)) or (path.stem,)


def _scanned(path: Path) -> tuple[str, ...]:
    """What looks like a name in a file that is no YAML, and the name of the file itself."""
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    inline = [name for line in _INLINE.findall(text) for name in line.strip(" []").split(",")]
    below = [name for block in _BELOW.findall(text) for name in re.findall(r"-\s+(.+)", block)]
    names = [name.partition(" #")[0].strip(" \"'") for name in inline + below]
    return tuple(dict.fromkeys([*filter(None, names), path.stem]))
