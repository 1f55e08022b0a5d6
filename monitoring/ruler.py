"""The frozen reference of a rollout: what latencies and predictions are measured against.

Pure. A score has to mean the same in every block and for both arms, so what is fast, slow or a usual prediction
is read off the stable revision's own requests once, before what is scored, and never changes within a rollout.
Any frozen ruler keeps the analysis right; one that fits the traffic of the day only makes it sharper, so a
history of some minutes is enough.

Latencies get a rank: the level of their mid-distribution value among the reference's (the share of the reference
that is faster plus half the share that is equal), so that ties share the middle of what they span. A latency
beyond the cap, the reference's 99.9 % quantile, is the slowest there is, whatever it turns out to be: that is
why a hanging request can be scored before it ends.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from math import ceil, inf, isfinite, nextafter
from typing import Any

from monitoring.blocks import CUTS, LEVELS, Arm, Scale, Shares

Value = str | float | bool | None
"""One prediction; whole numbers are floats."""
Prediction = tuple[Value, ...]
"""Some values of the first output of one request, evenly spaced over its rows."""

LEAST = 200
"""Requests of the stable revision without which there is no ruler, nor categories of predictions."""
KEPT = 4096
"""Requests that a history remembers."""
MOST_CATEGORIES = 20
"""Numbers with more distinct values than this are put into bins; of strings the commonest are kept."""
BINS = 10
"""Bins of numbers, each with the same share of the reference."""
CAP = 0.999
"""Quantile of the reference from which on all latencies are the same."""


class History:
    """The last requests of one revision, as many as are needed for a ruler."""

    def __init__(self, seen: Iterable[tuple[float, Prediction | None]] = (), most: int = KEPT) -> None:
        self._seen = deque(seen, maxlen=most)

    def __len__(self) -> int:
        return len(self._seen)

    def add(self, latency_ms: float, prediction: Prediction | None) -> None:
        self._seen.append((latency_ms, prediction))

    def extend(self, other: History) -> None:
        self._seen.extend(other._seen)

    def latencies(self) -> list[float]:
        return sorted(latency for latency, _ in self._seen)

    def predictions(self) -> list[Prediction]:
        return [prediction for _, prediction in self._seen if prediction]

    def state(self) -> list[Any]:
        """As JSON; `restore` takes it."""
        return [[latency, prediction] for latency, prediction in self._seen]

    @classmethod
    def restore(cls, state: Iterable[Sequence[Any]], most: int = KEPT) -> History:
        return cls(((latency, _prediction(values)) for latency, values in state), most)


def _prediction(values: Sequence[Value] | None) -> Prediction | None:
    return None if values is None else tuple(values)


@dataclass(frozen=True, slots=True)
class Ruler:
    """Measures latencies in milliseconds and predictions against the reference it was frozen from."""

    levels: tuple[float, ...]
    """Where each level but the first begins; a latency of exactly this belongs to it."""
    cuts: tuple[float, ...]
    """The quantiles `CUTS` of the reference."""
    cap: float
    """The quantile `CAP` of the reference."""
    names: tuple[Value, ...] = ()
    """Predictions that are a category each; empty where predictions are binned or unknown."""
    edges: tuple[float, ...] = ()
    """Where each bin of numbers but the first begins; empty where predictions are categories or unknown."""
    scale: Scale = field(default_factory=Scale)
    _places: dict[tuple[bool, Value], int] = field(init=False, repr=False, compare=False, hash=False)

    def __post_init__(self) -> None:
        places = {(isinstance(name, bool), name): place for place, name in enumerate(self.names)}
        object.__setattr__(self, "_places", places)

    @classmethod
    def from_history(cls, history: History, scale: Scale) -> Ruler | None:
        """None where the history is too short."""
        latencies = history.latencies()
        if len(latencies) < LEAST:
            return None
        cuts = tuple(_quantile(latencies, share) for share in CUTS)
        names, edges = _categories(history.predictions())
        return cls(_levels(latencies), cuts, _quantile(latencies, CAP), names, edges, scale)

    @property
    def longest(self) -> float:
        """Milliseconds after which nothing more can be learnt from a latency of either arm."""
        most = 1.0 + max(self.scale.latency_tolerance, self.scale.latency_margin, 0.0)
        return max(self.cap, self.scale.latency_slo_ms or 0.0) * most + self.scale.latency_slack_ms

    @property
    def categories(self) -> int:
        """Length of what `shares` gives, the last for anything else; 0 where predictions cannot be compared."""
        return len(self.names) + 1 if self.names else len(self.edges) + 2 if self.edges else 0

    def level(self, latency_ms: float) -> int:
        """From 0, the fastest, to `LEVELS` - 1."""
        return bisect_right(self.levels, latency_ms)

    def cuts_passed(self, latency_ms: float) -> int:
        """How many of the ascending `cuts` are below it: it is beyond exactly the first so many."""
        return bisect_left(self.cuts, latency_ms)

    def score(self, arm: Arm, latency_ms: float) -> tuple[int, int, int]:
        """Level and cuts passed with the tolerance, and cuts passed with the margin, of a request of `arm`."""
        if latency_ms > self.longest:
            latency_ms = inf
        if arm is Arm.STABLE:
            passed = self.cuts_passed(latency_ms)
            return self.level(latency_ms), passed, passed
        tolerated = self._reduced(latency_ms, self.scale.latency_tolerance)
        allowed = self._reduced(latency_ms, self.scale.latency_margin)
        return self.level(tolerated), self.cuts_passed(tolerated), self.cuts_passed(allowed)

    def over(self, arm: Arm, latency_ms: float) -> bool:
        """Whether a request of `arm` took longer than it should, with the tolerance."""
        slo = self.scale.latency_slo_ms
        counts = latency_ms if arm is Arm.STABLE else self._reduced(latency_ms, self.scale.latency_tolerance)
        return slo is not None and counts > slo

    def _reduced(self, latency_ms: float, share: float) -> float:
        """A latency of the candidate, less what nobody notices and a share."""
        return max(0.0, latency_ms - self.scale.latency_slack_ms) / (1.0 + share)

    def place(self, value: Value) -> int:
        """Number of the value's category."""
        if self.names:
            return self._places.get((isinstance(value, bool), value), len(self.names))
        if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
            return len(self.edges) + 1
        return bisect_right(self.edges, value)

    def shares(self, prediction: Prediction | None) -> Shares | None:
        """A request's parts per category, which sum to 1; None where there is nothing to compare."""
        if not prediction or not self.categories:
            return None
        parts = [0.0] * self.categories
        for value in prediction:
            parts[self.place(value)] += 1.0 / len(prediction)
        return tuple(parts)

    def state(self) -> list[Any]:
        """As JSON; `restore` takes it."""
        return [self.levels, self.cuts, self.cap, self.names, self.edges, astuple(self.scale)]

    @classmethod
    def restore(cls, state: Sequence[Any]) -> Ruler:
        levels, cuts, cap, names, edges, scale = state
        return cls(tuple(levels), tuple(cuts), cap, tuple(names), tuple(edges), Scale(*scale))


def _quantile(ascending: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed."""
    return ascending[max(ceil(share * len(ascending) - 1e-9), 1) - 1]


def _levels(ascending: Sequence[float]) -> tuple[float, ...]:
    """Where the mid-distribution function of `ascending` reaches 1/LEVELS, 2/LEVELS and so on."""
    begins: list[float] = []
    for value in sorted(set(ascending)):
        below, upto = bisect_left(ascending, value), bisect_right(ascending, value)
        half = (below + upto) / 2
        begins += [value] * (_reached(half, len(ascending)) - len(begins))
        begins += [nextafter(value, inf)] * (_reached(upto, len(ascending)) - len(begins))
    return tuple(begins)


def _reached(count: float, total: int) -> int:
    return min(int(count * LEVELS / total), LEVELS - 1)


def _categories(predictions: Sequence[Prediction]) -> tuple[tuple[Value, ...], tuple[float, ...]]:
    """The names or else the edges of the categories; neither where there are too few predictions."""
    if len(predictions) < LEAST:
        return (), ()
    counts = Counter((isinstance(value, bool), value) for prediction in predictions for value in prediction)
    numbers = [v for flag, v in counts if not flag and isinstance(v, int | float)]
    if len(counts) <= MOST_CATEGORIES or len(numbers) < len(counts) / 2:
        return _commonest(counts), ()
    return (), _edges(sorted(v for p in predictions for v in p if not isinstance(v, bool | str) and v is not None))


def _commonest(counts: Counter[tuple[bool, Value]]) -> tuple[Value, ...]:
    """In the order of their kind and value, which does not depend on the order of the requests."""
    ranked = sorted(counts, key=lambda key: (-counts[key], *_order(key[1])))[:MOST_CATEGORIES]
    return tuple(value for _, value in sorted(ranked, key=lambda key: _order(key[1])))


def _order(value: Value) -> tuple[str, float, str]:
    return (type(value).__name__, 0.0, value) if isinstance(value, str) else (type(value).__name__, value or 0.0, "")


def _edges(ascending: Sequence[float]) -> tuple[float, ...]:
    """Distinct lower ends of the bins after the first, at least one of them."""
    edges: list[float] = []
    for number in range(1, BINS):
        value = ascending[number * len(ascending) // BINS]
        if value > (edges[-1] if edges else ascending[0]):
            edges.append(value)
    return tuple(edges) or (nextafter(ascending[0], inf),)
