"""Evidence from a sequence of bounded gains whose mean is said to be at most nothing.

Pure. The gambler of `monitoring.eprocess` once more, for one sequence instead of two arms: of the capital a fraction f
is staked on each gain g, which multiplies it by 1 + f g. As long as every gain is at least -1 and, given those before
it, at most 0 on average, no strategy is expected to win, so the capital is evidence against that at any time (Ville).
How much to stake depends on how large the gains are, so the capital is spread over several fractions.

I. Waudby-Smith, A. Ramdas, Estimating means of bounded random variables by betting (arXiv:2010.09686).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, lgamma, log, log1p, sqrt

from monitoring.eprocess import log_sum

FRACTIONS = (0.03, 0.1, 0.25, 0.5, 0.75, 0.97)
"""Stakes, from those for a small gain with much noise to those for gains without any."""


@dataclass(frozen=True, slots=True)
class Bet:
    """The capital on one claim. Once proven it stays proven, and as it was at that moment."""

    log_threshold: float
    """Log of the evidence that proves the claim; infinite where it is one of several that are weighed together."""
    log_capital: tuple[float, ...] = (-log(len(FRACTIONS)),) * len(FRACTIONS)
    log_e: float = 0.0
    proven: bool = False

    def after(self, gains: Iterable[float]) -> Bet:
        """With gains of -1 or more, in order."""
        bet = self
        for gain in gains:
            if bet.proven:
                return bet
            if gain:
                capital = tuple(was + log1p(part * gain) for was, part in zip(bet.log_capital, FRACTIONS, strict=True))
                log_e = log_sum(capital)
                bet = Bet(self.log_threshold, capital, log_e, log_e >= self.log_threshold)
        return bet


def one_of_several() -> Bet:
    return Bet(inf)


def share_interval(count: float, total: float, alpha: float = 0.05) -> tuple[float, float]:
    """Where a share lies, at any time at once with confidence 1 - `alpha`, after `count` of `total`.

    The shares against which a mixture of all shares has not won 1 / `alpha`: H. Robbins, Statistical methods related
    to the law of the iterated logarithm (1970).
    """
    if not total:
        return 0.0, 1.0
    mixed = lgamma(count + 0.5) + lgamma(total - count + 0.5) - lgamma(total + 1) - 2 * lgamma(0.5) + lgamma(1.0)

    def excluded(share: float) -> bool:
        bad = count * log(share) if count else 0.0
        good = (total - count) * log1p(-share) if total > count else 0.0
        return mixed - bad - good >= log(1 / alpha)

    mean = count / total
    low = _border(lambda part: excluded(part * mean)) * mean if mean else 0.0
    high = 1 - _border(lambda part: excluded(1 - part * (1 - mean))) * (1 - mean) if mean < 1 else 1.0
    return low, high


def _border(excluded: Callable[[float], bool]) -> float:
    """The largest part from 0 to 1 that is excluded, by bisection."""
    low, high = 0.0, 1.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if excluded(middle) else (low, middle)
    return low


def mean_interval(count: float, total: float, squares: float, alpha: float = 0.05) -> tuple[float, float]:
    """Where a mean lies, from the number of values, their sum and the sum of their squares; at any time at once.

    For many values, as if they were normal: I. Waudby-Smith et al., Time-uniform central limit theory and asymptotic
    confidence sequences (arXiv:2103.06476), narrowest at about 300 values.
    """
    if count < 2:
        return -inf, inf
    mean = total / count
    variance = max(0.0, squares / count - mean**2) * count / (count - 1)
    scale = 8.0 / 300
    width = sqrt(variance * 2 * (count * scale + 1) / (count**2 * scale) * log(sqrt(count * scale + 1) / alpha))
    return mean - width, mean + width
