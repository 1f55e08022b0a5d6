"""The native path: requests wait here, go to model processes in batches, and come back one by one.

One bad request fails alone: a batch that raises is split and repeated. A request whose time is over is not predicted,
a process that dies takes only what it was working on with it, and whoever waits goes on waiting for the next process.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from serving.runtime.batching import Queue, ServiceTime, Waiting, finite, merged, split
from serving.runtime.exchange import (
    DeadlineError,
    Health,
    Meter,
    ModelDiedError,
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
from serving.runtime.frames import Done, Job, Setup
from serving.runtime.native_crew import Crew, CrewCalls, CrewSettings
from serving.runtime.native_process import ModelProcess
from serving.runtime.parsing import Parser
from serving.runtime.plan import Plan
from serving.runtime.settings import Device
from serving.runtime.warming import example_of

_CHECKS = 100
"""How many repeated predictions for parity checks may wait."""

_logger = logging.getLogger(__name__)

_Request = Waiting["asyncio.Future[Predictions | Written]"]
_Queue = Queue["asyncio.Future[Predictions | Written]"]


@dataclass(frozen=True, slots=True)
class NativeSettings:
    """How a model is served by processes."""

    workers: int = 1
    """Model processes."""
    threads: int = 1
    """Predictions at once in each of them. Models need not be thread-safe."""
    cores: int = 1
    """Computing threads of each prediction."""
    queue: int = 1000
    """Requests that may wait."""
    batching: bool = True
    """Whether rows of several requests are predicted together where the plan says that they may be."""
    device: Device = Device.AUTO
    """What a model of PyTorch computes on."""
    budget: float = 0.05
    """Seconds that a batch may take."""
    rows: int = 1000
    """Rows of the largest batch."""
    predict_timeout: float = 60.0
    """Seconds after which the process of a stuck prediction is replaced."""
    start_timeout: float = 600.0
    """Seconds that loading the model may take."""
    memory: int = 0
    """Resident bytes of a process after which it is replaced as soon as it can be; 0 for no limit. (Linux.)"""
    idle: float | None = None
    """Seconds without a request after which all processes end, until the next request; None for never."""
    lazy: bool = False
    """Whether the processes are started with the first request, and not by `NativePool.start`."""
    log: bool = False
    """Whether `Written` answers carry inputs and outputs."""


@dataclass(frozen=True, slots=True)
class _Running:
    """A batch that a process works on."""

    requests: list[_Request]
    rows: int
    process: ModelProcess
    timer: asyncio.TimerHandle


class NativePool:
    """An `exchange.Engine` over model processes."""

    def __init__(self, folder: Path, plan: Plan, settings: NativeSettings, meter: Meter) -> None:
        self._plan, self._settings, self._meter = plan, settings, meter
        self._folder = folder
        self._batching = settings.batching and plan.batching
        self._service = ServiceTime()
        self._queue: _Queue = Queue()
        self._again: deque[list[_Request]] = deque()
        """Parts of batches that failed: they go first."""
        self._checks: _Queue = Queue()
        self._running: dict[int, _Running] = {}
        self._numbers = itertools.count(1)
        self._soon = False
        self._alarm: asyncio.TimerHandle | None = None
        self._crew: Crew | None = None
        self._loop: asyncio.AbstractEventLoop

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        settings = self._settings
        tensors = tuple(tensor.name for tensor in self._plan.tensors)
        grows = self._batching and settings.device is not Device.CPU
        setup = Setup(
            self._folder,
            tensors,
            settings.threads,
            settings.cores,
            settings.log,
            settings.device,
            settings.rows if self._batching else 1,
            example_of(self._folder, Parser(self._plan)) if grows else None,
        )
        limits = CrewSettings(settings.workers, settings.start_timeout, settings.memory, settings.idle, settings.lazy)
        calls = CrewCalls(self._done, self._dispatch_soon, self._lost, self._broken)
        self._crew = Crew(setup, limits, self._meter, calls)
        if not settings.lazy:
            await self._crew.start()

    async def predict(self, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        if len(self._queue) >= self._settings.queue:
            raise QueueFullError(f"{self._settings.queue} requests wait already", self._drained_in())
        return await self._wait(self._queue, ask, deadline)

    async def recompute(self, rows: Rows) -> Predictions | Written:
        """Predict when nothing else waits; for parity checks."""
        if len(self._checks) >= _CHECKS:
            raise QueueFullError(f"{_CHECKS} checks wait already", self._drained_in())
        return await self._wait(self._checks, rows, math.inf)

    def health(self) -> Health:
        return self._crew.health() if self._crew else Health(ready=False, trouble="the model is not loaded yet")

    async def close(self) -> None:
        if self._crew is not None:
            await self._crew.close()
        if self._alarm is not None:
            self._alarm.cancel()
        for request in list(self._everybody()):
            self._fail(request, NotReadyError("the server ends"))

    async def _wait(self, queue: _Queue, ask: Rows | Raw, deadline: float) -> Predictions | Written:
        if self._crew is None or self._crew.closed:
            raise NotReadyError("the model is not loaded")
        self._crew.use()
        if (rest := self._crew.rest())[0]:
            raise _resting(*rest)
        request: _Request = Waiting(ask, deadline, time.perf_counter(), self._loop.create_future())
        queue.put(request)
        self._meter.queued(len(self._queue))
        self._dispatch_soon()
        if self._alarm is None or deadline < self._alarm.when():
            self._set_alarm(deadline)
        try:
            return await request.caller
        except asyncio.CancelledError:
            self._leave(request)
            raise

    def _dispatch_soon(self) -> None:
        """Once the requests that have arrived together are all in the queue."""
        if not self._soon:
            self._soon = True
            self._loop.call_soon(self._dispatch)

    def _dispatch(self) -> None:
        self._soon = False
        while (process := self._free()) and (batch := self._next()):
            self._send(process, batch)
        self._meter.queued(len(self._queue))

    def _free(self) -> ModelProcess | None:
        processes = self._crew.processes if self._crew else []
        process = min(processes, key=lambda process: len(process.jobs), default=None)
        return process if process and len(process.jobs) < self._settings.threads else None

    def _next(self) -> list[_Request]:
        while self._again:
            if batch := [request for request in self._again.popleft() if not request.gone]:
                return batch
        while batch := self._queue.take(self._limit()):
            now = self._loop.time()
            for late in (request for request in batch if request.deadline <= now):
                self._expire(late)
            if batch := [request for request in batch if not request.gone]:
                self._begins(batch)
                return batch
        return self._checks.take(self._limit())

    def _begins(self, batch: list[_Request]) -> None:
        now = time.perf_counter()
        for request in batch:
            self._meter.stage(Stage.QUEUE, now - request.since)

    def _limit(self) -> int:
        """Rows of the next batch."""
        if not self._batching:
            return 1
        rows = min(self._settings.rows, self._service.rows_within(self._settings.budget))
        return self._crew.rows(rows) if self._crew else rows

    def _send(self, process: ModelProcess, batch: list[_Request]) -> None:
        number, ask = next(self._numbers), batch[0].ask
        if isinstance(ask, Rows):
            ask = merged([request.ask for request in batch if isinstance(request.ask, Rows)])
        rows = ask.count if isinstance(ask, Rows) else 1
        timer = self._loop.call_later(self._settings.predict_timeout, self._stuck, number)
        self._running[number] = _Running(batch, rows, process, timer)
        self._meter.batch(len(batch), rows)
        process.send(Job(number, ask, len(batch)))

    def _done(self, _process: ModelProcess, done: Done) -> None:
        running = self._running.pop(done.number)
        running.timer.cancel()
        answer = done.answer
        if isinstance(answer, ServingError):
            self._failed(running.requests, answer)
            self._dispatch()
            return
        if isinstance(running.requests[0].ask, Rows) or not self._plan.typed:
            self._service.observe(running.rows, done.seconds)
        if len(running.requests) > 1 and not (isinstance(answer, Predictions) and answer.count == running.rows):
            self._never_together(running.requests)
            self._dispatch()
            return
        self._dispatch()
        for _ in running.requests:
            self._meter.stage(Stage.PREDICT, done.seconds)
        self._answer(running.requests, answer, done.finite)

    def _answer(self, requests: list[_Request], answer: Predictions | Written, whole: bool) -> None:
        if isinstance(answer, Written):
            self._give(requests[0], answer)
            return
        counts = [request.rows for request in requests] if len(requests) > 1 else [answer.count]
        for request, part in zip(requests, split(answer, counts)):  # noqa: B905 - they are as many
            if whole or finite(part):
                self._give(request, part)
            else:
                self._fail(request, ModelError("The model answered NaN or an infinity."))

    def _failed(self, requests: list[_Request], error: ServingError) -> None:
        """Only the request that is to blame fails: it is looked for by halves."""
        if len(requests) == 1:
            self._fail(requests[0], error)
            return
        middle = len(requests) // 2
        self._again.extendleft((requests[middle:], requests[:middle]))

    def _never_together(self, requests: list[_Request]) -> None:
        _logger.warning("the model did not answer a batch row by row: requests are predicted alone from now on")
        self._batching = False
        self._again.extend([request] for request in requests)

    def _stuck(self, number: int) -> None:
        self._running[number].process.kill(f"gave no answer for {self._settings.predict_timeout:g} s")

    def _lost(self, process: ModelProcess, why: str) -> None:
        for number in process.jobs:
            running = self._running.pop(number)
            running.timer.cancel()
            for request in running.requests:
                self._fail(request, ModelDiedError(f"The model's process {why} during this prediction."))

    def _broken(self) -> None:
        """Nobody knows how long it will be: those that wait may try elsewhere."""
        assert self._crew is not None
        for request in [*self._queue, *self._checks, *itertools.chain(*self._again)]:
            self._fail(request, _resting(*self._crew.rest()))

    def _give(self, request: _Request, answer: Predictions | Written) -> None:
        if not request.caller.done():
            request.caller.set_result(answer)

    def _leave(self, request: _Request) -> None:
        request.leave()
        self._meter.queued(len(self._queue))

    def _fail(self, request: _Request, error: ServingError) -> None:
        self._leave(request)
        if not request.caller.done():
            request.caller.set_exception(error)

    def _expire(self, request: _Request) -> None:
        self._fail(request, DeadlineError("the time of the request was over before there was a prediction"))

    def _everybody(self) -> Iterator[_Request]:
        yield from self._queue
        yield from self._checks
        for running in self._running.values():
            yield from running.requests
        for requests in self._again:
            yield from requests

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm = None if deadline == math.inf else self._loop.call_at(deadline, self._ring)

    def _ring(self) -> None:
        """Tell those whose time is over."""
        now = self._loop.time()
        for request in [request for request in self._everybody() if request.deadline <= now]:
            self._expire(request)
        self._alarm = None
        self._set_alarm(min((r.deadline for r in self._everybody() if not r.gone), default=math.inf))

    def _drained_in(self) -> float:
        """Seconds until those that wait now are answered, by what was learned; 1 where nothing is known."""
        limit = self._limit()
        at_once = self._settings.threads * max(1, len(self._crew.processes) if self._crew else 1)
        batches = math.ceil(len(self._queue) / limit / at_once)
        return self._service.expected(limit) * batches or 1.0


def _resting(seconds: float, why: str) -> NotReadyError:
    error = NotReadyError(why)
    error.retry_after = seconds
    return error
