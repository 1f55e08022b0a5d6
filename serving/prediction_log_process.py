"""The process that writes the prediction log, as the server sees it: it is started, handed parcels, and ends.

Handing over never waits: what the socket does not take at once is kept, in order, until it does.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from serving.prediction_log_entry import Order, Stored
from serving.runtime.frames import Unpacker, packed, received

_START_SECONDS = 60.0
"""For Python and Arrow."""

_END_SECONDS = 2.0
"""How long a process has to be gone once its end of the socket is."""

_PIECE = 65536


class GoneError(Exception):
    """The process has ended; why."""


@dataclass(frozen=True, slots=True)
class Parcel:
    """One message to the process: rows, or the wish that all before it be written."""

    body: bytes
    rows: int
    """So many it has, or are to be written; the same for `size`."""
    size: int
    asks: bool = False

    @staticmethod
    def of(value: Any, rows: int) -> Parcel:
        body = packed(value)
        return Parcel(body, rows, len(body))

    @staticmethod
    def asking(rows: int, size: int) -> Parcel:
        return Parcel(packed(None), rows, size, asks=True)


class WriterProcess:
    """One process. Any thread may call any of it, but only one at a time `attend`."""

    def __init__(self, order: Order) -> None:
        """Returns once the process can write; `OSError` with the reason where it cannot."""
        self._socket, theirs = socket.socketpair()
        self._woken, self._wakes = socket.socketpair()
        for end in (self._woken, self._wakes):
            end.setblocking(False)
        self._lock = threading.Lock()
        self._outbox: deque[Parcel] = deque()
        self._sent = 0
        """Bytes of the first parcel in the outbox."""
        self._asked: deque[Parcel] = deque()
        """What was not answered yet."""
        self._finishing, self._gone = False, False
        self._unpacker = Unpacker()
        with theirs:
            self._process = _spawn(theirs)
        try:
            self._greet(order)
        except OSError:
            self._bury()
            raise

    def send(self, parcel: Parcel) -> None:
        """Hand over, now or as soon as that can be done."""
        with self._lock:
            self._outbox.append(parcel)
            if len(self._outbox) == 1 and not self._push():
                self.wake()

    def finish(self) -> None:
        """There is nothing more to come: the process ends when it has done all that it was asked for."""
        with self._lock:
            self._finishing = True
            self._push()

    def attend(self, seconds: float | None) -> list[tuple[Parcel, Stored]]:
        """Hand over and listen for at most so long; returns, by question, what was written.

        `GoneError` once it has ended and all that it said was returned.
        """
        waiting = select.poll()
        waiting.register(self._woken, select.POLLIN)
        waiting.register(self._socket, select.POLLIN | (select.POLLOUT if self._outbox else 0))
        ready = dict(waiting.poll(None if seconds is None else seconds * 1000))
        if self._woken.fileno() in ready:
            self._woken.recv(_PIECE)
        with self._lock:
            self._push()
        return self._listen() if ready.get(self._socket.fileno(), 0) & ~select.POLLOUT else []

    def wake(self) -> None:
        """End `attend` early."""
        with suppress(OSError):  # it will wake as it is, or is gone
            self._wakes.send(b"!")

    def rest(self) -> list[Parcel]:
        """Rows of which it got nothing, once it is gone."""
        with self._lock:
            untouched = list(self._outbox)[1 if self._sent else 0 :]
        return [parcel for parcel in untouched if not parcel.asks]

    def kill(self) -> None:
        self._process.kill()

    def _greet(self, order: Order) -> None:
        self._socket.settimeout(_START_SECONDS)
        try:
            self._socket.sendall(packed(order))
            trouble: str = received(self._socket)
        except EOFError:
            raise OSError("the process that is to write ended at once") from None
        if trouble:
            raise OSError(trouble)
        self._socket.setblocking(False)

    def _push(self) -> bool:
        """Hand over what the socket takes; whether that is all. The lock is held."""
        try:
            while self._outbox and not self._gone:
                parcel = self._outbox[0]
                self._sent += self._socket.send(memoryview(parcel.body)[self._sent :])
                if self._sent == len(parcel.body):
                    self._sent = 0
                    self._outbox.popleft()
                    if parcel.asks:
                        self._asked.append(parcel)
            if self._finishing and not self._gone:
                self._socket.shutdown(socket.SHUT_WR)
        except BlockingIOError:
            return False
        except OSError:
            self._gone = True  # `attend` will find out
        return True

    def _listen(self) -> list[tuple[Parcel, Stored]]:
        try:
            piece = self._socket.recv(_PIECE)
        except ConnectionError:
            piece = b""
        if not piece:
            raise GoneError(self._bury())
        return [(self._asked.popleft(), stored) for stored in self._unpacker.feed(piece)]

    def _bury(self) -> str:
        """Why it ended. Nothing is left of it afterwards but what it was not handed."""
        with self._lock:
            self._gone = True
            for end in (self._socket, self._woken, self._wakes):
                end.close()
        try:
            status = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            status = self._process.wait()
        return f"the process that writes it {_told(status)}"


def _spawn(theirs: socket.socket) -> subprocess.Popen[bytes]:
    """Not among those that a signal to the whole server's group reaches; without computing threads of its own."""
    return subprocess.Popen(
        (sys.executable, "-m", "serving.prediction_log_writer", str(theirs.fileno())),
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=[theirs.fileno()],
        start_new_session=True,
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )


def _told(status: int) -> str:
    if status >= 0:
        return f"exited with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
