"""Evidence from labels: whether the candidate's answers are worse, or good enough, by what became known of them.

Pure. The loss of an answer is compared as an error rate is. That holds where answers of both revisions are labelled
alike. A loan that is refused is never paid back, so a candidate that refuses more has fewer labels, and those that it
has are of other people; nothing can be said then, and it is looked for.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf, log

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.eprocess import WORSE, Claim, EProcess, Line, Pair, Tally, log_sum, opened, updated
from monitoring.label_policy import LabelMode
from monitoring.labels import LabelBlock, Labelled
from monitoring.rate_evidence import RateEvidence, summed

_UNLIKE = Claim(Line(), WORSE, inf)
_LOG_THRESHOLD = log(1000)
"""Most chance of a false alarm: 0.1 %."""


@dataclass(frozen=True, slots=True)
class LabelEvidence:
    """What is known from labels."""

    required: bool
    """All traffic only once they prove the candidate good enough."""
    loss: RateEvidence
    more: EProcess
    """The candidate's answers are labelled more often,"""
    fewer: EProcess
    """and more seldom."""
    stable: Tally = field(default_factory=Tally)
    """Answers that were waited for, and how many were labelled."""
    candidate: Tally = field(default_factory=Tally)
    block: int = 0
    """Id of the last block that was taken in; 0 before the first."""

    @classmethod
    def start(cls, policy: AnalysisPolicy, mode: LabelMode) -> LabelEvidence | None:
        """None where labels are not waited for."""
        if mode is LabelMode.OFF:
            return None
        return cls(mode is LabelMode.GATE, RateEvidence.start(policy, (100,)), opened(_UNLIKE), opened(_UNLIKE))

    def after(self, policy: AnalysisPolicy, block: LabelBlock) -> LabelEvidence:
        stable, candidate = (Tally(arm.answers, arm.labelled) for arm in (block.stable, block.candidate))
        without = (self.stable, self.candidate)
        return LabelEvidence(
            self.required,
            self.loss.after(policy, Pair(block.id, _losses(block.stable), _losses(block.candidate))),
            updated(self.more, _UNLIKE, Pair(block.id, stable, candidate), *without),
            updated(
                self.fewer, _UNLIKE, Pair(block.id, _missing(stable), _missing(candidate)), *map(_missing, without)
            ),
            summed(self.stable, stable),
            summed(self.candidate, candidate),
            block.id,
        )

    @property
    def unlike(self) -> bool:
        """Whether one revision's answers are labelled more often than the other's."""
        return log_sum((self.more.log_e, self.fewer.log_e)) - log(2) >= _LOG_THRESHOLD

    def told(self) -> str:
        shares = [f"{arm.errors / arm.requests:.0%}" for arm in (self.candidate, self.stable)]
        return f"{shares[0]} of the candidate's answers are labelled and {shares[1]} of the stable revision's"


def _losses(arm: Labelled) -> Tally:
    return Tally(arm.labelled, arm.loss)


def _missing(arm: Tally) -> Tally:
    return Tally(arm.requests, arm.requests - arm.errors)
