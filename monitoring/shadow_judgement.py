"""What follows from pairs: the verdict, and why.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import exp, log

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.betting import Bet, mean_interval, share_interval
from monitoring.judgement import Verdict
from monitoring.shadow_evidence import Discord, Segment, ShadowEvidence, log_e_by_metric, log_e_shadow, threshold_shadow


@dataclass(frozen=True, slots=True)
class SegmentReading:
    """What the candidate does where the stable revision decided alike. Intervals hold with 95 %, at any time."""

    name: str
    rows: int
    changed: float | None
    """Share of its decisions that are other ones; None where there is none to compare."""
    difference: float | None
    """Mean of what its numbers are larger by; None where there are none."""
    difference95: tuple[float, float] | None


@dataclass(frozen=True, slots=True)
class ShadowJudgement:
    """A verdict with the numbers behind it. Evidence and thresholds are natural logarithms."""

    verdict: Verdict
    """`pass` is good enough for all traffic, without a canary."""
    reason: str
    log_e_worse: float
    log_threshold_worse: float
    metrics: dict[str, float]
    """The same by each metric alone."""
    progress: float
    """How far the evidence is towards a pass, from 0 to 1."""
    pairs: int
    missing: int
    failed: Discord
    refused: Discord
    slower: Discord
    changed: float | None
    """Share of decisions that are other ones; None where there is none to compare."""
    changed95: tuple[float, float] | None
    difference: SegmentReading | None
    """Of all rows."""
    segments: tuple[SegmentReading, ...]


def judge_pairs(policy: AnalysisPolicy, evidence: ShadowEvidence) -> ShadowJudgement:
    """Whether the candidate is worse, or good enough without a canary."""
    least = min(_progress(bet.log_e, bet.log_threshold, bet.proven) for bet in _required(policy, evidence))
    verdict = Verdict.FAIL if evidence.worse else Verdict.PASS if least == 1 else Verdict.MORE
    compared = evidence.compared
    rows = tuple(map(_reading, evidence.segments))
    return ShadowJudgement(
        verdict=verdict,
        reason=_reason(policy, evidence, verdict),
        log_e_worse=log_e_shadow(policy, evidence),
        log_threshold_worse=threshold_shadow(policy),
        metrics=log_e_by_metric(evidence),
        progress=least,
        pairs=evidence.pairs,
        missing=evidence.missing,
        failed=evidence.failed,
        refused=evidence.refused,
        slower=evidence.slower,
        changed=evidence.changed / compared if compared else None,
        changed95=share_interval(evidence.changed, compared) if compared else None,
        difference=_reading(_together(evidence)) if evidence.segments else None,
        segments=rows,
    )


def _required(policy: AnalysisPolicy, evidence: ShadowEvidence) -> tuple[Bet, ...]:
    enough = evidence.enough
    return enough.all() if policy.require_latency else (enough.errors, enough.refusals)


def _progress(log_e: float, log_threshold: float, proven: bool) -> float:
    return 1.0 if proven else min(0.999, max(0.0, log_e / log_threshold))


def _together(evidence: ShadowEvidence) -> Segment:
    parts = evidence.segments
    sums = (
        sum(getattr(part, name) for part in parts)
        for name in ("rows", "decided", "changed", "numbers", "difference", "squares")
    )
    return Segment("", *sums)


def _reading(segment: Segment) -> SegmentReading:
    n = segment.numbers
    return SegmentReading(
        segment.name,
        segment.rows,
        segment.changed / segment.decided if segment.decided else None,
        segment.difference / n if n else None,
        mean_interval(n, segment.difference, segment.squares) if n > 1 else None,
    )


def _reason(policy: AnalysisPolicy, evidence: ShadowEvidence, verdict: Verdict) -> str:
    if verdict is Verdict.FAIL:
        return f"Worse on copies of requests: {_blamed(policy, evidence)} ({_odds(policy, evidence)})"
    told = ", ".join(_told(evidence))
    opening = (
        "Good enough on copies of requests" if verdict is Verdict.PASS else "Nothing decided on copies of requests"
    )
    return f"{opening}: {told}" if evidence.pairs else "No request was answered by both revisions yet"


def _odds(policy: AnalysisPolicy, evidence: ShadowEvidence) -> str:
    found = exp(min(log_e_shadow(policy, evidence), log(1e6)))
    return f"{found:,.0f} to 1, {exp(threshold_shadow(policy)):,.0f} to 1 needed"


def _blamed(policy: AnalysisPolicy, evidence: ShadowEvidence) -> str:
    """The metric that did most."""
    weighed = {
        metric: log_e + log(weight)
        for metric, log_e in log_e_by_metric(evidence).items()
        if (weight := getattr(policy, f"weight_{metric}"))
    }
    most = max(weighed, key=lambda metric: weighed[metric])
    return {
        "errors": _discord(evidence, evidence.failed, "failed"),
        "refusals": _discord(evidence, evidence.refused, "were refused"),
        "latency": f"slower than tolerated on {evidence.slower.candidate:,} of {evidence.pairs:,} requests",
        "predictions": f"{evidence.changed / max(1, evidence.compared):.1%} of the decisions are other ones",
    }[most]


def _discord(evidence: ShadowEvidence, discord: Discord, done: str) -> str:
    return (
        f"of {evidence.pairs:,} requests {discord.candidate:,} {done} on the candidate alone, "
        f"{discord.stable:,} on the stable revision alone"
    )


def _told(evidence: ShadowEvidence) -> Iterator[str]:
    yield _discord(evidence, evidence.failed, "failed")
    if evidence.compared:
        low, high = share_interval(evidence.changed, evidence.compared)
        yield f"{evidence.changed / evidence.compared:.1%} of the decisions are other ones ({low:.1%} to {high:.1%})"
