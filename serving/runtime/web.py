"""uvicorn in an event loop that is ours: it takes connections, looks at them once in a while, and ends when told to.

A server that is alone listens as uvicorn does. Several that share a socket take one connection at a time, and each
leaves the next to the others for a moment while it has more of them than another one: otherwise the first that wakes
takes them all, and a proxy with few connections would keep one process busy and the others idle.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvicorn

from serving.runtime.app import create_app
from serving.runtime.figures import Figures
from serving.runtime.http_limits import Limits, limited, look
from serving.runtime.service import Service
from serving.runtime.tracing import Tracing

_KEEP_ALIVE_SECONDS = 7200
"""Longer than a proxy keeps an idle connection, so that it is never closed while the proxy sends on it."""

_BACKLOG = 2048

_MOMENT_SECONDS = 0.002

_MOMENTS = 5
"""For how many moments a connection is left to the others: they may be too busy to take it."""

_FULL_SECONDS = 1.0
"""How long no connection is taken after none could be: there were no descriptors left, for example."""

_logger = logging.getLogger("serving.runtime")


class _Server(uvicorn.Server):
    """Signals are handled by whoever runs it."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    def install_signal_handlers(self) -> None:
        """As above, in older versions of uvicorn."""


class Web:
    """The web server of a service."""

    def __init__(self, service: Service, listener: socket.socket, tracing: Tracing, *, shared: bool) -> None:
        """`shared`: other processes take connections from the same socket."""
        settings = service.settings
        limits = Limits(settings.header_limit, settings.header_seconds, settings.body_seconds, settings.write_seconds)
        self._config = uvicorn.Config(
            create_app(service, tracing),
            loop="none",
            http=limited(limits, service.figures.connections),
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            backlog=_BACKLOG,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        )
        self._service, self._listener, self._shared = service, listener, shared
        self._look_seconds = limits.look_seconds
        self._loop = asyncio.get_running_loop()
        self._server = _Server(self._config)
        self._door: _Door | None = None
        self._ticking: asyncio.TimerHandle | None = None

    def start(self) -> asyncio.Task[None]:
        """The task is done when the server has ended. Whoever is alone answers from now on, that it is not ready."""
        self._tick()
        return self._loop.create_task(self._server.serve(sockets=[] if self._shared else [self._listener]))

    def ready(self) -> None:
        """Predictions can be made: whoever shares its socket takes connections from now on.

        Before, it would take them from others that are ready.
        """
        if self._shared:
            self._listener.listen(_BACKLOG)
            self._door = _Door(self._listener, self._server, self._service.figures)

    async def end(self, serving: asyncio.Task[None], seconds: float) -> None:
        """Take no more connections, and finish what is in flight."""
        if self._door is not None:
            self._door.close()
        self._config.timeout_graceful_shutdown = max(1, round(seconds))
        self._server.should_exit = True
        await asyncio.wait([serving])
        if self._ticking is not None:
            self._ticking.cancel()

    def _tick(self) -> None:
        look(self._server.server_state.connections, self._loop.time())
        self._service.look()
        self._ticking = self._loop.call_later(self._look_seconds, self._tick)


class _Door:
    """Takes connections from a socket that other processes take connections from as well."""

    def __init__(self, listener: socket.socket, server: uvicorn.Server, figures: Figures) -> None:
        self._listener, self._server, self._figures = listener, server, figures
        self._loop = asyncio.get_running_loop()
        self._opening: set[asyncio.Task[None]] = set()
        self._waited = 0
        self._again: asyncio.TimerHandle | None = None
        listener.setblocking(False)
        self._open()

    def close(self) -> None:
        if self._again is not None:
            self._again.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()

    def _open(self) -> None:
        self._loop.add_reader(self._listener, self._knock)

    def _pause(self, seconds: float) -> None:
        self._loop.remove_reader(self._listener)
        self._again = self._loop.call_later(seconds, self._open)

    def _knock(self) -> None:
        """A connection waits; once it was left to the others in vain, it is taken."""
        if self._waited < _MOMENTS and self._figures.crowded():
            self._waited += 1
            self._pause(_MOMENT_SECONDS)
            return
        self._waited = 0
        try:
            connection, _ = self._listener.accept()
        except (BlockingIOError, ConnectionAbortedError):
            return
        except OSError as error:
            _logger.warning("no connection can be taken: %s", error)
            self._pause(_FULL_SECONDS)
            return
        self._take(connection)

    def _take(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        task = self._loop.create_task(self._connect(connection))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)
        self._figures.connections(len(self._server.server_state.connections) + len(self._opening))

    async def _connect(self, connection: socket.socket) -> None:
        await self._loop.connect_accepted_socket(self._protocol, connection)

    def _protocol(self) -> asyncio.Protocol:
        made: Any = self._server.config.http_protocol_class
        protocol: asyncio.Protocol = made(self._server.config, self._server.server_state, {})
        return protocol
