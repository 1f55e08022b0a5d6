"""Evidence that requests are not shared as they were asked to be: 13 % instead of 10 %, say.

Pure. The comparison of both arms stays right at any split, so this holds the ramp up and takes nothing back: something
chooses who is tried. The bet is a Beta distribution about the weight that was asked for (M. Lindon, A. Malek,
arXiv:2011.03567), begun anew with every step, so that evidence from one weight does not speak about the next one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import lgamma, log

from monitoring.blocks import Block

LOG_THRESHOLD = log(1000)
"""Most chance of a false alarm: 0.1 %."""
_FIRMNESS = 100.0
"""Requests that the bet is worth before the first one."""


@dataclass(frozen=True, slots=True)
class SplitEvidence:
    """What is known of the split at the present step."""

    step: int = 0
    stable: int = 0
    candidate: int = 0
    log_e: float = 0.0

    def after(self, weight: float, block: Block) -> SplitEvidence:
        """With what `block` says; `weight` in percent is what was asked for at its step."""
        here = self if block.step == self.step else SplitEvidence(block.step)
        n0, n1 = block.stable.requests, block.candidate.requests
        share = weight / 100
        if not 0 < share < 1 or not n0 + n1:
            return here
        a, b = here.candidate + _FIRMNESS * share, here.stable + _FIRMNESS * (1 - share)
        bet = _log_beta(a + n1, b + n0) - _log_beta(a, b)
        asked = n1 * log(share) + n0 * log(1 - share)
        return SplitEvidence(block.step, here.stable + n0, here.candidate + n1, here.log_e + bet - asked)

    @property
    def off(self) -> bool:
        return self.log_e >= LOG_THRESHOLD

    def told(self, weight: float) -> str:
        share = self.candidate / (self.stable + self.candidate)
        return f"the candidate gets {share:.1%} of the requests instead of {weight:g} %"


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
