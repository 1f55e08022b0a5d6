"""Evidence that the candidate predicts other things than the stable revision, by more than a tolerated distance.

Pure. Earlier blocks say in which categories the candidate has more; the bet is that its share of requests in them is
higher by more than the tolerated distance. Where the total variation distance is within what is tolerated, no set of
categories can hold more, so the bet is a fair one however the set was found. A retrained model is meant to differ:
this can only take a candidate back, and no proof of likeness is asked for its promotion.

Whether there is any difference at all is followed too, and told. Where there is none, the ratio of each arm's own
shares to those of both together, guessed from earlier blocks, is expected to be 1 at most (Turner, Ly, Gruenwald).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, log, sqrt

from monitoring.blocks import Shares
from monitoring.eprocess import RESERVE, Bets, Claim, EProcess, Line, Pair, Tally, log_factor, log_sum, opened, staked

_STABLE_PRIOR, _CANDIDATE_PRIOR = 20.0, 10.0
"""Requests imagined before the first block: of the stable revision evenly over the categories, of the candidate as the
stable revision's."""
JUMPS = (0.05, 0.15, 0.3, 0.6)
"""Alternatives: this much of the way from the line to 1; and the candidate's own share so far."""
BETS = Bets(shifts=(), parts=(0.2,) * (len(JUMPS) + 1), above=True, reserve=RESERVE)
_SHRUNK = (3.0, 20.0, 120.0)
"""Requests imagined of the candidate, for each bet that its predictions are not quite the stable revision's."""
_LEAST = 1e-6
"""No share is taken to be closer to 0 or 1."""


@dataclass(frozen=True, slots=True)
class PredictionEvidence:
    """What is known of predictions."""

    differs: EProcess
    """By more than what is tolerated."""
    stable: Shares = ()
    """Requests per category; empty before the first block that tells."""
    candidate: Shares = ()
    at_all: tuple[float, ...] = (0.0,) * len(_SHRUNK)
    """Logs of what became of bets that they differ at all."""

    @classmethod
    def start(cls) -> PredictionEvidence:
        return cls(opened(Claim(Line(), BETS, inf)))

    def after(self, distance: float, number: int, arms: tuple[Shares, Shares]) -> PredictionEvidence:
        """With what block `number` says of both arms."""
        stable, candidate = (seen or (0.0,) * len(arms[0]) for seen in (self.stable, self.candidate))
        claim = Claim(Line(offset=distance), BETS, inf)
        q0, q1 = guesses(stable, candidate)
        suspected = suspects(q0, q1, distance)
        block = Pair(number, *(_within(arm, suspected) for arm in arms))
        factors = _log_factors(claim.line, _chosen(q0, suspected), _chosen(q1, suspected), block)
        return PredictionEvidence(
            staked(self.differs, claim, block, factors, sum(candidate)),
            _added(stable, arms[0]),
            _added(candidate, arms[1]),
            tuple(
                log_e + _log_ratio(q0, shrunk(q0, candidate, imagined), arms)
                for log_e, imagined in zip(self.at_all, _SHRUNK, strict=True)
            ),
        )

    @property
    def log_e_at_all(self) -> float:
        """Log of the evidence for any difference; a retrained model has one, so it is told and held against nobody."""
        return log_sum(self.at_all) - log(len(self.at_all))

    def moved(self) -> float:
        """How far the candidate's predictions seem to have moved: the total variation distance of both arms so far."""
        if not sum(self.stable) or not sum(self.candidate):
            return 0.0
        before, now = ([n / sum(arm) for n in arm] for arm in (self.stable, self.candidate))
        return sum(max(0.0, b - a) for a, b in zip(before, now, strict=True))


def guesses(stable: Shares, candidate: Shares) -> tuple[list[float], list[float]]:
    """Shares of the categories as the gambler sees them."""
    even = 1 / len(stable)
    q0 = [(n + _STABLE_PRIOR * even) / (sum(stable) + _STABLE_PRIOR) for n in stable]
    return q0, shrunk(q0, candidate, _CANDIDATE_PRIOR)


def shrunk(q0: Sequence[float], candidate: Shares, imagined: float) -> list[float]:
    """Shares of the candidate, drawn towards the stable revision's by so many imagined requests."""
    total = sum(candidate) + imagined
    return [(n + imagined * was) / total for n, was in zip(candidate, q0, strict=True)]


def _log_ratio(q0: Sequence[float], q1: Sequence[float], arms: tuple[Shares, Shares]) -> float:
    """Of both revisions' own shares to those of both together, at what the block has of them."""
    n0, n1 = map(sum, arms)
    if not (n0 and n1):
        return 0.0
    share = n1 / (n0 + n1)
    both = [share * b + (1 - share) * a for a, b in zip(q0, q1, strict=True)]
    return sum(
        n * log(q / p)
        for arm, own in zip(arms, (q0, q1), strict=True)
        for n, q, p in zip(arm, own, both, strict=True)
        if n
    )


def suspects(q0: Sequence[float], q1: Sequence[float], distance: float) -> list[bool]:
    """The categories to bet on, of those in which the candidate seems to have more.

    Those in which it has most more for what the stable revision has, and as many of them as put the candidate's share
    furthest beyond the line, in standard deviations: a category with hardly more adds noise and no difference.
    """
    more = sorted((k for k in range(len(q0)) if q1[k] > q0[k]), key=lambda k: q0[k] / q1[k])
    best, taken, border, share = -inf, 0, distance, 0.0
    for count, k in enumerate(more, start=1):
        border, share = border + q0[k], share + q1[k]
        beyond = (share - border) / sqrt(border * (1 - border)) if border < 1 else -inf
        if beyond > best:
            best, taken = beyond, count
    chosen = frozenset(more[:taken])
    return [k in chosen for k in range(len(q0))]


def _log_factors(line: Line, q0: float, q1: float, block: Pair) -> list[float]:
    border = line.at(q0)
    if not (block.stable.requests and block.candidate.requests and q0 > 0 and border < 1):
        return [0.0] * (len(JUMPS) + 1)
    alternatives = (*(border + jump * (1 - border) for jump in JUMPS), min(q1, 1 - _LEAST))
    return [
        log_factor(line, q0, alternative, block.stable, block.candidate) if alternative > border else 0.0
        for alternative in alternatives
    ]


def _within(arm: Shares, suspected: Sequence[bool]) -> Tally:
    return Tally(sum(arm), _chosen(arm, suspected))


def _chosen(shares: Sequence[float], suspected: Sequence[bool]) -> float:
    return sum(share for share, chosen in zip(shares, suspected, strict=True) if chosen)


def _added(one: Shares, other: Shares) -> Shares:
    return tuple(a + b for a, b in zip(one, other, strict=True))
