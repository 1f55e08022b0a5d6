"""What a team wants of labels: the truth about answers, known minutes or weeks after them.

Pure.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from math import inf


class LabelMode(StrEnum):
    """What labels are for."""

    OFF = "off"
    """Nothing; none are waited for."""
    REPORT = "report"
    """They are compared and shown, and speak against a candidate as far as `weight_labels` says."""
    GATE = "gate"
    """And a candidate gets all traffic only once they prove it good enough."""


@dataclass(frozen=True, slots=True)
class LabelPolicy:
    """How labels are waited for, and what they make of an answer."""

    mode: LabelMode = LabelMode.OFF
    """`off`, `report`, or `gate`: all traffic only once labels prove the candidate good enough."""
    wait_seconds: float = 3600.0
    """A label that comes later than this after its request does not count; what is not all labelled waits this long."""
    deadline_seconds: float = 86400.0
    """For `gate`: the last step before all traffic may last this long, then `on_inconclusive` says what follows."""
    scale: float | None = None
    """A number that is off by this much is as bad as can be (loss 1), by half of it half as bad; none: an answer is
    right or wrong."""

    def __post_init__(self) -> None:
        if self.scale is not None and not 0 < self.scale < inf:
            raise ValueError(f"scale must be a number above 0, not {self.scale}")
