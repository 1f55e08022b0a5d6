"""What a replay needs of a model's policy file: how evidence is judged, and the steps.

The rest of the file is for the product as a whole, and is not looked at: `mlflow-promote policy check` does that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, Field, ValidationError

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.policy_section import made, section
from monitoring.ramp import RampPolicy
from monitoring.written import MalformedError, Mistake, mistakes, read_mapping

Chance = Annotated[float, Field(gt=0, lt=1)]
ANALYSIS = section("Analysis", AnalysisPolicy, alpha_rollback=Chance, alpha_promote=Chance, exposure=Chance)
RAMP = section("Ramp", RampPolicy, steps=tuple[Annotated[int, Field(ge=1, le=100)], ...])


class ReplayPolicyError(Exception):
    """A policy that cannot be used; one line per mistake, each with the path of the field."""


@dataclass(frozen=True, slots=True)
class ReplayPolicy:
    """What decides in a replay."""

    analysis: AnalysisPolicy = AnalysisPolicy()
    ramp: RampPolicy = RampPolicy()


def read_replay_policy(path: Path) -> ReplayPolicy:
    """The sections `analysis` and `rollout` of a policy file; `ReplayPolicyError`."""
    try:
        found = read_mapping(path)
    except MalformedError as error:
        raise ReplayPolicyError(f"{path.name}: {error}") from error
    wrong: list[Mistake] = []
    known = {key: value for key, value in _part(found, "rollout", wrong).items() if key in RAMP.model_fields}
    policy = ReplayPolicy(
        _made(AnalysisPolicy, ANALYSIS, _part(found, "analysis", wrong), "analysis", wrong),
        _made(RampPolicy, RAMP, known, "rollout", wrong),
    )
    if wrong:
        raise ReplayPolicyError("\n".join(f"{path.name}: {mistake}" for mistake in wrong))
    return policy


def _part(found: dict[str, Any], key: str, wrong: list[Mistake]) -> dict[str, Any]:
    given = found.get(key) or {}
    if isinstance(given, dict):
        return given
    wrong.append(Mistake(key, "must be keys and values (key: value)"))
    return {}


def _made(cls: type[Any], model: type[BaseModel], given: dict[str, Any], path: str, wrong: list[Mistake]) -> Any:
    given = {key: tuple(value) if isinstance(value, list) else value for key, value in given.items()}
    try:
        return made(cls, model(**given), path, wrong)
    except ValidationError as error:
        wrong += [Mistake(f"{path}.{mistake.path}", mistake.text) for mistake in mistakes(error, model)]
        return cls()
