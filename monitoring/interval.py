"""Where a share lies with 95 %, for the eye: E. B. Wilson, Probable inference (1927). Nothing is decided by it."""

from __future__ import annotations

from math import sqrt

from monitoring.eprocess import Tally

_Z95 = 1.959964


def interval(arm: Tally) -> tuple[float, float, float]:
    """Lower end, share and upper end of what was bad."""
    n = arm.requests
    if not n:
        return 0.0, 0.0, 1.0
    share, z2 = arm.errors / n, _Z95 * _Z95
    middle = (share + z2 / (2 * n)) / (1 + z2 / n)
    reach = _Z95 / (1 + z2 / n) * sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    return max(0.0, min(share, middle - reach)), share, min(1.0, max(share, middle + reach))
