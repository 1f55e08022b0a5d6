"""Does the evidence say that the candidate is worse, good enough, or is it too early to tell?

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """What follows from the evidence."""

    PASS = "pass"
    """Good enough for the next weight."""
    FAIL = "fail"
    """Worse than the stable revision by more than the tolerance."""
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


@dataclass(frozen=True, slots=True)
class Evidence:
    """Placeholder until the analysis lands; the analysis engineer replaces it."""

    block: int = 0
