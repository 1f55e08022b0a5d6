"""The life of one front process: it starts, is ready, lingers, drains, and ends.

After SIGTERM it says at once that it is not ready, answers what still comes for a moment, finishes what is in flight
and in the queue, writes the prediction log, and only then ends its model processes.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import signal
import socket
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvloop

from serving.runtime.engines import engine_for
from serving.runtime.exchange import Engine
from serving.runtime.figures import Figures
from serving.runtime.plan import Plan
from serving.runtime.service import Service
from serving.runtime.settings import Settings
from serving.runtime.tracing import Tracing
from serving.runtime.web import Web

if TYPE_CHECKING:
    from serving.runtime.open_inference_grpc import GrpcServer

_logger = logging.getLogger("serving.runtime")

_COLLECTED_AFTER = 20_000
"""So many new objects, some megabytes, before Python looks for cycles among them. The prediction log keeps a second's
requests: at the usual 700, looking at them again and again took a tenth of the time of all else."""


@dataclass(frozen=True, slots=True)
class Shared:
    """What a front has from its parent, where it is one of several."""

    engine: Engine
    """Its compiled model is loaded."""
    parent: int
    """A descriptor that can be read once the parent is gone."""


class Front:
    """One front process."""

    def __init__(
        self, settings: Settings, plan: Plan, figures: Figures, listener: socket.socket, shared: Shared | None = None
    ) -> None:
        self._settings, self._plan, self._figures, self._listener = settings, plan, figures, listener
        self._shared = shared
        self._grpc: GrpcServer | None = None

    def run(self) -> int:
        """Serve until SIGTERM, or until the model turns out not to load; the exit status."""
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(self._serve())

    async def _serve(self) -> int:
        service, told = Service(self._settings, self._plan, self._figures), asyncio.Event()
        self._listen_for_the_end(told)
        tracing = Tracing.of_environment(self._settings.origin)
        web = Web(service, self._listener, tracing, shared=self._shared is not None)
        serving = web.start()
        starting = asyncio.create_task(self._start(service, web, tracing))
        ending = asyncio.create_task(told.wait())
        await asyncio.wait((serving, starting, ending), return_when=asyncio.FIRST_COMPLETED)
        failed = starting.done() and not starting.result()
        if not failed:
            await asyncio.wait((serving, ending), return_when=asyncio.FIRST_COMPLETED)
        service.stopping = True
        starting.cancel()
        await self._drain(web, serving, lingers=service.loaded and not serving.done())
        await service.close()
        tracing.close()
        return 0 if told.is_set() and not failed else 1

    def _listen_for_the_end(self, told: asyncio.Event) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        if self._shared is not None:
            loop.add_reader(self._shared.parent, told.set)

    async def _start(self, service: Service, web: Web, tracing: Tracing) -> bool:
        """Load the model, and predict once; whether that worked."""
        settings = self._settings
        try:
            if settings.grpc_port is not None:
                from serving.runtime import open_inference_grpc

                where = (settings.host, settings.grpc_port)
                self._grpc = await open_inference_grpc.serve(service, tracing, *where)
            await service.start(await self._engine())
        except RuntimeError as error:
            _logger.error("the server cannot start: %s", error)  # noqa: TRY400 - one line, as whoever waits reads it
            return False
        web.ready()
        gc.collect()
        gc.freeze()
        gc.set_threshold(_COLLECTED_AFTER)
        _logger.info("ready", extra={"cpu_seconds": round(time.process_time(), 3)})
        return True

    async def _engine(self) -> Engine:
        if self._shared is not None:
            return self._shared.engine
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, engine_for, self._settings, self._plan, self._figures)

    async def _drain(self, web: Web, serving: asyncio.Task[None], *, lingers: bool) -> None:
        linger = min(self._settings.linger, self._settings.drain / 2) if lingers else 0.0
        await asyncio.wait([serving], timeout=linger)
        rest = self._settings.drain - linger
        ends = [web.end(serving, rest)]
        if self._grpc is not None:
            ends.append(self._grpc.stop(rest))
        await asyncio.gather(*ends)
