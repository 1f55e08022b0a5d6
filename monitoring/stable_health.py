"""Whether the stable revision itself is in trouble, which is no moment to give anybody more traffic.

Pure. Page's rule (E. S. Page, Continuous inspection schemes, 1954): evidence for a failing stable revision adds up,
never falls below nothing and never rises far beyond the alarm, so that trouble is seen within a few dozen requests and
is over within as many.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

from monitoring.blocks import ArmCount

_ALARM = log(1000)
_MOST = 2 * _ALARM


@dataclass(frozen=True, slots=True)
class StableHealth:
    """How much speaks for trouble."""

    log_e: float = 0.0
    alarm: bool = False
    """From `_ALARM` on, until nothing speaks for trouble any more."""

    def after(self, limit: float, arm: ArmCount) -> StableHealth:
        """With one more block of the stable revision, which may fail on a share of `limit`."""
        much = (1 + limit) / 2
        bad, good = log(much / limit), log((1 - much) / (1 - limit))
        log_e = min(_MOST, max(0.0, self.log_e + arm.errors * bad + (arm.requests - arm.errors) * good))
        return StableHealth(log_e, log_e >= _ALARM or (self.alarm and log_e > 0))
