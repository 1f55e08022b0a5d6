"""``python -m serving.runtime``: one model server, or several that share its socket.

The web server runs in a thread, so that this program's own signal handling decides how it ends: after SIGTERM
it says that it is stopping, answers what still comes for a moment, finishes what is in flight, writes the
prediction log and exits with 0.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import threading
import time
import traceback
from types import FrameType

import uvicorn

from serving.runtime.app import create_app
from serving.runtime.service import Service
from serving.runtime.settings import Settings, parse
from serving.runtime.workers import serve_by_several

_KEEP_ALIVE_SECONDS = 7200
"""Longer than a proxy keeps an idle connection, so that it is never closed while the proxy sends on it."""

_logger = logging.getLogger("serving.runtime")


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    settings = parse(sys.argv[1:], os.environ)
    listener = _listener(settings)
    if settings.workers > 1:
        return serve_by_several(settings, listener)
    return serve(settings, listener)


def serve(settings: Settings, listener: socket.socket) -> int:
    """Serve until SIGTERM, or until the model turns out not to load; the exit status."""
    service, ended = Service(settings), threading.Event()

    def stop(_number: int, _frame: FrameType | None) -> None:
        service.stopping = True
        ended.set()

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    loading = service.load()
    while settings.late and not loading.done() and not ended.wait(0.05):
        pass
    loading.add_done_callback(lambda future: ended.set() if future.exception() else None)
    web = _Web(service, listener, ended)
    ended.wait()
    if loading.done() and (error := loading.exception()):
        traceback.print_exception(error)
        return 1
    web.end()
    service.close()
    _logger.info("stopped")
    return 0 if service.stopping else 1


class _Web:
    """The web server in its thread; sets `ended` where it ends by itself."""

    def __init__(self, service: Service, listener: socket.socket, ended: threading.Event) -> None:
        config = uvicorn.Config(
            create_app(service),
            log_config=None,
            access_log=False,
            timeout_keep_alive=_KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=max(1, round(service.settings.drain - _linger(service))),
        )
        self._service = service
        self._server, self._ended, self._listener = uvicorn.Server(config), ended, listener
        self._thread = threading.Thread(target=self._run, name="web", daemon=True)
        self._thread.start()

    def end(self) -> None:
        """Answer what still comes for a moment, then finish what is in flight."""
        if self._thread.is_alive() and self._service.scorer:
            time.sleep(_linger(self._service))
        self._server.should_exit = True
        self._thread.join(self._service.settings.drain + 5)

    def _run(self) -> None:
        try:
            self._server.run(sockets=[self._listener])
        finally:
            self._ended.set()


def _linger(service: Service) -> float:
    return min(service.settings.linger, service.settings.drain / 2)


def _listener(settings: Settings) -> socket.socket:
    if settings.descriptor is not None:
        return socket.socket(fileno=settings.descriptor)
    listener = socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind((settings.host, settings.port))
    return listener


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    sys.stdout.flush()
    # Not the usual way out: it would wait for a model that is still being loaded in its thread.
    os._exit(status)
