"""Several front processes on one socket and one loaded model.

The model is loaded once and the processes are forked from that, before there is any thread or event loop, so that its
memory is theirs together. The parent does nothing but replace those that die. They end, drained, when it is gone: each
holds the reading end of a pipe that only the parent can write to.

One of them, number 0, has some of its answers computed again by the model itself, and tells the others what it finds
out: a model process for each of them would cost more than it shows.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from dataclasses import replace
from types import FrameType

from serving.runtime.engines import compiled_model, engine_for
from serving.runtime.exchange import Event
from serving.runtime.figures import Figures
from serving.runtime.front import Front, Shared
from serving.runtime.plan import Plan
from serving.runtime.settings import Settings

_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.1, 10.0

_LOOK_SECONDS = 0.05
"""How often it is looked whether the server is to end, while one that died is not replaced yet."""

_SETTLED_SECONDS = 60.0
"""A process that lived so long did not die of what the one before it died of."""

_logger = logging.getLogger("serving.runtime")


class Workers:
    """The front processes of one server."""

    def __init__(self, settings: Settings, plan: Plan, listener: socket.socket) -> None:
        self._settings, self._plan, self._listener = settings, plan, listener
        origin = settings.origin
        self._figures = Figures(origin.model, origin.version, settings.workers)
        self._reader, self._writer = os.pipe()
        self._workers: dict[int, int] = {}
        """Process id to the number of the worker."""
        self._born: dict[int, float] = {}
        self._back_off = 0.0
        self._stopping = False

    def run(self) -> int:
        """Serve until SIGTERM, or until the model turns out not to load; the exit status."""
        try:
            self._model = compiled_model(self._settings, self._plan)
        except RuntimeError as error:
            _logger.error("the server cannot start: %s", error)  # noqa: TRY400 - one line, as whoever waits reads it
            return 1
        self._figures.be(-1)
        gc.collect()
        gc.freeze()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._stop)
        for worker in range(self._settings.workers):
            self._fork(worker)
        return self._watch()

    def _stop(self, _number: int, _frame: FrameType | None) -> None:
        self._stopping = True
        self._tell(signal.SIGTERM)

    def _tell(self, number: signal.Signals) -> None:
        for pid in self._workers:
            with contextlib.suppress(ProcessLookupError):  # it has just ended
                os.kill(pid, number)

    def _fork(self, worker: int) -> None:
        pid = os.fork()
        if pid == 0:
            self._become(worker)
        self._workers[pid], self._born[pid] = worker, time.monotonic()
        if self._stopping:
            self._tell(signal.SIGTERM)

    def _become(self, worker: int) -> None:
        """The child: does not return."""
        status = 1
        try:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            os.close(self._writer)
            if self._stopping:  # told while it still had its parent's handlers
                os._exit(0)
            self._figures.be(worker)
            status = self._front(worker).run()
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(status)

    def _front(self, worker: int) -> Front:
        settings = self._settings if worker == 0 else replace(self._settings, parity_share=0.0)
        engine = engine_for(settings, self._plan, self._figures, self._model)
        return Front(settings, self._plan, self._figures, self._listener, Shared(engine, self._reader))

    def _watch(self) -> int:
        """Until all workers have ended; one that could not start ends them all."""
        failed = False
        while self._workers:
            pid, status = os.waitpid(-1, 0)
            worker = self._workers.pop(pid, None)
            if worker is None:
                continue
            code = os.waitstatus_to_exitcode(status)
            if self._stopping:
                continue
            if code == 1:
                failed = True
                self._stop(signal.SIGTERM, None)
            else:
                self._replace(worker, pid, code)
        return 1 if failed else 0

    def _replace(self, worker: int, pid: int, code: int) -> None:
        how = signal.Signals(-code).name if code < 0 else f"status {code}"
        _logger.error("front process %d ended with %s: it is replaced", pid, how)
        self._figures.event(Event.WORKER_REPLACED)
        settled = time.monotonic() - self._born.pop(pid) > _SETTLED_SECONDS
        delay = 0.0 if settled else self._back_off
        self._back_off = min(max(_FIRST_BACK_OFF, 2 * delay), _LONGEST_BACK_OFF)
        until = time.monotonic() + delay
        while time.monotonic() < until and not self._stopping:
            time.sleep(_LOOK_SECONDS)
        if not self._stopping:
            self._fork(worker)
