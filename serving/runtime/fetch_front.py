"""The server before it has its model: it says how far that is, and nothing else.

It comes before the server proper, whether that is one process or several: a socket that goes on listening is all that
they have in common, so that no connection is refused between the two.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import uvloop

from serving.runtime import manifest
from serving.runtime.figures import Figures
from serving.runtime.plan import Plan
from serving.runtime.service import Service
from serving.runtime.settings import Settings
from serving.runtime.tracing import Tracing
from serving.runtime.web import Web

_LOG_SECONDS = 3.0
"""A line of the log says so often how far it is."""

_MEGABYTE = 1e6

_logger = logging.getLogger("serving.runtime")


def fetched(settings: Settings, plan: Plan, listener: socket.socket) -> Path | None:
    """The folder of the model, once it is there; None where the server was told to end before.

    `RuntimeError` with the reason where the model cannot be had, `ValueError` where nobody says what or where to.
    """
    if manifest.read(settings.model) is None:
        return settings.model
    if not settings.model_cache:
        raise ValueError("the model is not in the image, and MODEL_CACHE names no folder to fetch it to")
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        return loop.run_until_complete(_FetchFront(settings, plan, listener).serve())
    finally:
        asyncio.set_event_loop(None)
        loop.close()


class _FetchFront:
    def __init__(self, settings: Settings, plan: Plan, listener: socket.socket) -> None:
        origin = settings.origin
        self._settings, self._listener = settings, listener
        self._service = Service(settings, plan, Figures(origin.model, origin.version))

    async def serve(self) -> Path | None:
        loop, told = asyncio.get_running_loop(), asyncio.Event()
        web = Web(self._service, self._listener.dup(), Tracing(self._settings.origin), shared=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, told.set)
        serving, ending = web.start(), asyncio.create_task(told.wait())
        fetching = asyncio.create_task(_Fetching(self._settings, self._service).folder())
        try:
            await asyncio.wait((serving, fetching, ending), return_when=asyncio.FIRST_COMPLETED)
            if told.is_set():
                return None
            if not fetching.done():
                raise RuntimeError("nobody can be told how far the model is: the web server ended")
            return fetching.result()
        finally:
            self._service.stopping = told.is_set()
            await _ended(fetching, ending)
            await web.end(serving, 1.0)


class _Fetching:
    """The process that fetches."""

    def __init__(self, settings: Settings, service: Service) -> None:
        self._settings, self._service = settings, service
        self._logged, self._done, self._doing = time.monotonic(), 0, ""

    async def folder(self) -> Path:
        process = _started(self._settings)
        try:
            return await self._followed(process)
        finally:
            process.kill()
            process.wait()
            assert process.stdin is not None
            process.stdin.close()

    async def _followed(self, process: subprocess.Popen[bytes]) -> Path:
        """Take in what it says, to its last word."""
        lines = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(lines), process.stdout
        )
        with contextlib.closing(transport):
            while line := await lines.readline():
                told = json.loads(line)
                if "folder" in told:
                    return Path(told["folder"])
                if "error" in told:
                    raise RuntimeError(told["error"])
                self._take(told)
        raise RuntimeError(f"the process that fetches the model ended with status {process.wait()}")

    def _take(self, told: dict[str, Any]) -> None:
        if "warning" in told:
            _logger.warning("%s", told["warning"])
            return
        doing, done, size = told["doing"], told["done"], told["of"]
        percent = 100 * done // max(size, 1)
        self._service.fetched = percent
        self._service.doing = f"{doing}: {percent} % of {_amount(size)}"
        now = time.monotonic()
        if doing != self._doing:
            self._doing, self._logged, self._done = doing, now, done
            _logger.info("%s", self._service.doing, extra={"percent": percent})
        elif now - self._logged >= _LOG_SECONDS:
            rate = max(0.0, done - self._done) / (now - self._logged) / _MEGABYTE
            about = {"percent": percent, "megabytes_per_second": round(rate, 1)}
            _logger.info("%s, %.1f MB/s", self._service.doing, rate, extra=about)
            self._logged, self._done = now, done


def _started(settings: Settings) -> subprocess.Popen[bytes]:
    about = (str(settings.model), settings.model_cache, str(settings.fetch_tries))
    command = (sys.executable, "-m", "serving.runtime.fetch_worker", *about)
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def _ended(*tasks: asyncio.Task[Any]) -> None:
    for task in tasks:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, RuntimeError):
            await task


def _amount(size: float) -> str:
    """Of bytes, for people: ``2.1 GB``."""
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.1f} {unit}" if unit != "bytes" else f"{size:g} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
