"""What the answers to logged requests say of a candidate.

Pure. Both versions were asked the same, one after the other. A request counts only where the stable version answered
it. One that fails on the candidate each time that it is asked is a fact, which needs no statistics; failures that come
and go, and latencies, are compared by the sign of each pair: where the versions are alike, the candidate is the worse
one of a pair that differs with probability one half at most, whatever else they have in common.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime
from enum import StrEnum
from math import comb
from statistics import median

from monitoring.replay_gate_policy import ReplayGatePolicy
from monitoring.ruler import Prediction
from monitoring.shadow_rows import rows

ALPHA = 0.001
"""Chance of each comparison by signs to fail a candidate that is as good as the stable version."""


class Outcome(StrEnum):
    """What became of one request."""

    ANSWERED = "answered"
    REFUSED = "refused"
    """With 4xx."""
    FAILED = "failed"
    """With 5xx, a connection that broke, or not in time."""


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one version to one request."""

    outcome: Outcome
    latency_ms: float
    status: int | None = None
    """Of HTTP; None where none came."""
    words: str = ""
    """Of the error."""
    prediction: Prediction | None = None


@dataclass(frozen=True, slots=True)
class Replayed:
    """One logged request, and what both versions made of it."""

    request_id: str
    at: datetime
    """When it came first."""
    inputs: Mapping[str, Sequence[object]] = field(hash=False)
    """Values of each column, as far as the log has them."""
    stable: Answer
    candidate: Answer
    steady: bool = False
    """It failed on the candidate each time that both were asked, and never on the stable version."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What the replay says."""

    problems: tuple[str, ...]
    """Each is a reason not to go on."""
    summary: str
    data: Mapping[str, object] = field(hash=False)
    """The figures and the failed requests, in JSON's own types."""


@dataclass(frozen=True, slots=True)
class _Compared:
    """Requests that the stable version answered, by what became of them."""

    requests: int
    steady: int
    candidate_alone: int
    """Failed or were refused at the first time, answered by the stable version."""
    stable_alone: int
    slower: int
    """Slower on the candidate by more than what is tolerated."""
    timed: int
    stable_ms: float | None
    candidate_ms: float | None
    """Medians."""
    decisions: int
    changed: int


def conclude(policy: ReplayGatePolicy, slack_ms: float, replayed: Sequence[Replayed], seconds: float) -> Finding:
    """`slack_ms` is no reason to call an answer slower; `seconds` is how long the replay took."""
    compared = _compared(policy, slack_ms, replayed)
    failing = [one for one in replayed if one.stable.outcome is Outcome.ANSWERED and one.steady]
    problems = tuple(_problems(policy, compared, failing))
    data = {"requests": len(replayed), "seconds": round(seconds, 2), "compared": asdict(compared)}
    data["failed"] = [_kept(policy, one) for one in failing[: policy.rows]]
    return Finding(problems, _summary(compared, len(replayed)), data)


def _compared(policy: ReplayGatePolicy, slack_ms: float, replayed: Iterable[Replayed]) -> _Compared:
    seen = list(replayed)
    answered = [one for one in seen if one.stable.outcome is Outcome.ANSWERED]
    both = [one for one in answered if one.candidate.outcome is Outcome.ANSWERED]
    most = 1 + policy.latency_tolerance
    decided = [
        row.changed
        for one in both
        for row in rows(one.stable.prediction, one.candidate.prediction)
        if row.changed is not None
    ]
    return _Compared(
        requests=len(answered),
        steady=sum(one.steady for one in answered),
        candidate_alone=len(answered) - len(both),
        stable_alone=sum(
            one.stable.outcome is not Outcome.ANSWERED and one.candidate.outcome is Outcome.ANSWERED for one in seen
        ),
        slower=sum(one.candidate.latency_ms > most * one.stable.latency_ms + slack_ms for one in both),
        timed=len(both),
        stable_ms=round(median(one.stable.latency_ms for one in both), 3) if both else None,
        candidate_ms=round(median(one.candidate.latency_ms for one in both), 3) if both else None,
        decisions=len(decided),
        changed=sum(decided),
    )


def _problems(policy: ReplayGatePolicy, compared: _Compared, failing: Sequence[Replayed]) -> Iterable[str]:
    if compared.steady > policy.most_failed:
        yield _failed(policy, compared, failing)
    elif compared.candidate_alone > policy.most_failed and _by_chance(
        compared.candidate_alone, compared.candidate_alone + compared.stable_alone
    ):
        yield f"{compared.candidate_alone} of {compared.requests} requests failed on it now and then"
    if _by_chance(compared.slower, compared.timed):
        times = f"{compared.candidate_ms:g} ms in the middle, not {compared.stable_ms:g} ms"
        yield f"it is slower than tolerated on {compared.slower} of {compared.timed} requests: {times}"
    if policy.most_changed is not None and compared.changed > policy.most_changed * compared.decisions:
        share = compared.changed / compared.decisions
        yield f"{share:.1%} of the decisions are other ones, and {policy.most_changed:.1%} may be"


def _failed(policy: ReplayGatePolicy, compared: _Compared, failing: Sequence[Replayed]) -> str:
    first = failing[0]
    refused = sum(one.candidate.outcome is Outcome.REFUSED for one in failing)
    how = "refused" if refused == len(failing) else "failed on" if not refused else "failed on or refused"
    said = first.candidate.words if policy.values and first.candidate.words else f"status {first.candidate.status}"
    told = f"it {how} {compared.steady} of {compared.requests} requests that the stable version answers"
    return f"{told}; request {first.request_id}: {said}"


def _summary(compared: _Compared, requests: int) -> str:
    if not compared.requests:
        return f"none of {requests} logged requests could be sent again: the stable version does not take them either"
    told = f"{compared.requests} logged requests"
    if compared.timed:
        told += f", {compared.candidate_ms:g} ms in the middle (stable version {compared.stable_ms:g} ms)"
    if compared.decisions:
        told += f", {compared.changed / compared.decisions:.1%} of {compared.decisions} decisions are other ones"
    if left := requests - compared.requests:
        told += f"; {left} could not be compared, because the stable version did not take them"
    return told


def _by_chance(worse: int, pairs: int) -> bool:
    """Whether so many of the pairs are too many to be chance."""
    return pairs > 0 and sum(comb(pairs, k) for k in range(worse, pairs + 1)) < ALPHA * 2**pairs


def _kept(policy: ReplayGatePolicy, one: Replayed) -> dict[str, object]:
    told: dict[str, object] = {
        "request_id": one.request_id,
        "at": one.at.isoformat(),
        "outcome": one.candidate.outcome.value,
        "status": one.candidate.status,
    }
    return told | {"error": one.candidate.words, "inputs": dict(one.inputs)} if policy.values else told
