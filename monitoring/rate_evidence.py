"""Evidence about a share of bad requests, such as errors: worse, or good enough for each weight of the ramp.

Pure. Below 100 % "good enough" means that the step risks no more excess bad requests than `exposure`, a share of the
model's whole traffic; for 100 % that the candidate is within the promotion margin.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf, log

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.bursts import as_unit
from monitoring.eprocess import GOOD_ENOUGH, WORSE, Claim, EProcess, Line, Pair, Tally, opened, updated
from monitoring.excess import COARSE, Excess

WIDEST_EXCESS = 0.5
"""Most excess error rate that any step accepts. Below weight 5, `exposure` alone would leave nothing to prove."""


@dataclass(frozen=True, slots=True)
class Gate:
    """The way to one weight, and the evidence that the candidate is good enough for it."""

    weight: int
    good_enough: EProcess


@dataclass(frozen=True, slots=True)
class RateEvidence:
    """What is known of one kind of bad request."""

    worse: EProcess
    gates: tuple[Gate, ...]
    """By rising weight; the last is 100."""
    stable: Tally
    candidate: Tally
    excess: Excess
    units: float = 0
    """Of the candidate, that were compared: requests, or windows of them."""

    @classmethod
    def start(cls, policy: AnalysisPolicy, weights: Sequence[int], excesses: Sequence[float] = COARSE) -> RateEvidence:
        gates = tuple(Gate(weight, opened(gate_claim(policy, weight))) for weight in weights)
        return cls(opened(worse_claim(policy)), gates, Tally(), Tally(), Excess.start(excesses))

    def after(self, policy: AnalysisPolicy, block: Pair, *, as_one: bool = False) -> RateEvidence:
        """With one more block, each arm of which is a single unit where `as_one`."""
        units = as_unit(block) if as_one else block
        return RateEvidence(
            self.follow(self.worse, unending(worse_claim(policy)), units),
            tuple(
                Gate(gate.weight, self.follow(gate.good_enough, gate_claim(policy, gate.weight), units))
                for gate in self.gates
            ),
            summed(self.stable, block.stable),
            summed(self.candidate, block.candidate),
            self.excess.after(units, self.stable, Tally(self.units)),
            self.units + units.candidate.requests,
        )

    def follow(self, process: EProcess, claim: Claim, units: Pair) -> EProcess:
        """A process about this kind of bad request, with what comes next."""
        return updated(process, claim, units, self.stable, Tally(self.units))

    def gate(self, weight: int) -> Gate:
        """A weight that is no step is judged by the next higher one, which asks for more."""
        return next(gate for gate in self.gates if gate.weight >= weight)


def summed(one: Tally, other: Tally) -> Tally:
    """Requests and scores of both together, without their levels."""
    return Tally(one.requests + other.requests, one.errors + other.errors)


def worse_claim(policy: AnalysisPolicy) -> Claim:
    """What takes the rollout back once it is proven: any higher rate at all."""
    return Claim(Line(), WORSE, log(1 / policy.alpha_rollback))


def unending(claim: Claim) -> Claim:
    """The same claim as one among several that are weighed together: by itself it proves nothing."""
    return replace(claim, log_threshold=inf)


def gate_claim(policy: AnalysisPolicy, weight: int) -> Claim:
    """What has to be proven before the candidate may get `weight` percent."""
    return Claim(_gate_line(policy, weight), GOOD_ENOUGH, log(1 / policy.alpha_promote))


def _gate_line(policy: AnalysisPolicy, weight: int) -> Line:
    if weight == 100:
        return Line(1 + policy.margin_ratio, policy.margin_points)
    return Line(offset=min(policy.exposure / (weight / 100), WIDEST_EXCESS))
