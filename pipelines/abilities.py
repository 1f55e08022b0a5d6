"""What a policy can have with each router. Pure.

Somebody else's gateway shares requests by weight and does nothing else for us, and its requests are known only by what
model servers count. What a policy asks for beyond that is refused by name; what it leaves to its defaults gets such as
the router can keep.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.label_policy import LabelMode
from monitoring.shadow_policy import ShadowMode
from monitoring.written import Mistake
from pipelines.policy import Policy


class RouterKind(StrEnum):
    """Who shares a model's requests between its revisions."""

    ENVOY = "envoy"
    """Our own gateway."""
    HTTPROUTE = "httproute"
    """A Gateway of the cluster, by routes of the Kubernetes Gateway API."""


@dataclass(frozen=True, slots=True)
class _Limit:
    """The one value that a field may have."""

    section: str
    key: str
    value: object
    why: str


_NO_ANSWERS = "single requests and their answers are not seen"
_LIMITS = (
    _Limit("rollout", "shield_bytes", 0, "a request that failed cannot be answered by the stable revision"),
    _Limit("shadow", "mode", ShadowMode.OFF, "there are no copies of requests"),
    _Limit("labels", "mode", LabelMode.OFF, f"{_NO_ANSWERS}, so labels find none"),
    _Limit("analysis", "weight_predictions", 0, _NO_ANSWERS),
    _Limit("analysis", "weight_loss", 0, _NO_ANSWERS),
    _Limit("analysis", "weight_labels", 0, _NO_ANSWERS),
    _Limit(
        "analysis",
        "require_latency",
        False,
        "latencies are known by the bounds of a histogram, too far apart to prove a candidate fast enough",
    ),
)


def beyond(found: Any, names: Sequence[str], router: RouterKind) -> Iterator[Mistake]:
    """What a policy file, as it was read, asks for and cannot have; `names`: the models that it is for."""
    for limit in _LIMITS if router is RouterKind.HTTPROUTE else ():
        section = getattr(found, limit.section)
        if limit.key in section.model_fields_set and getattr(section, limit.key) != limit.value:
            allowed = str(limit.value).lower()
            words = f"must be {allowed} for {', '.join(names)} with router httproute: {limit.why}"
            yield Mistake(f"{limit.section}.{limit.key}", words)


def fitted(policy: Policy, router: RouterKind) -> Policy:
    """The policy, with defaults that the router can keep."""
    if router is not RouterKind.HTTPROUTE:
        return policy
    rollout = policy.rollout
    fitting = replace(
        rollout,
        shield_bytes=0,
        shadow=replace(rollout.shadow, mode=ShadowMode.OFF),
        labels=replace(rollout.labels, mode=LabelMode.OFF),
        analysis=_without_answers(rollout.analysis),
    )
    return replace(policy, rollout=fitting)


def _without_answers(analysis: AnalysisPolicy) -> AnalysisPolicy:
    """What was staked on answers is staked on the rest, in the same proportions."""
    rest = analysis.weight_errors + analysis.weight_refusals + analysis.weight_latency
    return replace(
        analysis,
        require_latency=False,
        weight_errors=analysis.weight_errors / rest,
        weight_refusals=analysis.weight_refusals / rest,
        weight_latency=analysis.weight_latency / rest,
        weight_predictions=0.0,
        weight_loss=0.0,
        weight_labels=0.0,
    )
