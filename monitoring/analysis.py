"""Does the evidence say that the candidate is worse, good enough, or is it too early to tell?

Pure. Three kinds of claim are followed side by side, each by an e-process of its own (`monitoring.eprocess`
says what that is and why it may be read after every block):

- worse: the candidate fails more often than the stable revision. Proven, the rollout goes back.
- good enough, one per step's weight: below 100 % the claim is that the step risks no more excess errors than
  `exposure`, a share of the model's whole traffic; for 100 % that the candidate is within the promotion
  margin. Proven, the rollout goes on. That nothing bad was detected is never a reason to go on.
- the excess is under d, for a grid of d: what is known so far, for people.

A candidate that is worse and still within the margin may get either verdict, whichever is proven first. Every rate
is compared within blocks only; the totals in `Evidence` are for plug-in estimates and for display.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import exp, inf, log

from monitoring.blocks import ArmCount, Block
from monitoring.eprocess import BELOW, GOOD_ENOUGH, WORSE, Claim, EProcess, Line, opened, updated

EXCESSES = (0.001, 0.0015, 0.0025, 0.004, 0.006, 0.01, 0.015, 0.025, 0.04, 0.06, 0.10, 0.20)
"""Excess error rates for which it is followed whether they are excluded."""
EXCESS_ALPHA = 0.05
"""Most chance that an excess is called excluded that is not."""
WIDEST_EXCESS = 0.5
"""Most excess error rate that any step accepts. Below weight 5, `exposure` alone would leave nothing to prove."""


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
class AnalysisPolicy:
    """What is tolerated, and how sure a decision has to be."""

    alpha_rollback: float = 0.01
    """Most chance of rolling back a candidate that is not worse."""
    alpha_promote: float = 0.05
    """Most chance of promoting a candidate beyond the margin."""
    margin_ratio: float = 0.5
    """Promotion: the candidate's error rate may be this much higher, relative to the stable revision's."""
    margin_points: float = 0.005
    """Promotion: and by this much more, absolute (0.005 is half a percentage point)."""
    exposure: float = 0.025
    """Most excess errors that a step may risk, as a share of the model's whole traffic."""
    latency_tolerance: float = 0.10
    """Rollback: the candidate may be slower by this, relative to the stable revision."""
    latency_margin: float = 0.25
    """Promotion: the candidate may be slower by this, relative to the stable revision."""
    prediction_distance: float = 0.10
    """Rollback: this much of the predictions may be different ones (total variation distance)."""

    def __post_init__(self) -> None:
        for name in ("alpha_rollback", "alpha_promote", "exposure"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be above 0 and below 1, not {getattr(self, name)}")
        if not 0 <= self.margin_ratio < inf:
            raise ValueError(f"margin_ratio must be a number from 0 on, not {self.margin_ratio}")
        if not 0 <= self.margin_points < 1:
            raise ValueError(
                f"margin_points must be from 0 to below 1 (half a point is 0.005), not {self.margin_points}"
            )
        if not self.margin_ratio and not self.margin_points:
            raise ValueError("margin_ratio and margin_points must not both be 0: an equal candidate would never pass")


@dataclass(frozen=True, slots=True)
class Gate:
    """The way to one weight, and the evidence that the candidate is good enough for it."""

    weight: int
    good_enough: EProcess


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known from the blocks of one rollout, in about 3 KB of JSON."""

    worse: EProcess
    gates: tuple[Gate, ...]
    """By rising weight; the last is 100."""
    excesses: tuple[EProcess, ...]
    """One per entry of `EXCESSES`: the excess error rate is below it."""
    stable: ArmCount
    candidate: ArmCount
    block: int
    """Id of the last block that was taken in; 0 before the first."""

    @classmethod
    def start(cls, policy: AnalysisPolicy, steps: tuple[int, ...]) -> Evidence:
        """Before the first block. The first step needs no gate: it is where evidence comes from."""
        weights = sorted({*steps[1:], 100})
        return cls(
            worse=opened(worse_claim(policy)),
            gates=tuple(Gate(weight, opened(gate_claim(policy, weight))) for weight in weights),
            excesses=tuple(opened(claim) for claim in EXCESS_CLAIMS),
            stable=ArmCount(),
            candidate=ArmCount(),
            block=0,
        )


@dataclass(frozen=True, slots=True)
class Judgement:
    """A verdict with the numbers behind it. Evidence and thresholds are natural logarithms."""

    verdict: Verdict
    reason: str
    log_e_worse: float
    log_threshold_worse: float
    log_e_ok: float
    log_threshold_ok: float
    stable: ArmCount
    candidate: ArmCount
    margin95: float | None
    """Smallest excess error rate that is excluded at 95 %; None while none is."""
    progress: float
    """How far the evidence is towards a pass, from 0 to 1."""


def worse_claim(policy: AnalysisPolicy) -> Claim:
    """What takes the rollout back once it is proven: any higher error rate at all."""
    return Claim(Line(), WORSE, log(1 / policy.alpha_rollback))


def gate_claim(policy: AnalysisPolicy, weight: int) -> Claim:
    """What has to be proven before the candidate may get `weight` percent."""
    return Claim(_gate_line(policy, weight), GOOD_ENOUGH, log(1 / policy.alpha_promote))


def _gate_line(policy: AnalysisPolicy, weight: int) -> Line:
    if weight == 100:
        return Line(1 + policy.margin_ratio, policy.margin_points)
    return Line(offset=min(policy.exposure / (weight / 100), WIDEST_EXCESS))


EXCESS_CLAIMS = tuple(Claim(Line(offset=excess), BELOW, log(1 / EXCESS_ALPHA)) for excess in EXCESSES)


def fold(policy: AnalysisPolicy, evidence: Evidence, blocks: Iterable[Block]) -> Evidence:
    """The evidence after `blocks`, in rising order of id; those it already holds change nothing."""
    for block in blocks:
        if block.id > evidence.block:
            evidence = _after(policy, evidence, block)
    return evidence


def _after(policy: AnalysisPolicy, evidence: Evidence, block: Block) -> Evidence:
    def follow(process: EProcess, claim: Claim) -> EProcess:
        return updated(process, claim, block, evidence.stable, evidence.candidate)

    return Evidence(
        worse=follow(evidence.worse, worse_claim(policy)),
        gates=tuple(
            Gate(gate.weight, follow(gate.good_enough, gate_claim(policy, gate.weight))) for gate in evidence.gates
        ),
        excesses=tuple(map(follow, evidence.excesses, EXCESS_CLAIMS)),
        stable=_sum(evidence.stable, block.stable),
        candidate=_sum(evidence.candidate, block.candidate),
        block=block.id,
    )


def _sum(one: ArmCount, other: ArmCount) -> ArmCount:
    return ArmCount(one.requests + other.requests, one.errors + other.errors)


def judge(policy: AnalysisPolicy, evidence: Evidence, weight: int) -> Judgement:
    """Whether the candidate may get `weight` percent, 100 being promotion.

    A weight that is no step is judged by the next higher one, which asks for more.
    """
    gate = next(gate for gate in evidence.gates if gate.weight >= weight)
    claim = gate_claim(policy, gate.weight)
    verdict = _verdict(evidence.worse, gate.good_enough)
    return Judgement(
        verdict=verdict,
        reason=_reason(policy, evidence, gate, verdict),
        log_e_worse=evidence.worse.log_e,
        log_threshold_worse=worse_claim(policy).log_threshold,
        log_e_ok=gate.good_enough.log_e,
        log_threshold_ok=claim.log_threshold,
        stable=evidence.stable,
        candidate=evidence.candidate,
        margin95=smallest_excluded(evidence),
        progress=_progress(gate.good_enough, claim),
    )


def _verdict(worse: EProcess, good_enough: EProcess) -> Verdict:
    """To go back comes first: where both are proven, the candidate was good enough and is no more."""
    if worse.proven is not None:
        return Verdict.FAIL
    return Verdict.PASS if good_enough.proven is not None else Verdict.MORE


def smallest_excluded(evidence: Evidence) -> float | None:
    """The smallest excess that is excluded together with every larger one, which makes it one statement at 95 %."""
    smallest = None
    for excess, process in zip(reversed(EXCESSES), reversed(evidence.excesses), strict=True):
        if process.proven is None:
            break
        smallest = excess
    return smallest


def _progress(process: EProcess, claim: Claim) -> float:
    if process.proven is not None:
        return 1.0
    return max(0.0, process.log_e / claim.log_threshold)


def _reason(policy: AnalysisPolicy, evidence: Evidence, gate: Gate, verdict: Verdict) -> str:
    if not evidence.stable.requests or not evidence.candidate.requests:
        return "No requests of both revisions to compare yet"
    counts = f"{_share(evidence.candidate)} of the candidate, {_share(evidence.stable)} of the stable revision"
    if verdict is Verdict.FAIL:
        claim = worse_claim(policy)
        return f"Worse: error rate above {_words(claim.line)} ({_odds(evidence.worse, claim)}); {counts}"
    claim = gate_claim(policy, gate.weight)
    goal = "all traffic" if gate.weight == 100 else f"{gate.weight} % of the traffic"
    opening = "Good enough" if verdict is Verdict.PASS else "Too early to call it good enough"
    return f"{opening} for {goal}: error rate below {_words(claim.line)} ({_odds(gate.good_enough, claim)}); {counts}"


def _share(arm: ArmCount) -> str:
    return f"{arm.errors:,} of {arm.requests:,} requests failed ({arm.errors / arm.requests:.2%})"


def _words(line: Line) -> str:
    """The line as a person would say it: '1.5 times the stable one plus 0.5 points'."""
    times = "the stable one" if line.slope == 1 else f"{line.slope:g} times the stable one"
    return f"{times} plus {100 * line.offset:g} points" if line.offset else times


def _odds(process: EProcess, claim: Claim) -> str:
    """Evidence and threshold: '37 to 1, 20 to 1 needed'. What is beyond a million says no more."""
    odds = exp(min(process.log_e, log(1e6)))
    found = f"{odds:,.0f} to 1" if odds >= 1 else "less than 1 to 1"
    return f"{found}, {exp(claim.log_threshold):,.0f} to 1 needed"
