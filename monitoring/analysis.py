"""Does the evidence say that the candidate is worse, good enough, or is it too early to tell?

Pure. Every metric is followed by e-processes of its own (`monitoring.eprocess` says what that is and why it may be read
after every block), over blocks of concurrent requests only; totals are for plug-in estimates and for display.

- worse: the metrics' evidence that the candidate is worse, weighed and added. An average of e-processes is one, however
  they depend on each other, and costs at most the logarithm of a metric's weight. Proven, the rollout goes back.
- good enough: every required metric on its own, so no correction is needed for there being several. Proven, the
  rollout goes on. That nothing bad was detected is never a reason to go on.
- where the stable revision's failures come in bursts, not requests are compared but windows: see `monitoring.bursts`.
- the excess of errors is under d, for a grid of d: what is known so far, for people.

A candidate that is worse and still within the margins may get either verdict, whichever is proven first.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import log

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block, Familiar
from monitoring.bursts import Bursts
from monitoring.entities import TELLINGS, broken
from monitoring.eprocess import EProcess, Pair, Tally, log_sum
from monitoring.excess import FINE
from monitoring.label_evidence import LabelEvidence
from monitoring.label_policy import LabelMode
from monitoring.labels import LabelBlock
from monitoring.latency_evidence import LatencyEvidence, parts
from monitoring.prediction_evidence import PredictionEvidence
from monitoring.rate_evidence import RateEvidence
from monitoring.split_evidence import SplitEvidence
from monitoring.stable_health import StableHealth
from monitoring.trail import Point, Trail


@dataclass(frozen=True, slots=True)
class Evidence:
    """Everything that is known from the blocks of one rollout, in about 10 KB of JSON."""

    errors: RateEvidence
    refusals: RateEvidence
    latency: LatencyEvidence
    predictions: PredictionEvidence
    split: SplitEvidence
    health: StableHealth
    """Of the stable revision."""
    shares: tuple[int, ...]
    """The candidate's weight at each step, in percent."""
    stable: ArmCount
    candidate: ArmCount
    trail: Trail
    bursts: Bursts = field(default_factory=Bursts)
    """Of failures of the stable revision."""
    loss: RateEvidence | None = None
    """None where the policy does not ask for it."""
    labels: LabelEvidence | None = None
    """None where none are waited for."""
    block: int = 0
    """Id of the last block that was taken in; 0 before the first."""
    failed: int | None = None
    """Id of the block that proved the candidate worse; nothing but the counts changes from there on."""
    familiar: tuple[Familiar, Familiar] = (Familiar(), Familiar())
    """What becomes of entities that do not count any more."""
    turned: int = 0
    """How often in a row it was told that most of them get no good answer; see `monitoring.entities.broken`."""

    @classmethod
    def start(
        cls,
        policy: AnalysisPolicy,
        steps: tuple[int, ...],
        shares: tuple[int, ...] = (),
        labels: LabelMode = LabelMode.OFF,
    ) -> Evidence:
        """Before the first block. The first step needs no gate: it is where evidence comes from.

        `shares` are the candidate's weights by the step that blocks have, where there are more than `steps`.
        """
        weights = sorted({*steps[1:], 100})
        return cls(
            errors=RateEvidence.start(policy, weights, FINE),
            refusals=RateEvidence.start(policy, weights),
            latency=LatencyEvidence.start(policy),
            predictions=PredictionEvidence.start(),
            split=SplitEvidence(),
            health=StableHealth(),
            shares=shares or steps,
            stable=ArmCount(),
            candidate=ArmCount(),
            trail=Trail(),
            loss=RateEvidence.start(policy, weights) if policy.weight_loss else None,
            labels=LabelEvidence.start(policy, labels),
            bursts=Bursts().told(policy.burst_limit, 1.0),
        )


def fold(policy: AnalysisPolicy, evidence: Evidence, blocks: Iterable[Block]) -> Evidence:
    """The evidence after `blocks`, in rising order of id; those it already holds change nothing."""
    for block in blocks:
        if block.id > evidence.block:
            evidence = _after(policy, evidence, block)
    return evidence


def fold_labels(policy: AnalysisPolicy, evidence: Evidence, blocks: Iterable[LabelBlock]) -> Evidence:
    """The same with what labels say; their blocks count by themselves."""
    for block in blocks:
        if evidence.labels is not None and evidence.failed is None and block.id > evidence.labels.block:
            evidence = _decided(policy, replace(evidence, labels=evidence.labels.after(policy, block)))
    return evidence


def _after(policy: AnalysisPolicy, evidence: Evidence, block: Block) -> Evidence:
    counted = replace(
        evidence,
        stable=_sum(evidence.stable, block.stable),
        candidate=_sum(evidence.candidate, block.candidate),
        block=block.id,
    )
    if evidence.failed is not None:
        return counted
    return _decided(policy, _told(policy, counted, block))


def _decided(policy: AnalysisPolicy, told: Evidence) -> Evidence:
    worse = log_e_worse(policy, told) >= log(1 / policy.alpha_rollback) or told.turned >= TELLINGS
    failed = told.block if worse else None
    return replace(told, failed=failed, trail=told.trail.after(_point(policy, told), last=failed is not None))


def warned(policy: AnalysisPolicy, evidence: Evidence, ratio: float) -> Evidence:
    """With how much the stable revision's failures varied before the rollout, over what chance would have them vary."""
    return replace(evidence, bursts=evidence.bursts.told(policy.burst_limit, ratio))


def _told(policy: AnalysisPolicy, evidence: Evidence, block: Block) -> Evidence:
    """Every metric with what the block says of it."""
    if block.bursts is not None:
        return warned(policy, evidence, block.bursts)
    if block.familiar is not None:
        return replace(evidence, familiar=block.familiar, turned=evidence.turned + 1 if broken(block.familiar) else 0)
    if block.latency is not None:
        evidence = _with_latency(policy, evidence, block)
    if block.predictions is not None:
        moved = evidence.predictions.after(policy.prediction_distance, block.id, block.predictions)
        evidence = replace(evidence, predictions=moved)
    if block.losses is not None and evidence.loss is not None:
        told = Pair(block.id, *(Tally(arm.requests, arm.total) for arm in block.losses))
        evidence = replace(evidence, loss=evidence.loss.after(policy, told))
    if not block.stable.requests + block.candidate.requests:
        return evidence
    evidence = replace(
        evidence,
        split=evidence.split.after(share_of(evidence, block.step), block),
        health=evidence.health.after(policy.stable_error_alarm, block.stable),
    )
    return _with_outcomes(policy, evidence, block)


def _with_latency(policy: AnalysisPolicy, evidence: Evidence, block: Block) -> Evidence:
    """By request, or by window where failures come in bursts: what stumbles is slow as well."""
    over: Block | None = block
    by_window = evidence.bursts.ratio is not None
    if by_window:
        bursts, over = evidence.bursts.after_timed(policy.burst_seconds, block)
        evidence = replace(evidence, bursts=bursts)
    if over is None or over.latency is None:
        return evidence
    return replace(evidence, latency=evidence.latency.after(policy, block.id, over.latency, as_one=by_window))


def _with_outcomes(policy: AnalysisPolicy, evidence: Evidence, block: Block) -> Evidence:
    """By request, or by window where failures come in bursts; whether they do is looked at where a window ends."""
    by_window = evidence.bursts.ratio is not None
    bursts, over = evidence.bursts.after(policy.burst_limit, policy.burst_seconds, block)
    evidence = replace(evidence, bursts=bursts)
    if over is not None and by_window:
        evidence = _counted(policy, evidence, replace(over, id=block.id), as_one=True)
    return evidence if bursts.ratio is not None else _counted(policy, evidence, block, as_one=False)


def _counted(policy: AnalysisPolicy, evidence: Evidence, block: Block, *, as_one: bool) -> Evidence:
    errors = Pair(block.id, *(Tally(arm.requests, arm.errors) for arm in (block.stable, block.candidate)))
    refusals = Pair(block.id, *(Tally(arm.requests, arm.refused) for arm in (block.stable, block.candidate)))
    return replace(
        evidence,
        errors=evidence.errors.after(policy, errors, as_one=as_one),
        refusals=evidence.refusals.after(policy, refusals, as_one=as_one),
    )


def share_of(evidence: Evidence, step: int) -> int:
    """The candidate's weight at a step, in percent; 0 for a step that the evidence does not know."""
    return evidence.shares[step] if 0 <= step < len(evidence.shares) else 0


def family(policy: AnalysisPolicy, evidence: Evidence) -> Iterator[tuple[str, float, EProcess]]:
    """Every process that speaks against the candidate: its metric, its weight, and the process."""
    yield "errors", policy.weight_errors, evidence.errors.worse
    yield "refusals", policy.weight_refusals, evidence.refusals.worse
    for part, process in zip(parts(policy), evidence.latency.slower, strict=True):
        yield "latency", policy.weight_latency * part, process
    yield "predictions", policy.weight_predictions, evidence.predictions.differs
    if evidence.loss is not None:
        yield "loss", policy.weight_loss, evidence.loss.worse
    if evidence.labels is not None:
        yield "labels", policy.weight_labels, evidence.labels.loss.worse


def log_e_worse(policy: AnalysisPolicy, evidence: Evidence) -> float:
    """Log of the evidence that the candidate is worse, of all metrics together."""
    return log_sum([log(weight) + process.log_e for _, weight, process in family(policy, evidence) if weight])


def log_e_by_metric(policy: AnalysisPolicy, evidence: Evidence) -> dict[str, float]:
    """Log of the evidence that the candidate is worse by each metric alone; one without weight is left out."""
    staked: dict[str, list[tuple[float, float]]] = {}
    for metric, weight, process in family(policy, evidence):
        if weight:
            staked.setdefault(metric, []).append((weight, process.log_e))
    return {
        metric: log_sum([log(weight / sum(w for w, _ in found)) + log_e for weight, log_e in found])
        for metric, found in staked.items()
    }


def _point(policy: AnalysisPolicy, evidence: Evidence) -> Point:
    """What the picture of the rollout shows of this moment."""
    needed = log(1 / policy.alpha_rollback)
    proof = log(1 / policy.alpha_promote)
    against = {metric: log_e / needed for metric, log_e in log_e_by_metric(policy, evidence).items()}
    enough = {
        "errors": evidence.errors.gates[-1].good_enough.log_e / proof,
        "refusals": evidence.refusals.gates[-1].good_enough.log_e / proof,
        "latency": min(process.log_e for process in evidence.latency.enough) / proof,
    }
    losses = {"loss": evidence.loss, "labels": evidence.labels.loss if evidence.labels is not None else None}
    for metric, told in losses.items():
        if told is not None:
            against[metric] = told.worse.log_e / needed
            enough[metric] = told.gates[-1].good_enough.log_e / proof
    return Point.of(evidence.candidate.requests, log_e_worse(policy, evidence) / needed, against, enough)


def _sum(one: ArmCount, other: ArmCount) -> ArmCount:
    return ArmCount(one.requests + other.requests, one.errors + other.errors, one.refused + other.refused)
