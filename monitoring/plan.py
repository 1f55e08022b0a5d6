"""How many requests a rollout will need before it can be decided, said before it starts.

Pure. The estimate is for a candidate that does as the stable revision does: evidence for a claim then grows by a
fixed amount per request, the divergence between what is and the nearest thing the claim excludes. 1.2 times the
threshold over that growth is what the e-processes were measured to take; a candidate that is better is faster, one that
is a little worse slower, and a bad one is found long before. Every required metric is proved by itself, so the one that
needs most requests decides how long a step takes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import ceil, floor, inf, log, log10

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import CUTS
from monitoring.eprocess import Claim, Line, nearest
from monitoring.latency_evidence import ENOUGH, enough_claim
from monitoring.rate_evidence import gate_claim
from monitoring.usual import Usual

OVERHEAD = 1.2
"""What is needed over what an observer who knew both rates would need,"""
MEDIAN_OVERHEAD = 1.6
"""and at the median latency, where the capital is spread over more bets."""
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
    metric: str = "errors"
    """What needs most requests."""


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
    warnings: tuple[str, ...] = ()
    """Why the rollout will hardly end by itself."""


@dataclass(frozen=True, slots=True)
class _Required:
    """Something that has to be proven before the next weight, and the rates of an equal candidate."""

    metric: str
    claim: Claim
    stable: float
    candidate: float
    overhead: float = OVERHEAD

    def growth(self, share: float) -> float:
        return growth(self.claim.line, self.stable, share, self.candidate)


def plan(
    policy: AnalysisPolicy,
    steps: Sequence[int],
    usual: Usual,
    rate_per_second: float | None,
    min_step_seconds: float,
    max_step_seconds: float = inf,
) -> Plan:
    """What a candidate needs that does as the stable revision usually does."""
    planned: list[StepPlan] = []
    rate = rate_per_second or None
    for weight, next_weight in pairwise(steps):
        required = [one for one in _required(policy, usual, next_weight) if one.growth(weight / 100)]
        needs = {one.metric: 0 for one in required}
        for one in required:
            needs[one.metric] = max(needs[one.metric], _candidate_requests(one, weight, planned))
        metric = max(needs, key=lambda metric: needs[metric])
        planned.append(_step(weight, needs[metric], metric, rate, min_step_seconds))
    passable = min(1.0, gate_claim(policy, 100).line.at(usual.errors))
    return Plan(
        steps=tuple(planned),
        requests=sum(step.requests for step in planned),
        candidate_requests=sum(step.candidate_requests for step in planned),
        seconds=sum(step.seconds or 0.0 for step in planned) if rate else None,
        passable=passable,
        sentence=_sentence(planned, rate, usual.errors, passable),
        warnings=tuple(_warnings(policy, usual, planned, max_step_seconds)),
    )


def growth(line: Line, rate: float, share: float, candidate: float | None = None) -> float:
    """Evidence in nats per request of the candidate that it is below `line`; 0 where it is not.

    `rate` is the stable revision's, and the candidate's where no other is given.
    """
    q0, q1 = (min(max(one, LOWEST_RATE), 1 - LOWEST_RATE) for one in (rate, rate if candidate is None else candidate))
    if q1 >= line.at(q0):
        return 0.0
    p0 = nearest(line, q0, q1, share)
    return _divergence(q1, line.at(p0)) + (1 - share) / share * _divergence(q0, p0)


def _divergence(q: float, p: float) -> float:
    """KL(q || p) of two rates."""
    return q * log(q / p) + (1 - q) * log((1 - q) / (1 - p))


def _required(policy: AnalysisPolicy, usual: Usual, weight: int) -> Iterator[_Required]:
    claim = gate_claim(policy, weight)
    yield _Required("errors", claim, usual.errors, usual.errors)
    yield _Required("refusals", claim, usual.refused, usual.refused)
    if weight == 100 and policy.require_latency:
        for cut, (stable, candidate) in zip(ENOUGH, usual.slow, strict=False):
            overhead = OVERHEAD if CUTS[cut] > 0.5 else MEDIAN_OVERHEAD
            yield _Required("latency", enough_claim(policy, cut), stable, candidate, overhead)


def _candidate_requests(required: _Required, weight: int, before: Sequence[StepPlan]) -> int:
    """Requests of the candidate still missing at `weight`, after what earlier steps brought."""
    brought = sum(step.candidate_requests * required.growth(step.weight / 100) for step in before)
    missing = required.overhead * required.claim.log_threshold - brought
    return max(0, ceil(missing / required.growth(weight / 100)))


def _windows(required: _Required) -> float:
    """Windows with requests of both arms until it is proven; 0 where it never is."""
    found = required.growth(0.5)
    return required.overhead * required.claim.log_threshold / found if found else 0.0


def _step(weight: int, candidate_requests: int, metric: str, rate: float | None, min_seconds: float) -> StepPlan:
    share = weight / 100
    if rate is None:
        return StepPlan(weight, ceil(candidate_requests / share), candidate_requests, None, metric)
    seconds = max(min_seconds, candidate_requests / share / rate)
    requests = ceil(seconds * rate)
    return StepPlan(weight, requests, ceil(requests * share), seconds, metric)


def _sentence(steps: Sequence[StepPlan], rate: float | None, error_rate: float, passable: float) -> str:
    if not steps:
        return "No requests are needed: all traffic moves at once, and nothing is compared"
    total = sum(step.requests for step in steps)
    time = f" ({duration(sum(step.seconds or 0.0 for step in steps))} at {per_second(rate)})" if rate else ""
    parts = ", ".join(map(_part, steps))
    margin = f"error rates up to {percent(passable)} (now {percent(error_rate)}) may be promoted"
    return f"About {rounded(total)} requests{time}: {parts}; {margin}"


def _part(step: StepPlan) -> str:
    why = "" if step.metric == "errors" else f" for {step.metric}"
    return f"{rounded(step.requests)} at {step.weight} %{why}"


def _warnings(policy: AnalysisPolicy, usual: Usual, steps: Sequence[StepPlan], most: float) -> Iterator[str]:
    late = [step for step in steps if step.seconds is not None and 2 * step.seconds > most]
    for step in late[:1]:
        yield (
            f"The step at {step.weight} % needs about {duration(step.seconds or 0.0)} and may be over before it is"
            f" decided, after {duration(most)}: take a wider margin, a higher first weight, or a longer step_max"
        )
    if steps and usual.bursts > policy.burst_limit:
        windows = max(_windows(one) for one in _required(policy, usual, 100))
        yield (
            f"Failures come in bursts, so windows of {policy.burst_seconds:g} s are compared and not requests: expect"
            f" about {duration(windows * policy.burst_seconds)} with traffic, and see 'mlflow-promote calibrate'"
        )
    if not steps or not policy.require_latency:
        return
    if not usual.slow:
        yield "How long requests take is not known yet: to prove that the candidate is fast enough may need more"
    for required in _required(policy, usual, 100):
        if required.metric == "latency" and not required.growth(steps[-1].weight / 100):
            yield (
                "Latencies differ so much that no candidate can be proved fast enough: take a wider latency_margin or"
                " latency_tail_points, or set require_latency to false"
            )
            return


def per_second(rate: float) -> str:
    return f"{rate:,.0f}/s" if rate >= 10 else f"{rate:.2g}/s"


def percent(rate: float) -> str:
    return f"{100 * rate:.3g} %"


def rounded(count: int) -> str:
    """Two digits are as good as the estimate: 4321 is '4,300'."""
    if count < 100:
        return str(count)
    unit: int = 10 ** (floor(log10(count)) - 1)
    return f"{round(count / unit) * unit:,}"


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 172800 else f"{seconds / 86400:.0f} days"
