"""The engine over a compiled model: short predictions on the event loop, long ones in a thread, the rest natively.

A compiled prediction of one row takes less time than handing it to a thread. What it costs is mostly the call, so
requests that arrive in the same turn of the event loop are predicted by one call. Nobody waits for others: a request
that comes alone, after turns in which requests came alone, is predicted at once, and otherwise at the end of the turn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from math import inf

from serving.prediction_log_entry import NOTHING_PRIVATE, Privacy
from serving.runtime.batching import ServiceTime, finite, split
from serving.runtime.compiled import CompiledModel
from serving.runtime.exchange import (
    DeadlineError,
    Event,
    Health,
    Meter,
    ModelError,
    NotReadyError,
    Predictions,
    QueueFullError,
    Raw,
    Rows,
    ServingError,
    Stage,
    Written,
)
from serving.runtime.parity import USUAL, Native, Pace, Parity
from serving.runtime.plan import Plan
from serving.stacked_columns import end_to_end

_SHORT = 0.001
"""Seconds that a prediction may hold the event loop up."""

_EVERY = 8
"""Of predictions of one request, so many pass for one from which the time of a row is learned."""

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is predicted together in the thread, and how much may wait for it."""

    rows: int = 1000
    """The most rows that are predicted together."""
    budget: float = 0.05
    """Seconds that predicting several requests together may take."""
    queue: int = 1000
    """Requests that may wait."""


USUAL_LIMITS = Limits()


@dataclass(eq=False, slots=True)
class _Waiting:
    """A request that is predicted at the end of the turn, or in the thread."""

    ask: Rows
    deadline: float
    since: float
    caller: asyncio.Future[Predictions]
    timer: asyncio.TimerHandle | None = field(default=None, init=False)
    alone: bool = field(default=False, init=False)
    """Whether it is not predicted together with others any more, since that failed."""


class CompiledEngine:
    """An `exchange.Engine` over a compiled model, with the native path for what the compiled model does not cover."""

    def __init__(
        self,
        model: CompiledModel,
        plan: Plan,
        native: Native,
        meter: Meter,
        share: float,
        *,
        privacy: Privacy = NOTHING_PRIVATE,
        pace: Pace = USUAL,
        limits: Limits = USUAL_LIMITS,
    ) -> None:
        """`share` of the answers is computed again natively; columns that `privacy` names are never shown.

        The native path is started and closed with this engine.
        """
        assert plan.compiled is not None
        self._model, self._plan, self._native, self._meter, self._limits = model, plan, native, meter, limits
        self._parity = Parity(native, plan, meter, share, privacy, pace)
        self._pass = self._parity.first()
        self._names = tuple(dict.fromkeys(name for feed in plan.compiled.feeds for name in feed.columns))
        self._service = ServiceTime()
        self._short_rows = 0
        self._calls, self._untold = 0, 0
        self._turn: list[_Waiting] = []
        self._came, self._crowd = 0, 0
        self._long: deque[_Waiting] = deque()
        self._busy, self._telling = False, False
        self._work: asyncio.Task[None] | None = None
        self._thread = ThreadPoolExecutor(1, "compiled")
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def compiled(self) -> bool:
        """Whether the compiled model answers what it covers; else the model itself answers all."""
        return not self._parity.verdict

    def distrust(self, why: str) -> None:
        """The model itself answers from now on."""
        self._parity.distrust(why)

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        await self._native.start()
        self._parity.start()

    async def predict(self, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        if self._loop is None:
            raise NotReadyError("the model is not loaded")
        if isinstance(ask, Raw) or self._parity.verdict or not self._model.covers(ask):
            return await self._natively(ask, deadline)
        if deadline <= self._loop.time():
            raise _late()
        try:
            alone = self._comes_alone() and ask.count <= self._short_rows
            answer = self._at_once(ask) if alone else await self._later(ask, deadline)
        except ModelError as error:
            _logger.debug("the model itself is asked, since %s", error)
            return await self._natively(ask, deadline)
        if self._pass:
            self._pass -= 1
        else:
            self._pass = self._parity.keep(ask, answer)
        return answer

    def health(self) -> Health:
        if self._loop is None:
            return Health(ready=False, trouble="the model is not loaded yet")
        if not self._parity.verdict:
            return Health(True, self._parity.trouble or self._native.health().trouble, "cpu")
        native = self._native.health()
        trouble = f"{self._parity.verdict}; the model itself serves instead"
        trouble = f"{trouble}, but {native.trouble}" if native.trouble else trouble
        return Health(native.ready, trouble, native.device)

    async def close(self) -> None:
        self._loop = None
        await self._parity.close()
        await self._native.close()
        for waiting in (*self._turn, *self._long):
            _fail(waiting, NotReadyError("the server ends"))
        self._long.clear()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def _natively(self, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        self._meter.event(Event.NATIVE_FALLBACK)
        return await self._native.predict(ask, deadline)

    def _comes_alone(self) -> bool:
        """Whether neither this turn nor those before it brought another request that could be predicted with it."""
        if not self._plan.batching:
            return True
        self._count()
        return self._came == 1 and self._crowd < 2

    def _count(self) -> None:
        if not self._came:
            asyncio.get_running_loop().call_soon(self._turn_ends)
        self._came += 1

    def _at_once(self, ask: Rows) -> Predictions:
        self._untold += 1
        if self._untold < _EVERY:
            began = time.perf_counter()
            answer = self._model.predict(ask)
        else:
            self._untold = 0
            answer, began, cpu = self._together([ask])
            self._learn(ask.count, cpu)
        if not finite(answer):
            raise _not_finite()
        self._meter.stage(Stage.PREDICT, time.perf_counter() - began)
        self._meter.batch(1, ask.count)
        return answer

    async def _later(self, ask: Rows, deadline: float) -> Predictions:
        if len(self._turn) + len(self._long) >= self._limits.queue:
            raise QueueFullError("more requests wait than may", self._drained_in())
        if not self._came:
            self._count()
        caller: asyncio.Future[Predictions] = asyncio.get_running_loop().create_future()
        waiting = _Waiting(ask, deadline, time.perf_counter(), caller)
        self._turn.append(waiting)
        try:
            return await caller
        finally:
            if waiting.timer is not None:
                waiting.timer.cancel()

    def _turn_ends(self) -> None:
        """Predict what came together, here where it is short."""
        turn, self._turn = [waiting for waiting in self._turn if not waiting.caller.done()], []
        self._crowd, self._came = max(self._came, self._crowd // 2), 0
        for batch in self._batches(turn):
            if sum(waiting.ask.count for waiting in batch) <= self._short_rows:
                self._predict(batch)
            else:
                self._queue(sorted(batch, key=lambda waiting: waiting.ask.count > self._short_rows))
        self._pump()

    def _batches(self, turn: list[_Waiting]) -> Iterable[list[_Waiting]]:
        if not self._plan.batching:
            return [[waiting] for waiting in turn]
        if not self._plan.tensors:
            return [turn] if turn else []
        alike: dict[object, list[_Waiting]] = {}
        for waiting in turn:
            alike.setdefault(self._shapes(waiting.ask), []).append(waiting)
        return alike.values()

    def _shapes(self, ask: Rows) -> tuple[tuple[int, ...], ...]:
        """Only tensors of the same shapes can be one."""
        return tuple(ask.columns[name].shape[1:] for name in self._names)

    def _predict(self, batch: list[_Waiting]) -> None:
        try:
            computed = self._together([waiting.ask for waiting in batch])
        except ModelError as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for waiting in batch:
                self._predict([waiting])
        else:
            self._done(batch, *computed)

    def _together(self, asks: Sequence[Rows]) -> tuple[Predictions, float, float]:
        """The answer to all, when it began, and the CPU time that it took this thread."""
        began, cpu = time.perf_counter(), time.thread_time()
        answer = self._model.predict(asks[0] if len(asks) == 1 else self._merged(asks))
        return answer, began, time.thread_time() - cpu

    def _merged(self, asks: Sequence[Rows]) -> Rows:
        try:
            columns = end_to_end([ask.columns for ask in asks], self._names)
        except (ValueError, MemoryError) as error:
            raise ModelError(f"the requests do not go together: {error}") from error
        return Rows(columns, sum(ask.count for ask in asks))

    def _done(self, batch: list[_Waiting], answer: Predictions, began: float, cpu: float) -> None:
        for waiting in batch:
            self._meter.stage(Stage.QUEUE, began - waiting.since)
        self._meter.stage(Stage.PREDICT, time.perf_counter() - began)
        self._meter.batch(len(batch), answer.count)
        self._learn(answer.count, cpu)
        whole = finite(answer)
        for waiting, part in zip(batch, split(answer, [waiting.ask.count for waiting in batch])):  # noqa: B905
            if whole or finite(part):
                _give(waiting, part)
            else:
                _fail(waiting, _not_finite())

    def _queue(self, batch: list[_Waiting]) -> None:
        """Have the thread predict them, each until its deadline; the large ones stand last."""
        loop = asyncio.get_running_loop()
        self._long.extend(batch)
        for waiting in batch:
            waiting.caller.add_done_callback(self._tell_soon)
            if waiting.deadline < inf:
                waiting.timer = loop.call_at(waiting.deadline, _fail, waiting, _late())
        self._tell()

    def _tell_soon(self, _caller: object) -> None:
        """Many may be answered, or give up, in one turn."""
        if not self._telling:
            self._telling = True
            asyncio.get_running_loop().call_soon(self._tell)

    def _tell(self) -> None:
        self._telling = False
        self._meter.queued(sum(not waiting.caller.done() for waiting in self._long))

    def _drained_in(self) -> float:
        """Seconds until those that wait now are answered, by what was learned; 1 where nothing is known."""
        return self._service.expected(sum(waiting.ask.count for waiting in self._long)) or 1.0

    def _pump(self) -> None:
        if not self._busy and (batch := self._next()):
            self._busy = True
            self._tell()
            self._work = asyncio.get_running_loop().create_task(self._in_thread(batch))

    def _next(self) -> list[_Waiting]:
        limit = min(self._limits.rows, self._service.rows_within(self._limits.budget)) if self._plan.batching else 1
        batch: list[_Waiting] = []
        rows = 0
        while self._long:
            waiting = self._long[0]
            if not waiting.caller.done():
                if batch and (rows + waiting.ask.count > limit or not self._goes_with(batch[0], waiting)):
                    break
                batch.append(waiting)
                rows += waiting.ask.count
            self._long.popleft()
        return batch

    def _goes_with(self, one: _Waiting, other: _Waiting) -> bool:
        if one.alone or other.alone:
            return False
        return not self._plan.tensors or self._shapes(one.ask) == self._shapes(other.ask)

    async def _in_thread(self, batch: list[_Waiting]) -> None:
        asks = [waiting.ask for waiting in batch]
        try:
            computed = await asyncio.get_running_loop().run_in_executor(self._thread, self._together, asks)
        except ModelError as error:
            self._blame(batch, error)
        else:
            self._done(batch, *computed)
        self._busy = False
        self._pump()

    def _blame(self, batch: list[_Waiting], error: ModelError) -> None:
        """Only the request that is to blame fails: each is predicted alone."""
        if len(batch) == 1:
            _fail(batch[0], error)
            return
        for waiting in batch:
            waiting.alone = True
        self._long.extendleft(reversed(batch))

    def _learn(self, rows: int, seconds: float) -> None:
        """How long rows take, by CPU time: a thread that waits for Python's lock, or for a processor, waits wherever it
        predicts. The very first call takes longer than all others and teaches nothing."""
        self._calls += 1
        if self._calls == 1:
            return
        self._service.observe(rows, seconds)
        self._short_rows = self._service.rows_within(_SHORT) if self._service.expected(1) <= _SHORT else 0


def _give(waiting: _Waiting, answer: Predictions) -> None:
    if not waiting.caller.done():
        waiting.caller.set_result(answer)


def _fail(waiting: _Waiting, error: ServingError) -> None:
    if not waiting.caller.done():
        waiting.caller.set_exception(error)


def _late() -> DeadlineError:
    return DeadlineError("the time of the request was over before there was a prediction")


def _not_finite() -> ModelError:
    return ModelError("The model answered NaN or an infinity.")
