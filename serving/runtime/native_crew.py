"""Keeps as many model processes as asked for: starts them, replaces those that die or grow, ends them when idle."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from typing import Any

from serving.runtime.exchange import Event, Health, Meter
from serving.runtime.frames import Done, Setup
from serving.runtime.native_process import LoadError, ModelProcess
from serving.runtime.settings import Device

_LOOK_SECONDS = 1.0
"""How often memory and idleness are looked at."""

_IDLE_SECONDS = 0.05
"""How often a process that is to end is asked whether it has finished."""

_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.5, 30.0
"""Seconds before a process is replaced that is not the first to die lately; each pause is twice the one before it."""

_FIRST_REST, _LONGEST_REST = 1.0, 30.0
"""Seconds before a model that could not be loaded is tried again, likewise."""

_LONGEST_LAZY_REST = 300.0
"""The same where processes are only behind something else that serves."""

_SETTLED_SECONDS = 60.0
"""A process that lived so long did not die of what the one before it died of."""

_NO_GPU = "a GPU is asked for (DEVICE=gpu) and PyTorch sees none: the model computes on the CPU"

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class CrewSettings:
    """How many processes there are, and how long each of them stays."""

    workers: int
    start_timeout: float
    memory: int
    idle: float | None
    lazy: bool
    """Whether there are processes only while somebody asks for them; where the model cannot be loaded, too."""


@dataclass(frozen=True, slots=True)
class CrewCalls:
    """What a crew tells."""

    done: Callable[[ModelProcess, Done], None]
    """A process has done a job."""
    ready: Callable[[], None]
    """There is a new process."""
    lost: Callable[[ModelProcess, str], None]
    """A process is gone, and why; what is in its `jobs` will not be done."""
    broken: Callable[[], None]
    """The model could not be loaded, and there is no other process; see `Crew.rest`."""


class Crew:
    """The model processes of one pool."""

    def __init__(self, setup: Setup, settings: CrewSettings, meter: Meter, calls: CrewCalls) -> None:
        self.processes: list[ModelProcess] = []
        """Those that take jobs."""
        self.closed = False
        self._setup, self._settings, self._meter = setup, settings, meter
        self._calls = calls
        self._loop = asyncio.get_running_loop()
        self._born: dict[ModelProcess, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming = 0
        """So many are being started, or will be after a pause."""
        self._back_off = 0.0
        self._rest, self._rests_until = 0.0, -math.inf
        self._trouble = ""
        self._used, self._wanted = self._loop.time(), False
        """When somebody asked last, and whether anybody has since the model could not be loaded."""
        self._awake = False
        self._watch: asyncio.TimerHandle | None = None
        self._large: ModelProcess | None = None
        """The one that has grown too large, and stays until another one has come in its place."""

    async def start(self) -> None:
        """All processes, or `RuntimeError` with the reason why the model cannot be loaded."""
        self._awake = True
        self._look()
        starts = (self._start() for _ in range(self._settings.workers))
        outcomes = await asyncio.gather(*starts, return_exceptions=True)
        failures = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
        if failures:
            await self.close()
            raise RuntimeError(str(failures[0])) from failures[0]

    def use(self) -> None:
        """There is work: start the processes where they were ended for want of it."""
        self._used, self._wanted = self._loop.time(), True
        if not self._awake and not self.closed and self._used >= self._rests_until:
            self._awake = True
            self._look()
            self._fill()

    def rest(self) -> tuple[float, str]:
        """Seconds until the model is tried again, and why it could not be loaded; 0 while there is hope."""
        seconds = self._rests_until - self._loop.time()
        return (0.0 if self.processes or self._coming else max(0.0, seconds)), self._trouble

    def health(self) -> Health:
        there, wanted = len(self.processes), self._settings.workers
        if self.closed:
            return Health(ready=False, trouble="the model's processes were ended")
        device = ", ".join(sorted({process.hello.device for process in self.processes}))
        if there >= wanted or not (self._awake or self._rest):
            missed = self._setup.device is Device.GPU and device == "cpu"
            return Health(True, _NO_GPU if missed else "", device)
        if self._settings.lazy and not self._trouble:
            return Health(ready=False)  # as is usual where they come with the first request
        trouble = f"{there} of {wanted} model processes are there"
        trouble = f"{trouble}: {self._trouble}" if self._trouble else trouble
        return Health(there > 0, trouble, device)

    def rows(self, wanted: int) -> int:
        """As many as `wanted`, or the fewer that one of the processes can hold."""
        return min([wanted, *(process.hello.rows for process in self.processes)])

    async def close(self) -> None:
        self.closed = True
        if self._watch is not None:
            self._watch.cancel()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*(process.end() for process in list(self._born)))

    async def _start(self) -> ModelProcess:
        taken = {other.number for other in self._born}
        number = next(number for number in itertools.count() if number not in taken)
        process = ModelProcess(self._calls.done, self._ended, number)
        self._born[process] = self._loop.time()
        await process.start(replace(self._setup, number=number), self._settings.start_timeout)
        self._born[process] = self._loop.time()
        self.processes.append(process)
        if self._large is not None:
            self._keep(self._retire(self._large))
            self._large = None
        self._calls.ready()
        return process

    def _fill(self) -> None:
        """Start as many as are missing."""
        wanted = self._settings.workers + (self._large is not None)
        for _ in range(wanted - len(self.processes) - self._coming):
            self._replace(0.0)

    def _replace(self, delay: float) -> None:
        self._coming += 1
        self._keep(self._start_after(delay))

    def _keep(self, work: Coroutine[Any, Any, None]) -> None:
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _start_after(self, delay: float) -> None:
        await asyncio.sleep(delay)
        try:
            await self._start()
        except LoadError as error:
            self._coming -= 1
            self._failed(str(error))
        else:
            self._coming -= 1
            self._trouble, self._rest = "", 0.0

    def _failed(self, reason: str) -> None:
        """Rest, longer each time. Those that fail while one rests already are the same failure."""
        _logger.error("no model process: %s", reason)  # its own process has logged the trace
        self._trouble, now = f"the model cannot be loaded: {reason}", self._loop.time()
        if now >= self._rests_until:
            longest = _LONGEST_LAZY_REST if self._settings.lazy else _LONGEST_REST
            self._rest = min(max(_FIRST_REST, 2 * self._rest), longest)
            self._rests_until = now + self._rest
            self._wanted = False
            self._keep(self._try_again())
        if self.rest()[0]:
            self._calls.broken()

    async def _try_again(self) -> None:
        """After the rest; where processes are there only when asked for, if anybody has asked meanwhile."""
        await asyncio.sleep(self._rest)
        if self._wanted or self.processes or not self._settings.lazy:
            self._fill()
        else:
            self._sleep()

    def _ended(self, process: ModelProcess, why: str) -> None:
        born = self._born.pop(process)
        self._calls.lost(process, why)
        if process not in self.processes:
            return
        self.processes.remove(process)
        if self.closed:
            return
        self._trouble = f"one {why}"
        _logger.error("a model process %s: it is replaced", why)
        settled = self._loop.time() - born > _SETTLED_SECONDS
        self._meter.event(Event.WORKER_REPLACED)
        if process is self._large:
            self._large = None  # and the next one is on its way
        else:
            delay = 0.0 if settled else self._back_off
            self._back_off = min(max(_FIRST_BACK_OFF, 2 * delay), _LONGEST_BACK_OFF)
            self._replace(delay)

    def _look(self) -> None:
        settings = self._settings
        if settings.idle is not None and self._loop.time() - self._used > settings.idle and self._rests():
            self._sleep()
            return
        if settings.memory and self._large is None:
            self._replace_large()
        self._watch = self._loop.call_later(_LOOK_SECONDS, self._look)

    def _rests(self) -> bool:
        return not self._tasks and not any(process.jobs for process in self.processes)

    def _sleep(self) -> None:
        self._awake = False
        if self._watch is not None:
            self._watch.cancel()
        for process in self.processes:
            self._keep(process.end())
        self.processes.clear()

    def _replace_large(self) -> None:
        """One at a time; one that was over the limit from the start would only be followed by others like it."""
        limit = self._settings.memory
        self._large = next((p for p in self.processes if p.size <= limit < p.resident()), None)
        if self._large is not None:
            _logger.warning("a model process grew over %d bytes: it is replaced", limit)
            self._meter.event(Event.WORKER_REPLACED)
            self._replace(0.0)

    async def _retire(self, process: ModelProcess) -> None:
        self.processes.remove(process)
        while process.jobs:  # noqa: ASYNC110 - rare, and not worth an event for every job
            await asyncio.sleep(_IDLE_SECONDS)
        await process.end()
