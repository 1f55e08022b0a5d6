"""How many requests a rollout will need before it can be decided, said before it starts.

Pure. The estimate is for a candidate that fails as often as the stable revision does: evidence for a claim
then grows by a fixed amount per request, the divergence between what is and the nearest thing the claim
excludes. 1.2 times the threshold over that growth is what the e-processes were measured to take; a candidate
that is better is faster, one that is a little worse slower, and a bad one is found long before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, log, log10

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.eprocess import Claim, Line, nearest
from monitoring.rate_evidence import gate_claim

OVERHEAD = 1.2
"""What is needed over what an observer who knew both rates would need."""
LOWEST_RATE = 1e-6
"""Error rates closer to 0 or 1 are planned for as if this far away: never and always can never be known."""


@dataclass(frozen=True, slots=True)
class StepPlan:
    """What one step is expected to take until the next one may begin."""

    weight: int
    requests: int
    """Of both revisions."""
    candidate_requests: int
    seconds: float | None
    """At the given rate; None where it is not known."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the steps are expected to take, together and one by one."""

    steps: tuple[StepPlan, ...]
    requests: int
    candidate_requests: int
    seconds: float | None
    passable: float
    """The promotion margin: candidates with error rates up to this may be promoted."""
    sentence: str


def plan(
    policy: AnalysisPolicy,
    steps: Sequence[int],
    base_error_rate: float,
    rate_per_second: float | None,
    min_step_seconds: float,
) -> Plan:
    """What a candidate needs that fails as often as the stable revision, whose error rate is `base_error_rate`."""
    planned: list[StepPlan] = []
    for weight, next_weight in pairwise(steps):
        needed = _candidate_requests(gate_claim(policy, next_weight), base_error_rate, weight, planned)
        planned.append(_step(weight, needed, rate_per_second or None, min_step_seconds))
    passable = min(1.0, gate_claim(policy, 100).line.at(base_error_rate))
    return Plan(
        steps=tuple(planned),
        requests=sum(step.requests for step in planned),
        candidate_requests=sum(step.candidate_requests for step in planned),
        seconds=sum(step.seconds or 0.0 for step in planned) if rate_per_second else None,
        passable=passable,
        sentence=_sentence(planned, rate_per_second or None, base_error_rate, passable),
    )


def growth(line: Line, error_rate: float, share: float) -> float:
    """Evidence in nats per request of the candidate that it is below `line`, where both arms fail at `error_rate`."""
    rate = min(max(error_rate, LOWEST_RATE), 1 - LOWEST_RATE)
    p0 = nearest(line, rate, rate, share)
    return _divergence(rate, line.at(p0)) + (1 - share) / share * _divergence(rate, p0)


def _divergence(q: float, p: float) -> float:
    """KL(q || p) of two error rates."""
    return q * log(q / p) + (1 - q) * log((1 - q) / (1 - p))


def _candidate_requests(claim: Claim, error_rate: float, weight: int, before: Sequence[StepPlan]) -> int:
    """Requests of the candidate still missing at `weight`, after what earlier steps brought."""
    brought = sum(step.candidate_requests * growth(claim.line, error_rate, step.weight / 100) for step in before)
    missing = OVERHEAD * claim.log_threshold - brought
    return max(0, ceil(missing / growth(claim.line, error_rate, weight / 100)))


def _step(weight: int, candidate_requests: int, rate: float | None, min_seconds: float) -> StepPlan:
    share = weight / 100
    if rate is None:
        return StepPlan(weight, ceil(candidate_requests / share), candidate_requests, None)
    seconds = max(min_seconds, candidate_requests / share / rate)
    requests = ceil(seconds * rate)
    return StepPlan(weight, requests, ceil(requests * share), seconds)


def _sentence(steps: Sequence[StepPlan], rate: float | None, error_rate: float, passable: float) -> str:
    if not steps:
        return "No requests are needed: all traffic moves at once, and nothing is compared"
    total = sum(step.requests for step in steps)
    time = f" ({_duration(sum(step.seconds or 0.0 for step in steps))} at {_per_second(rate)})" if rate else ""
    parts = ", ".join(f"{_rounded(step.requests)} at {step.weight} %" for step in steps)
    margin = f"error rates up to {_percent(passable)} (now {_percent(error_rate)}) may be promoted"
    return f"About {_rounded(total)} requests{time}: {parts}; {margin}"


def _per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def _percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def _rounded(count: int) -> str:
    """Two digits are as good as the estimate: 4321 is '4,300'."""
    if count < 100:
        return str(count)
    unit: int = 10 ** (floor(log10(count)) - 1)
    return f"{round(count / unit) * unit:,}"


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"
