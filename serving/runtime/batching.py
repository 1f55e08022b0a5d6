"""Which waiting requests are predicted together, decided without ever waiting for more of them.

A model process that has nothing to do takes what waits at once, so a single client pays nothing; while it is busy
requests gather. How many rows go together follows from how long rows were seen to take, t(n) = a + b * n: a batch stays
within a budget of seconds. Nothing here does I/O or looks at a clock.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

import numpy as np

from serving.runtime.exchange import Predictions, Raw, Rows
from serving.stacked_columns import alike, end_to_end

_KEPT = 0.95
"""Weight that what was learned keeps at each observation: the last twenty count most."""

_OUTLIER = 4.0
"""A time so many times longer than expected is taken for so much: a pause of the machine teaches little, while a model
that has become slower is still followed within a few batches."""

_DOUBT = 0.02
"""How different batches have to be in size, as the square of what they differ by on the average, before the slope that
is seen counts as much as the one that is feared."""

_PATIENCE = 2.0
"""A model that is slower than the budget with a single row may take so many times longer with more: predicted one by
one, those that wait would wait for much longer."""

_REACH = 4
"""How many times more rows than were ever seen together the line is trusted for."""

_F = TypeVar("_F")


class ServiceTime:
    """How long a prediction takes by its rows: a straight line through what was seen, the latest counting most."""

    def __init__(self) -> None:
        self._weight = self._n = self._t = self._nn = self._nt = 0.0
        self._largest = 1

    def observe(self, rows: int, seconds: float) -> None:
        if self._weight > 0:
            seconds = min(seconds, _OUTLIER * max(self.expected(rows), 1e-6))
        self._largest = max(self._largest, rows)
        self._weight = self._weight * _KEPT + 1
        self._n = self._n * _KEPT + rows
        self._t = self._t * _KEPT + seconds
        self._nn = self._nn * _KEPT + rows * rows
        self._nt = self._nt * _KEPT + rows * seconds

    def expected(self, rows: int) -> float:
        """Seconds that so many rows will take; 0 while nothing is known."""
        fixed, each = self._line()
        return fixed + each * rows

    def rows_within(self, seconds: float) -> int:
        """The most rows that take no longer than `seconds`, or than twice what a single row takes; at least 1."""
        fixed, each = self._line()
        seconds = max(seconds, _PATIENCE * (fixed + each))
        reach = _REACH * self._largest
        if each * reach <= seconds - fixed:
            return reach
        return max(1, int((seconds - fixed) / each))

    def _line(self) -> tuple[float, float]:
        """`a` and `b`. The more alike the sizes of batches were, the less can be told from them, and the more is taken
        for `b`: that errs on the side of small batches, and moves on as long as they are within the budget."""
        if self._weight == 0:
            return 0.0, 0.0
        n, t = self._n / self._weight, self._t / self._weight
        doubt = _DOUBT * n * n
        spread = max(self._nn / self._weight - n * n, 0.0)
        each = (self._nt / self._weight - n * t + doubt * t / n) / (spread + doubt)
        each = min(max(each, 0.0), t / n)
        return t - each * n, each


@dataclass(eq=False, slots=True)
class Waiting(Generic[_F]):
    """A request in the queue."""

    ask: Rows | Raw
    deadline: float
    since: float
    caller: _F
    """Whoever waits for the answer."""
    rows: int = field(init=False)
    queue: Queue[_F] | None = field(default=None, init=False)
    """Where it waits; None while it is with a model process."""
    gone: bool = field(default=False, init=False)
    """Whether nobody waits for the answer any more."""

    def __post_init__(self) -> None:
        self.rows = self.ask.count if isinstance(self.ask, Rows) else 1

    def leave(self) -> None:
        """Nobody waits for the answer any more."""
        if self.queue is not None and not self.gone:
            self.queue.gone += 1
        self.gone = True


class Queue(Generic[_F]):
    """Requests in the order in which they came."""

    def __init__(self) -> None:
        self.gone = 0
        """How many are still in here although nobody waits for their answers."""
        self._waiting: deque[Waiting[_F]] = deque()

    def __len__(self) -> int:
        return len(self._waiting) - self.gone

    def __iter__(self) -> Iterator[Waiting[_F]]:
        return (waiting for waiting in self._waiting if not waiting.gone)

    def put(self, waiting: Waiting[_F]) -> None:
        waiting.queue = self
        self._waiting.append(waiting)

    def take(self, rows: int) -> list[Waiting[_F]]:
        """The first, and with it those behind it that may be predicted together, up to so many rows altogether."""
        first = self._next()
        if first is None:
            return []
        taken, passed, size = [first], [], first.rows
        while size < rows and (waiting := self._next()):
            if size + waiting.rows <= rows and together(first.ask, waiting.ask):
                taken.append(waiting)
                size += waiting.rows
            else:
                passed.append(waiting)
        self._waiting.extendleft(reversed(passed))
        for waiting in taken:
            waiting.queue = None
        return taken

    def _next(self) -> Waiting[_F] | None:
        while self._waiting:
            waiting = self._waiting.popleft()
            if not waiting.gone:
                return waiting
            self.gone -= 1
        return None


def together(one: Rows | Raw, other: Rows | Raw) -> bool:
    """Whether the rows of both can be one request: the same columns, shapes and parameters, and something in them."""
    if isinstance(one, Raw) or isinstance(other, Raw):
        return False
    if one.params != other.params or not (one.count and other.count):
        return False
    if alike([one.columns, other.columns]):
        return True
    if one.columns.keys() != other.columns.keys():
        return False
    return all(
        array.ndim == 1 or array.shape[1:] == other.columns[name].shape[1:] for name, array in one.columns.items()
    )


def merged(asks: Sequence[Rows]) -> Rows:
    """One request with the rows of all."""
    first = asks[0]
    if len(asks) == 1:
        return first
    columns = end_to_end([ask.columns for ask in asks], list(first.columns))
    return Rows(columns, sum(ask.count for ask in asks), first.params)


def split(predictions: Predictions, counts: Sequence[int]) -> list[Predictions]:
    """The predictions of each request out of those of all, whose rows `counts` tells in order."""
    if len(counts) == 1:
        return [predictions]
    parts, start = [], 0
    for count in counts:
        rows = slice(start, start + count)
        columns = {name: array[rows] for name, array in predictions.columns.items()}
        parts.append(Predictions(columns, count, predictions.frame))
        start += count
    return parts


def finite(predictions: Predictions) -> bool:
    """Whether there is no NaN and no infinity among the predictions."""
    return all(
        bool(np.isfinite(array).all())
        if array.dtype.kind == "f"
        else not any(isinstance(value, float) and not math.isfinite(value) for value in array.flat)
        for array in predictions.columns.values()
        if array.dtype.kind in "fO"
    )
