"""Is the candidate worse than the stable revision, by what both answered to the same requests?

Pure. Requests on which both fare alike say nothing and cost nothing; only those on which they differ are bet on, as
gains of `monitoring.betting`. With score y of the stable and y' of the candidate revision for one request:

- worse, by errors and by refusals: y' - y, whose mean is at most 0 where the candidate is no worse.
- worse, by latency: +1 where the candidate is slower by more than what is tolerated, -1 where it is not; and the same
  of those only where one took twice the other's time, which sees the tail. Were both alike, either sign would be as
  likely, with what is tolerated on the candidate's side.
- worse, by decisions, where the policy has a limit m: (share of the request's rows decided otherwise - m) / m.
- good enough: (d - z) / (1 - d) with z = y' - (1 + r) y, whose mean is at most 0 where the candidate's rate is beyond
  (1 + r) times the stable one plus d; and for latency the signs turned round, after the promotion's margin.

The evidence for 'worse' is weighed and added as `monitoring.analysis` does it, against half of its alpha: the canary
that follows has all of it, so a good candidate is taken back with at most 1.5 times alpha.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, log

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.betting import Bet, one_of_several
from monitoring.eprocess import log_sum
from monitoring.shadow_blocks import Answer, Paired, Row, ShadowBlock
from monitoring.shadow_policy import ShadowPolicy

METRICS = ("errors", "refusals", "latency", "predictions")
"""Order of the evidence that the candidate is worse."""
TWICE = 2.0
"""An answer that takes this many times the other's time is one of the tail."""
MOST_SEGMENTS = 20
"""Decisions that have a segment of their own, in order of their coming."""
REST = "others"
"""The segment of all further decisions."""
PART = 0.5
"""Of the chance of taking a good candidate back: what the shadow stage may use."""


@dataclass(frozen=True, slots=True)
class Discord:
    """Pairs by how they ended; latency's `stable` and `candidate` are the slower one."""

    both: int = 0
    stable: int = 0
    """Only the stable revision was bad."""
    candidate: int = 0
    """Only the candidate was."""

    def after(self, stable: bool, candidate: bool) -> Discord:
        if stable and candidate:
            return Discord(self.both + 1, self.stable, self.candidate)
        return Discord(self.both, self.stable + stable, self.candidate + candidate)


@dataclass(frozen=True, slots=True)
class Segment:
    """Rows for which the stable revision decided alike."""

    name: str
    rows: int = 0
    decided: int = 0
    """Rows with a decision to compare."""
    changed: int = 0
    numbers: int = 0
    """Rows with two numbers."""
    difference: float = 0.0
    """Sum of what the candidate's numbers are larger by,"""
    squares: float = 0.0
    """and of its squares."""

    def after(self, row: Row) -> Segment:
        number = 0.0 if row.difference is None else row.difference
        return Segment(
            self.name,
            self.rows + 1,
            self.decided + (row.changed is not None),
            self.changed + (row.changed is True),
            self.numbers + (row.difference is not None),
            self.difference + number,
            self.squares + number**2,
        )


@dataclass(frozen=True, slots=True)
class Enough:
    """Evidence that the candidate is good enough for all traffic, each of which has to be proven."""

    errors: Bet
    refusals: Bet
    latency: Bet
    tail: Bet

    def all(self) -> tuple[Bet, ...]:
        return (self.errors, self.refusals, self.latency, self.tail)


@dataclass(frozen=True, slots=True)
class ShadowEvidence:
    """What is known from pairs. Built by `start` and `fold_pairs`, saved with the rollout."""

    errors: Bet
    refusals: Bet
    latency: tuple[Bet, Bet]
    """Of all pairs, and of those where one took twice the other's time."""
    decisions: Bet
    enough: Enough
    block: int = 0
    """Id of the last block."""
    pairs: int = 0
    missing: int = 0
    failed: Discord = Discord()
    refused: Discord = Discord()
    slower: Discord = Discord()
    """Beyond what is tolerated; the stable revision's count has the others."""
    compared: int = 0
    """Pairs with a decision to compare,"""
    changed: float = 0.0
    """and the sum of their shares of rows that were decided otherwise."""
    segments: tuple[Segment, ...] = ()
    worse: bool = False
    """Proven, and the evidence is as it was then."""

    @classmethod
    def start(cls, policy: AnalysisPolicy) -> ShadowEvidence:
        threshold = log(1 / policy.alpha_promote)
        enough = Enough(*(Bet(threshold) for _ in range(4)))
        several = one_of_several()
        return cls(several, several, (several, several), several, enough)


def fold_pairs(
    analysis: AnalysisPolicy, shadow: ShadowPolicy, evidence: ShadowEvidence, blocks: Iterable[ShadowBlock]
) -> ShadowEvidence:
    """The evidence after `blocks`, in order of their ids; those that were folded before are skipped."""
    for block in blocks:
        if block.id > evidence.block:
            evidence = replace(evidence, block=block.id, missing=evidence.missing + block.missing)
            for pair in block.pairs:
                if not evidence.worse:
                    evidence = _after(analysis, shadow, evidence, pair)
    return evidence


def _after(analysis: AnalysisPolicy, shadow: ShadowPolicy, evidence: ShadowEvidence, pair: Paired) -> ShadowEvidence:
    stable, candidate = pair.stable, pair.candidate
    changed = [row.changed for row in pair.rows if row.changed is not None]
    share = sum(changed) / len(changed) if changed else None
    timed = _timed(stable, candidate)
    slower = _sign(analysis, shadow.latency_tolerance, stable, candidate) if timed else 0
    found = replace(
        evidence,
        errors=evidence.errors.after([candidate.error - stable.error]),
        refusals=evidence.refusals.after([candidate.refused - stable.refused]),
        latency=_slower(analysis, shadow, evidence, pair) if timed else evidence.latency,
        decisions=evidence.decisions.after(_decided(shadow, share)),
        enough=_enough(analysis, evidence.enough, pair),
        pairs=evidence.pairs + 1,
        failed=evidence.failed.after(stable.error, candidate.error),
        refused=evidence.refused.after(stable.refused, candidate.refused),
        slower=evidence.slower.after(slower < 0, slower > 0),
        compared=evidence.compared + (share is not None),
        changed=evidence.changed + (share or 0.0),
        segments=_segments(evidence.segments, pair.rows),
    )
    return replace(found, worse=log_e_shadow(analysis, found) >= threshold_shadow(analysis))


def _timed(stable: Answer, candidate: Answer) -> bool:
    """Only answers to what was asked are compared by how long they took."""
    return not (stable.error or candidate.error or stable.refused or candidate.refused)


def _sign(analysis: AnalysisPolicy, tolerance: float, stable: Answer, candidate: Answer, times: float = 1.0) -> int:
    """+1 where the candidate is slower, -1 where the stable revision is, after what is tolerated, by so many times."""
    reduced = max(0.0, candidate.latency_ms - analysis.latency_slack_ms) / (1 + tolerance)
    if reduced > times * stable.latency_ms:
        return 1
    return -1 if stable.latency_ms > times * reduced else 0


def _slower(analysis: AnalysisPolicy, shadow: ShadowPolicy, evidence: ShadowEvidence, pair: Paired) -> tuple[Bet, Bet]:
    near, far = (_sign(analysis, shadow.latency_tolerance, *pair[:2], times) for times in (1.0, TWICE))
    return evidence.latency[0].after([near]), evidence.latency[1].after([far])


def _decided(shadow: ShadowPolicy, share: float | None) -> Iterator[float]:
    if shadow.most_changed is not None and share is not None:
        yield (share - shadow.most_changed) / shadow.most_changed


def _enough(analysis: AnalysisPolicy, enough: Enough, pair: Paired) -> Enough:
    stable, candidate = pair.stable, pair.candidate
    errors = _within(analysis, stable.error, candidate.error)
    refusals = _within(analysis, stable.refused, candidate.refused)
    latency, tail = enough.latency, enough.tail
    if _timed(stable, candidate):
        room = analysis.latency_tail_points
        near, far = (_sign(analysis, analysis.latency_margin, stable, candidate, times) for times in (1.0, TWICE))
        latency, tail = latency.after([-near]), tail.after([(room - far) / (1 - room)])
    return Enough(enough.errors.after([errors]), enough.refusals.after([refusals]), latency, tail)


def _within(analysis: AnalysisPolicy, stable: bool, candidate: bool) -> float:
    points = analysis.margin_points
    return (points - candidate + (1 + analysis.margin_ratio) * stable) / (1 - points)


def _segments(segments: tuple[Segment, ...], rows: Sequence[Row]) -> tuple[Segment, ...]:
    known = {segment.name: segment for segment in segments}
    for row in rows:
        name = row.segment if row.segment in known or len(known) < MOST_SEGMENTS else REST
        known[name] = known.get(name, Segment(name)).after(row)
    return tuple(known.values())


def log_e_by_metric(evidence: ShadowEvidence) -> dict[str, float]:
    """Log of each metric's own evidence that the candidate is worse, unweighed."""
    latency = log_sum([bet.log_e for bet in evidence.latency]) - log(2)
    return dict(
        zip(METRICS, (evidence.errors.log_e, evidence.refusals.log_e, latency, evidence.decisions.log_e), strict=True)
    )


def log_e_shadow(policy: AnalysisPolicy, evidence: ShadowEvidence) -> float:
    """Log of all evidence together that the candidate is worse."""
    weighed = [
        log_e + log(weight) if (weight := getattr(policy, f"weight_{metric}")) else -inf
        for metric, log_e in log_e_by_metric(evidence).items()
    ]
    return log_sum(weighed)


def threshold_shadow(policy: AnalysisPolicy) -> float:
    return log(1 / (PART * policy.alpha_rollback))
