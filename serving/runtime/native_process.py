"""One model process as the front sees it: it is started, says hello, is sent jobs, and ends one way or another."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

from serving.runtime.frames import Broken, Done, Hello, Job, Setup, Unpacker, packed

_END_SECONDS = 2.0
"""How long a process has to end by itself once its socket is closed."""

_TRACE_SECONDS = 1.0
"""How long a process has to write where its threads are."""

_READ_SECONDS = 1.0
"""How long what a process said last is waited for, where something that it started keeps its socket open."""


class LoadError(Exception):
    """The model process did not get as far as saying hello."""


class ModelProcess(asyncio.Protocol):
    """A process, and the connection to it. `done` is called with every answer, `ended` once it is gone."""

    def __init__(
        self,
        done: Callable[[ModelProcess, Done], None],
        ended: Callable[[ModelProcess, str], None],
        number: int,
    ) -> None:
        self.number = number
        """Which of the processes of its server it is."""
        self.jobs: set[int] = set()
        """Numbers of the jobs it has."""
        self.size = 0
        """Resident bytes after the warm-up."""
        self.hello: Hello
        """What it said once it was ready."""
        self._done, self._ended = done, ended
        self._unpacker = Unpacker()
        self._loop = asyncio.get_running_loop()
        self._hello: asyncio.Future[Hello] = self._loop.create_future()
        self._gone = asyncio.Event()
        self._gone.set()
        self._why = ""
        self._closed = False
        self._status: int | None = None
        self._process: subprocess.Popen[bytes]
        self._transport: asyncio.WriteTransport

    async def start(self, setup: Setup, seconds: float) -> None:
        """Return once the model is loaded and warm; `LoadError` where it is not within so many seconds."""
        try:
            await self._begin(setup)
        except OSError as error:
            raise LoadError(f"no process could be started: {error}") from error
        try:
            self.hello = await asyncio.wait_for(asyncio.shield(self._hello), seconds)
        except asyncio.TimeoutError:  # noqa: UP041 - of Python 3.10
            self.kill(f"was not ready within {seconds:g} s")
            raise LoadError(f"the model was not loaded within {seconds:g} s") from None
        except asyncio.CancelledError:
            self._why = self._why or "was not wanted any more"
            self._signal_all()
            raise
        if self._gone.is_set():
            raise LoadError(f"the model's process {self._why or 'ended'} as soon as the model was loaded")
        self.size = self.resident()

    async def _begin(self, setup: Setup) -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        with theirs:
            await self._loop.create_unix_connection(lambda: self, sock=ours)
            self._spawn(theirs, setup.cores)
        self._transport.write(packed(setup))

    def _spawn(self, theirs: socket.socket, cores: int) -> None:
        number, front = str(theirs.fileno()), str(os.getpid())
        self._process = subprocess.Popen(
            (sys.executable, "-m", "serving.runtime.native_worker", number, front),
            stdin=subprocess.DEVNULL,
            stdout=2,
            pass_fds=[theirs.fileno()],
            env=_environment(cores),
        )
        self._gone.clear()
        threading.Thread(target=self._wait, name="model process", daemon=True).start()

    def send(self, job: Job) -> None:
        self.jobs.add(job.number)
        self._transport.write(packed(job))

    def kill(self, why: str) -> None:
        """End it, with all that it started; where its threads were then goes to the log."""
        self._why = self._why or why
        if self._status is None and not self._gone.is_set():
            self._process.send_signal(signal.SIGABRT)
            self._loop.call_later(_TRACE_SECONDS, self._signal_all)

    async def end(self) -> None:
        """End it in peace; returns when it is gone."""
        if self._gone.is_set():
            return
        self._why = self._why or "was ended"
        self._transport.close()
        with contextlib.suppress(asyncio.TimeoutError):  # of Python 3.10
            await asyncio.wait_for(self._gone.wait(), _END_SECONDS)
        self._signal_all()
        await self._gone.wait()

    def resident(self) -> int:
        """Bytes in memory; 0 where the platform does not say."""
        try:
            pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        except OSError:
            return 0
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        for message in self._unpacker.feed(data):
            if isinstance(message, Done):
                self.jobs.discard(message.number)
                self._done(self, message)
            elif isinstance(message, Hello):
                self._hello.set_result(message)
            elif isinstance(message, Broken) and not self._hello.done():
                self._hello.set_exception(LoadError(message.reason))

    def connection_lost(self, _exc: Exception | None) -> None:
        """Nothing can be asked of it any more, whatever it still does."""
        self._closed = True
        if self._status is None:
            self._loop.call_later(_END_SECONDS, self._signal_all)
        else:
            self._over()

    def _signal_all(self) -> None:
        if self._status is not None or self._gone.is_set():
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()

    def _wait(self) -> None:
        """Until it has ended; then what it started is ended too, while its number is still its own."""
        os.waitid(os.P_PID, self._process.pid, os.WEXITED | os.WNOWAIT)
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        status = self._process.wait()
        with contextlib.suppress(RuntimeError):  # the loop was closed before
            self._loop.call_soon_threadsafe(self._exited, status)

    def _exited(self, status: int) -> None:
        """What it said last may still have to be read."""
        self._status = status
        if self._closed:
            self._over()
        else:
            self._loop.call_later(_READ_SECONDS, self._over)

    def _over(self) -> None:
        if self._gone.is_set() or self._status is None:
            return
        self._gone.set()
        self._transport.abort()
        why = self._why or _told(self._status)
        if not self._hello.done():
            self._hello.set_exception(LoadError(f"the model's process {why} while the model was being loaded"))
        self._hello.exception()
        self._ended(self, why)


def _environment(cores: int) -> dict[str, str]:
    """Without a number of computing threads, every process would start as many as the machine has cores."""
    threads = str(cores)
    return {"OMP_NUM_THREADS": threads} | os.environ | ({"OMP_NUM_THREADS": threads} if cores > 1 else {})


def _told(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        memory = ", as the system does for want of memory" if -status == signal.SIGKILL else ""
        return f"was ended by {signal.Signals(-status).name}{memory}"
    except ValueError:
        return f"was ended by signal {-status}"
