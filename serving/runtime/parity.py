"""Parity at run time: a few answers of the compiled model are computed again by the model itself, off the hot path.

What the build proved on its rows is held against the rows that really come. One answer that differs is enough: from
then on the model itself serves. Until its process is there the compiled model goes on, because it takes seconds to
come, and the answers of those seconds are as good as all those since the last check; refusing them would cost every
caller. What cannot be checked, because no process can be started, is trouble to be told and no reason to switch.

The pauses between checks grow, since each of them may have to start a process that has ended for want of work.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.prediction_log_entry import Privacy
from serving.runtime.exchange import (
    Array,
    Engine,
    Event,
    Meter,
    ModelError,
    Predictions,
    Rows,
    ServingError,
    Written,
)
from serving.runtime.plan import Plan

NEVER = 2**62
"""A number of answers that is never reached."""

_AT_ONCE = 50
"""Answers that are computed again at the same time."""

_logger = logging.getLogger(__name__)


class Native(Engine, Protocol):
    """The native path, which can also work for nobody who waits."""

    async def recompute(self, rows: Rows) -> Predictions | Written:
        """Predict when nothing else is to be done."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How much is checked at once, and when."""

    head: int = 20
    """So many of the first answers are kept whatever the share, so that the first check has something to say."""
    kept: int = 200
    """The most answers of one check, spread evenly over the time since the last one."""
    rows: int = 100
    """The most rows of one answer that are checked."""
    first: float = 10.0
    """Seconds from the start to the first check."""
    shortest: float = 30.0
    """Seconds from the first check to the second; each pause is twice the one before it."""
    longest: float = 600.0
    """Seconds between checks in the long run."""
    awake: float = 10.0
    """Seconds between rows that keep the native path from falling asleep, once it serves for good."""


USUAL = Pace()


@dataclass(frozen=True, slots=True)
class _Kept:
    rows: Rows
    answer: Predictions


class Parity:
    """Keeps some answers of the compiled model, and checks them now and then."""

    def __init__(self, native: Native, plan: Plan, meter: Meter, share: float, privacy: Privacy, pace: Pace) -> None:
        """`share` of the answers is checked; columns that `privacy` names are never shown."""
        assert plan.compiled is not None
        self.verdict = ""
        """Why the compiled model is not to be used any more; empty while it is."""
        self.trouble = ""
        """Why the last check could not be made."""
        self._native, self._meter, self._share, self._pace = native, meter, share, pace
        self._tolerance, self._privacy = plan.compiled.tolerance, privacy
        self._rowwise = plan.batching
        """Whether an answer does not depend on the other rows of its request, so that some of them can be checked."""
        self._kept: list[_Kept] = []
        self._seen = 0
        self._head = pace.head if share > 0 else 0
        self._random = random.Random()  # noqa: S311 - it only spreads samples
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        if self._share > 0:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def distrust(self, why: str) -> None:
        """The compiled model was found out elsewhere: in another process that serves it."""
        self.verdict = self.verdict or why

    def first(self) -> int:
        """How many answers to pass over before the first that is kept."""
        return 0 if self._head else self._gap()

    def keep(self, rows: Rows, answer: Predictions) -> int:
        """Keep this answer for the next check; how many answers to pass over until the next call."""
        if self.verdict:
            return NEVER
        small = answer.count <= self._pace.rows
        if answer.count and (small or self._rowwise):
            self._seen += 1
            place = len(self._kept)
            if place >= self._pace.kept:
                place = self._random.randrange(self._seen)
            if place < self._pace.kept:
                self._kept[place : place + 1] = [self._part(rows, answer)]
        self._head = max(0, self._head - 1)
        return 0 if self._head else self._gap()

    def _gap(self) -> int:
        """1 / share on the average, and never the same, so that nothing periodic is always or never seen."""
        return NEVER if self._share <= 0 else self._random.randrange(max(1, round(2 / self._share) - 1))

    def _part(self, rows: Rows, answer: Predictions) -> _Kept:
        start = self._random.randrange(max(1, answer.count - self._pace.rows + 1))
        part = slice(start, start + self._pace.rows)
        count = min(answer.count, self._pace.rows)
        return _Kept(
            Rows(_copied(rows.columns, part), count, rows.params),
            Predictions(_copied(answer.columns, part), count, answer.frame),
        )

    async def _run(self) -> None:
        pause, after = self._pace.first, self._pace.shortest
        last: list[_Kept] = []
        while not self.verdict:
            await asyncio.sleep(pause)
            kept, self._kept, self._seen = self._kept, [], 0
            if kept:
                last = kept
                await self._check(kept)
                pause, after = after, min(2 * after, self._pace.longest)
        if last:
            await self._stay_awake(last[0])

    async def _check(self, kept: Sequence[_Kept]) -> None:
        trouble = ""
        for start in range(0, len(kept), _AT_ONCE):
            part = kept[start : start + _AT_ONCE]
            outcomes = await asyncio.gather(*(self._outcome(one) for one in part))
            for one, outcome in zip(part, outcomes):  # noqa: B905 - they are as many
                if isinstance(outcome, ServingError):
                    trouble = f"answers of the compiled model could not be checked: {outcome}"
                elif outcome:
                    self._found(one, outcome)
            if trouble or self.verdict:
                break
        self.trouble = trouble

    async def _outcome(self, kept: _Kept) -> str | ServingError:
        """How the answer differs from the model's own, twice; empty where it does not; or why that cannot be told."""
        try:
            difference = await self._compared(kept) and await self._compared(kept)
        except ServingError as error:
            return error
        self._meter.event(Event.PARITY_CHECKED)
        return difference

    async def _compared(self, kept: _Kept) -> str:
        try:
            own = await self._native.recompute(kept.rows)
        except ModelError as error:
            _logger.debug("the model itself raised: %s", error)
            return "the model itself raises"
        if isinstance(own, Written):
            return "the model itself answers what is no array"
        return difference_of(kept.answer, own, self._tolerance)

    def _found(self, kept: _Kept, difference: str) -> None:
        self._meter.event(Event.PARITY_MISMATCH)
        self.verdict = f"the compiled model answered otherwise than the model itself: {difference}"
        _logger.error("%s; the model itself serves from now on", self.verdict)
        _logger.debug("the rows were %s", shown(kept.rows, self._privacy))

    async def _stay_awake(self, kept: _Kept) -> None:
        """Requests come to the native path now: its processes must not end when there are none for a while."""
        while True:
            await asyncio.sleep(self._pace.awake)
            try:
                await self._native.recompute(kept.rows)
            except ServingError as error:
                _logger.debug("the native path does not answer: %s", error)


def difference_of(answer: Predictions, own: Predictions, tolerance: float) -> str:
    """How an answer differs from the model's own, without its values; empty where both are the same.

    Scores may be `tolerance` apart, relative to the larger of 1 and their size; all else is equal, types included.
    """
    if (answer.frame, list(answer.columns)) != (own.frame, list(own.columns)):
        return f"it is {_form(answer)} and not {_form(own)}"
    for name, ours in answer.columns.items():
        theirs = own.columns[name]
        if ours.shape != theirs.shape or _kind(ours) != _kind(theirs):
            return f"{name or 'the answer'} is {ours.dtype}{ours.shape} and not {theirs.dtype}{theirs.shape}"
        far = _far(ours, theirs, tolerance)
        if far.any():
            rows = int(far.reshape(answer.count, -1).any(axis=1).sum())
            return f"{name or 'the answer'} differs in {rows} of {answer.count} rows{_by(ours, theirs)}"
    return ""


def shown(rows: Rows, privacy: Privacy) -> dict[str, object]:
    """The rows without the columns that must not be written as they are."""
    return {
        name: array.tolist()
        for name, array in rows.columns.items()
        if not privacy.drops(f"input.{name}") and not privacy.hashes(f"input.{name}")
    }


def _far(ours: Array, theirs: Array, tolerance: float) -> Array:
    if ours.dtype.kind != "f":
        return np.asarray(ours != theirs)
    near: Array = np.abs(ours.astype(np.float64) - theirs) <= tolerance * np.maximum(1.0, np.abs(theirs))
    return ~near


def _by(ours: Array, theirs: Array) -> str:
    return f", by up to {np.abs(ours.astype(np.float64) - theirs).max():.2g}" if ours.dtype.kind == "f" else ""


def _form(answer: Predictions) -> str:
    return f"a frame of {', '.join(answer.columns)}" if answer.frame else "an array"


def _kind(array: Array) -> str:
    return "text" if array.dtype.kind in "OU" else array.dtype.name


def _copied(columns: Mapping[str, Array], part: slice) -> dict[str, Array]:
    return {name: array[part].copy() for name, array in columns.items()}
