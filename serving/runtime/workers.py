"""Several front processes on one socket and one loaded model.

The model is loaded once and the processes are forked from that, before there is any thread or event loop, so that its
memory is theirs together. The parent does nothing but replace those that die. They end, drained, when it is gone: each
holds the reading end of a pipe that only the parent can write to.
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
from types import FrameType

from serving.runtime.engines import engine_for
from serving.runtime.exchange import Event
from serving.runtime.figures import Figures
from serving.runtime.front import Front, Shared
from serving.runtime.plan import Plan
from serving.runtime.settings import Settings

_FIRST_BACK_OFF, _LONGEST_BACK_OFF = 0.1, 10.0

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
        self._deaths = 0
        self._stopping = False

    def run(self) -> int:
        """Serve until SIGTERM, or until the model turns out not to load; the exit status."""
        try:
            self._engine = engine_for(self._settings, self._plan, self._figures)
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
            self._figures.be(worker)
            front = Front(self._settings, self._plan, self._figures, self._listener, Shared(self._engine, self._reader))
            status = front.run()
        finally:
            logging.shutdown()
            sys.stderr.flush()
            os._exit(status)

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
        self._deaths = 0 if time.monotonic() - self._born.pop(pid) > _SETTLED_SECONDS else self._deaths + 1
        if self._deaths > 1:
            time.sleep(min(_FIRST_BACK_OFF * 2.0**self._deaths, _LONGEST_BACK_OFF))
        self._fork(worker)
