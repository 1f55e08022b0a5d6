"""What a model server has counted since it began, and blocks of what both arms counted in the same time.

Pure. Figures have no single requests: how many there were, how many of them failed or were refused, and how many took
how long, by the bounds of a histogram. Of a latency only the two bounds are known between which it lies, so each claim
is fed with the bound that speaks against it: to be found slower, the candidate's requests count as the fastest they can
have been and the stable revision's as the slowest; to be found fast enough, the other way round. What is claimed holds
then as it does for single requests, and takes a larger difference to be found.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from monitoring.blocks import CUTS, LEVELS, Arm, ArmCount, Block, Latencies
from monitoring.ruler import KEPT, History, Ruler

_LINE = re.compile(r'^promote_(requests_total|request_seconds_bucket)\{[^}]*?(?:code|le)="([^"]+)"[^}]*\} (\S+)$')
_GONE = "499"
"""The client left before the answer: by its gateway's time-out, or by itself; nobody can tell which."""
_MILLISECONDS = 1000.0
_BEYOND = 2.0
"""What is above the last bound counts as so many times that bound."""


@dataclass(frozen=True, slots=True)
class ServerFigures:
    """Counts of prediction requests that ended, of one server or of several together."""

    requests: int = 0
    errors: int = 0
    """5xx, and clients that left."""
    refused: int = 0
    """4xx."""
    bounds: tuple[float, ...] = ()
    """Milliseconds, rising: upper bounds of the buckets but the last."""
    buckets: tuple[int, ...] = ()
    """Requests between two bounds; one more than `bounds`."""

    @classmethod
    def read(cls, text: str) -> ServerFigures:
        """From what Prometheus is told. `ValueError` where that is not from a model server."""
        found = [match.groups() for line in text.splitlines() if (match := _LINE.match(line))]
        codes = {code: int(float(count)) for name, code, count in found if name == "requests_total"}
        upto = [(bound, int(float(count))) for name, bound, count in found if name != "requests_total"]
        if not upto:
            raise ValueError("no figures of a model server")
        bounds = tuple(_MILLISECONDS * float(bound) for bound, _ in upto if bound != "+Inf")
        counts = [count for _, count in upto]
        buckets = tuple(now - past for now, past in zip(counts, [0, *counts], strict=False))
        errors = sum(count for code, count in codes.items() if _is_error(code))
        refused = sum(count for code, count in codes.items() if code.startswith("4") and not _is_error(code))
        return cls(sum(codes.values()), errors, refused, bounds, buckets)

    def since(self, before: ServerFigures) -> ServerFigures:
        """What was counted after `before`, by the same server; all of it where that counts less than it did."""
        if self.requests < before.requests:
            return self
        buckets = tuple(now - past for now, past in zip(self.buckets, before.buckets or (0,) * 99, strict=False))
        rest = (self.requests - before.requests, self.errors - before.errors, self.refused - before.refused)
        return ServerFigures(*rest, self.bounds, buckets)

    def plus(self, other: ServerFigures) -> ServerFigures:
        """Both together. `ValueError` where they have other bounds."""
        if not (self.bounds and other.bounds):
            return self if self.bounds else other
        if self.bounds != other.bounds:
            raise ValueError("model servers of different releases, whose latencies cannot be put together")
        buckets = tuple(a + b for a, b in zip(self.buckets, other.buckets, strict=True))
        rest = (self.requests + other.requests, self.errors + other.errors, self.refused + other.refused)
        return ServerFigures(*rest, self.bounds, buckets)

    @property
    def count(self) -> ArmCount:
        return ArmCount(self.requests, self.errors, self.refused)

    def spans(self) -> Iterator[tuple[int, float, float]]:
        """Requests, and the milliseconds between which they took, where there were any."""
        if self.bounds:
            lows, highs = (0.0, *self.bounds), (*self.bounds, _BEYOND * self.bounds[-1])
            for requests, low, high in zip(self.buckets, lows, highs, strict=True):
                if requests > 0:
                    yield requests, low, high


def together(figures: Iterable[ServerFigures]) -> ServerFigures:
    """Of several servers. `ValueError` as of `plus`."""
    whole = ServerFigures()
    for one in figures:
        whole = whole.plus(one)
    return whole


def history(stable: ServerFigures) -> History:
    """What a ruler is made of: each request as slow as it can have been, the commoner ones thinned out."""
    least = max(1.0, sum(stable.buckets) / KEPT)
    return History((high, None) for requests, _, high in stable.spans() for _ in range(round(requests / least)))


def block_of(
    number: int,
    rollout: str,
    step: int,
    opened: float,
    closed: float,
    stable: ServerFigures,
    candidate: ServerFigures,
    ruler: Ruler | None,
) -> Block:
    """What both arms counted between two times, in seconds since the epoch."""
    scores = None
    if ruler is not None:
        scores = (_latencies(stable, Arm.STABLE, ruler), _latencies(candidate, Arm.CANDIDATE, ruler))
    return Block(number, rollout, step, opened, closed, stable.count, candidate.count, latency=scores)


def _latencies(figures: ServerFigures, arm: Arm, ruler: Ruler) -> Latencies:
    ranks, slow, beyond, over = [0] * LEVELS, [0] * len(CUTS), [0] * len(CUTS), 0
    for requests, low, high in figures.spans():
        to_be_slower, to_be_enough = (high, low) if arm is Arm.STABLE else (low, high)
        level, passed, _ = ruler.score(arm, to_be_slower)
        passed_by_far = ruler.score(arm, to_be_enough)[2]
        ranks[level] += requests
        for cut in range(len(CUTS)):
            slow[cut] += requests * (cut < passed)
            beyond[cut] += requests * (cut < passed_by_far)
        over += requests * ruler.over(arm, to_be_slower)
    limited = ruler.scale.latency_slo_ms is not None
    return Latencies(tuple(ranks), tuple(slow), tuple(beyond), over if limited else None)


def _is_error(code: str) -> bool:
    return code == _GONE or code[:1] not in "1234"
