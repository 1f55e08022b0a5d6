"""By how much the candidate can be worse at most: what is known so far, for people.

Pure. For each of a grid of excess rates it is followed whether it is excluded. What is told is the smallest one that is
excluded together with every larger one, which makes it a single statement at 95 %, whenever it is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

from monitoring.eprocess import BELOW, Claim, EProcess, Line, Pair, Tally, opened, updated

FINE: tuple[float, ...] = (0.001, 0.0015, 0.0025, 0.004, 0.006, 0.01, 0.015, 0.025, 0.04, 0.06, 0.10, 0.20)
"""Excess rates, as shares of the requests; of errors, which a promotion for want of evidence goes by."""
COARSE: tuple[float, ...] = (0.005, 0.01, 0.03, 0.10)
"""Of everything else."""
_ALPHA = 0.05


def claim(excess: float) -> Claim:
    """The candidate's excess is below this."""
    return Claim(Line(offset=excess), BELOW, log(1 / _ALPHA))


_CLAIMS = {grid: tuple(map(claim, grid)) for grid in (FINE, COARSE)}


@dataclass(frozen=True, slots=True)
class Excess:
    """One process per entry of its grid, `FINE` or `COARSE`."""

    processes: tuple[EProcess, ...]

    @classmethod
    def start(cls, grid: Sequence[float] = COARSE) -> Excess:
        return cls(tuple(opened(claim) for claim in _CLAIMS[tuple(grid)]))

    def after(self, block: Pair, stable: Tally, candidate: Tally) -> Excess:
        """With one more block; `stable` and `candidate` count those before it."""
        return Excess(
            tuple(
                updated(process, claim, block, stable, candidate)
                for process, claim in zip(self.processes, _CLAIMS[self._grid], strict=True)
            )
        )

    def smallest(self) -> float | None:
        """That is excluded at 95 %, with every larger one; None while none is."""
        found = None
        for excess, process in zip(reversed(self._grid), reversed(self.processes), strict=True):
            if process.proven is None:
                break
            found = excess
        return found

    @property
    def _grid(self) -> tuple[float, ...]:
        return FINE if len(self.processes) == len(FINE) else COARSE
