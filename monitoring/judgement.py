"""What follows from the evidence: the verdict, why, and the numbers behind it.

Pure. To go back comes first: where both are proven, the candidate was good enough and is no more. An alarm about the
split or the stable revision holds the ramp up, and takes nothing back.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from math import exp, log

from monitoring.analysis import Evidence, log_e_by_metric, log_e_worse, share_of
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount
from monitoring.entities import TELLINGS
from monitoring.eprocess import Claim, EProcess, Line, Tally
from monitoring.excess import Excess
from monitoring.latency_evidence import ENOUGH, enough_claim
from monitoring.rate_evidence import gate_claim, worse_claim


class Verdict(StrEnum):
    """What follows from the evidence."""

    PASS = "pass"  # noqa: S105
    """Good enough for the next weight."""
    FAIL = "fail"
    """Worse than the stable revision."""
    MORE = "more"
    """Not enough evidence yet."""
    ERROR = "error"
    """Could not be measured."""


@dataclass(frozen=True, slots=True)
class Reading:
    """One metric: evidence and thresholds are natural logarithms, arms are requests and how many of them were bad."""

    name: str
    weight: float
    """Part of the evidence that the candidate is worse."""
    log_e_worse: float
    log_threshold_worse: float
    log_e_ok: float | None
    """That it is good enough for the next weight; None where nothing has to be proven."""
    log_threshold_ok: float | None
    stable: Tally
    candidate: Tally
    margin95: float | None = None
    """Smallest excess of bad requests that is excluded at 95 %; None while none is, and of predictions."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with the numbers behind it. Evidence and thresholds are natural logarithms."""

    verdict: Verdict
    reason: str
    log_e_worse: float
    """Of all metrics together."""
    log_threshold_worse: float
    log_e_ok: float
    """Of the metric that is furthest from being proven good enough."""
    log_threshold_ok: float
    stable: ArmCount
    candidate: ArmCount
    margin95: float | None
    """Smallest excess error rate that is excluded at 95 %; None while none is."""
    progress: float
    """How far the evidence is towards a pass, from 0 to 1."""
    metrics: tuple[Reading, ...] = ()
    alarms: tuple[str, ...] = ()
    """What holds the ramp up, though it is not the candidate's fault."""
    notes: tuple[str, ...] = ()
    """How it was compared, where that is out of the ordinary; holds nothing up."""
    remarks: tuple[str, ...] = ()
    """What is good to know of the comparison; nobody is called for it."""


@dataclass(frozen=True, slots=True)
class _Required:
    """Something that has to be proven before the next weight."""

    metric: str
    process: EProcess
    claim: Claim

    @property
    def progress(self) -> float:
        if self.process.proven is not None:
            return 1.0
        return max(0.0, self.process.log_e / self.claim.log_threshold)


def judge(policy: AnalysisPolicy, evidence: Evidence, weight: int) -> Judgement:
    """Whether the candidate may get `weight` percent, 100 being promotion.

    A weight that is no step is judged by the next higher one, which asks for more.
    """
    goal = evidence.errors.gate(weight).weight
    required = tuple(_required(policy, evidence, goal))
    least = min(required, key=lambda one: one.progress)
    alarms = tuple(_alarms(policy, evidence))
    verdict = _verdict(evidence, least, alarms)
    return Judgement(
        verdict=verdict,
        reason=_reason(policy, evidence, verdict, goal, required[0] if least.progress == 1 else least, alarms),
        log_e_worse=log_e_worse(policy, evidence),
        log_threshold_worse=log(1 / policy.alpha_rollback),
        log_e_ok=least.process.log_e,
        log_threshold_ok=least.claim.log_threshold,
        stable=evidence.stable,
        candidate=evidence.candidate,
        margin95=evidence.errors.excess.smallest(),
        progress=least.progress,
        metrics=tuple(_readings(policy, evidence, required)),
        alarms=alarms,
        notes=tuple(_notes(policy, evidence)),
        remarks=tuple(_remarks(policy, evidence)),
    )


def _required(policy: AnalysisPolicy, evidence: Evidence, goal: int) -> Iterator[_Required]:
    claim = gate_claim(policy, goal)
    yield _Required("errors", evidence.errors.gate(goal).good_enough, claim)
    yield _Required("refusals", evidence.refusals.gate(goal).good_enough, claim)
    if evidence.loss is not None:
        yield _Required("loss", evidence.loss.gate(goal).good_enough, claim)
    if goal == 100 and evidence.labels is not None and evidence.labels.required:
        yield _Required("labels", evidence.labels.loss.gate(goal).good_enough, claim)
    if goal == 100 and policy.require_latency:
        for cut, process in zip(ENOUGH, evidence.latency.enough, strict=True):
            yield _Required("latency", process, enough_claim(policy, cut))


def _alarms(policy: AnalysisPolicy, evidence: Evidence) -> Iterator[str]:
    if evidence.split.off:
        yield f"the split is not what was asked: {evidence.split.told(share_of(evidence, evidence.split.step))}"
    if evidence.health.alarm:
        yield f"the stable revision itself fails on more than {policy.stable_error_alarm:.0%} of its requests"
    if evidence.labels is not None and evidence.labels.required and evidence.labels.unlike:
        yield f"labels cannot be compared: {evidence.labels.told()}"


def _notes(policy: AnalysisPolicy, evidence: Evidence) -> Iterator[str]:
    if (ratio := evidence.bursts.ratio) is not None:
        why = f"they vary {ratio:.1f} times as much as by chance" if policy.burst_limit else "as the policy says"
        yield (
            f"the stable revision's failures come in bursts ({why}), so windows of {policy.burst_seconds:g} s are"
            " compared instead of requests, which takes longer"
        )


def _remarks(policy: AnalysisPolicy, evidence: Evidence) -> Iterator[str]:
    stable, candidate = evidence.familiar
    if known := stable.entities + candidate.entities:
        yield f"{known:,} known entities asked again in the last minute; of each only its first request counts"
    at_all, threshold = evidence.predictions.log_e_at_all, log(1 / policy.alpha_rollback)
    if at_all >= threshold:
        yield f"some predictions are others than the stable revision's ({_odds(at_all, threshold)}), which may be meant"
    if evidence.labels is not None and not evidence.labels.required and evidence.labels.unlike:
        yield f"labels cannot be compared: {evidence.labels.told()}"


def _verdict(evidence: Evidence, least: _Required, alarms: tuple[str, ...]) -> Verdict:
    if evidence.failed is not None:
        return Verdict.FAIL
    return Verdict.PASS if least.progress == 1 and not alarms else Verdict.MORE


def _readings(policy: AnalysisPolicy, evidence: Evidence, required: tuple[_Required, ...]) -> Iterator[Reading]:
    log_es = log_e_by_metric(policy, evidence)
    if evidence.labels is not None:
        log_es["labels"] = evidence.labels.loss.worse.log_e
    told = _told(evidence)
    threshold = log(1 / policy.alpha_rollback)
    for metric, log_e in log_es.items():
        proofs = [one for one in required if one.metric == metric]
        least = min(proofs, key=lambda one: one.progress, default=None)
        stable, candidate, excess = told[metric]
        yield Reading(
            name=metric,
            weight=getattr(policy, f"weight_{metric}"),
            log_e_worse=log_e,
            log_threshold_worse=threshold,
            log_e_ok=least.process.log_e if least else None,
            log_threshold_ok=least.claim.log_threshold if least else None,
            stable=stable,
            candidate=candidate,
            margin95=excess.smallest() if excess is not None else None,
        )


def _told(evidence: Evidence) -> dict[str, tuple[Tally, Tally, Excess | None]]:
    """What was counted of both arms, and by how much the candidate can be worse, by metric."""
    labelled = evidence.labels.loss if evidence.labels is not None else None
    rates = {"errors": evidence.errors, "refusals": evidence.refusals, "loss": evidence.loss, "labels": labelled}
    moved = (Tally(sum(evidence.predictions.stable)), Tally(sum(evidence.predictions.candidate)))
    return {
        **{metric: (rate.stable, rate.candidate, rate.excess) for metric, rate in rates.items() if rate is not None},
        "latency": (*evidence.latency.beyond(), evidence.latency.excess),
        "predictions": (*moved, None),
    }


def _reason(
    policy: AnalysisPolicy, evidence: Evidence, verdict: Verdict, goal: int, shown: _Required, alarms: tuple[str, ...]
) -> str:
    if verdict is Verdict.FAIL:
        return _turned(evidence) if evidence.turned >= TELLINGS else _blame(policy, evidence)
    if alarms:
        return f"Held up: {'; '.join(alarms)}"
    if not evidence.stable.requests or not evidence.candidate.requests:
        return "No requests of both revisions to compare yet"
    where = "all traffic" if goal == 100 else f"{goal} % of the traffic"
    opening = "Good enough" if verdict is Verdict.PASS else "Too early to call it good enough"
    odds = _odds(shown.process.log_e, shown.claim.log_threshold)
    return f"{opening} for {where}: {_hoped(policy, shown)} ({odds}); {_counts(policy, evidence, shown.metric)}"


def _turned(evidence: Evidence) -> str:
    stable, candidate = evidence.familiar
    return (
        f"Worse: {candidate.failing} of {candidate.entities} entities that were answered well before get no good answer"
        f" now, {stable.failing} of {stable.entities} of the stable revision"
    )


def _blame(policy: AnalysisPolicy, evidence: Evidence) -> str:
    """Which metrics proved the candidate worse by themselves, else which one did most."""
    threshold = log(1 / policy.alpha_rollback)
    found = log_e_by_metric(policy, evidence)
    weighed = {metric: log_e + log(getattr(policy, f"weight_{metric}")) for metric, log_e in found.items()}
    alone = [metric for metric, log_e in weighed.items() if log_e >= threshold]
    blamed = alone or [max(weighed, key=lambda metric: weighed[metric])]
    words = "; ".join(f"{_feared(policy, metric)}, {_counts(policy, evidence, metric)}" for metric in blamed)
    opening = "Worse" if alone else "Worse by everything together, most of it"
    return f"{opening}: {words} ({_odds(log_e_worse(policy, evidence), threshold)})"


def _feared(policy: AnalysisPolicy, metric: str) -> str:
    return {
        "errors": f"error rate above {_words(worse_claim(policy).line)}",
        "refusals": f"share of refused requests above {_words(worse_claim(policy).line)}",
        "latency": " by more than ".join(["slower than the stable revision", *filter(None, [_tolerated(policy)])]),
        "loss": f"mean loss above {_words(worse_claim(policy).line)}",
        "labels": f"mean loss by labels above {_words(worse_claim(policy).line)}",
        "predictions": f"more than {policy.prediction_distance:.0%} of the predictions are different ones",
    }[metric]


def _hoped(policy: AnalysisPolicy, required: _Required) -> str:
    line = _words(required.claim.line)
    return {
        "errors": f"error rate below {line}",
        "refusals": f"share of refused requests below {line}",
        "loss": f"mean loss below {line}",
        "labels": f"mean loss by labels below {line}",
        "latency": f"not slower than the stable revision by more than {_slower(policy.latency_margin, policy)}",
    }[required.metric]


def _counts(policy: AnalysisPolicy, evidence: Evidence, metric: str) -> str:
    if metric == "predictions":
        return f"about {evidence.predictions.moved():.0%} by what was seen"
    if metric == "latency":
        stable, candidate = evidence.latency.beyond()
        after = f", after {_tolerated(policy)} were taken off" if _tolerated(policy) else ""
        words = (
            f"{_percent(candidate)} of the candidate's requests{after}, and {_percent(stable)} of the stable revision's"
            " took longer than 95 % of them usually take"
        )
        if (over := evidence.latency.over()) is not None:
            words += f", {_percent(over[1])} and {_percent(over[0])} longer than {policy.latency_slo_ms:g} ms"
        return words
    means = {"loss": evidence.loss, "labels": evidence.labels.loss if evidence.labels is not None else None}
    if (loss := means.get(metric)) is not None:
        return f"{_mean(loss.candidate)} of the candidate, {_mean(loss.stable)} of the stable revision"
    done = {"errors": "failed", "refusals": "were refused"}[metric]
    arms = getattr(evidence, metric)
    return f"{_share(arms.candidate, done)} of the candidate, {_share(arms.stable, done)} of the stable revision"


def _tolerated(policy: AnalysisPolicy) -> str:
    return _slower(policy.latency_tolerance, policy)


def _slower(share: float, policy: AnalysisPolicy) -> str:
    """How much slower: '10% and 1 ms'."""
    slack = policy.latency_slack_ms
    return " and ".join([f"{share:.0%}"] * bool(share) + [f"{slack:g} ms"] * bool(slack))


def _percent(arm: Tally) -> str:
    return f"{arm.errors / arm.requests:.1%}" if arm.requests else "none"


def _mean(arm: Tally) -> str:
    return f"{arm.errors / arm.requests:.4f} in {arm.requests:,.0f} answers" if arm.requests else "none"


def _share(arm: Tally, done: str) -> str:
    share = arm.errors / arm.requests if arm.requests else 0.0
    return f"{arm.errors:,.0f} of {arm.requests:,.0f} requests {done} ({share:.2%})"


def _words(line: Line) -> str:
    """The line as a person would say it: '1.5 times the stable one plus 0.5 points'."""
    times = "the stable one" if line.slope == 1 else f"{line.slope:g} times the stable one"
    return f"{times} plus {100 * line.offset:g} points" if line.offset else times


def _odds(log_e: float, log_threshold: float) -> str:
    """Evidence and threshold: '37 to 1, 20 to 1 needed'. What is beyond a million says no more."""
    odds = exp(min(log_e, log(1e6)))
    found = f"{odds:,.0f} to 1" if odds >= 1 else "less than 1 to 1"
    return f"{found}, {exp(log_threshold):,.0f} to 1 needed"
