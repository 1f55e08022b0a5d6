"""``python -m serving.prediction_log_writer SOCKET``: writes the prediction log of one server process.

It takes in what the server hands over at any time, writes it when it is asked to, and ends when the server does,
however that ended: then it writes what it has. Signals meant for the server do not touch it. It gives way to the
server, which somebody waits for.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import sys
import threading
from contextlib import suppress
from queue import SimpleQueue

from serving.prediction_log import LogFiles
from serving.prediction_log_entry import Order, Served, Stored
from serving.prediction_log_pack import Packed
from serving.runtime.frames import packed, received, received_body

_NICE = 10

_LAST_SECONDS = 60
"""So long it may write once nobody can be told any more."""


class Writer:
    """What was handed over and is not in a file yet."""

    def __init__(self, files: LogFiles) -> None:
        self._files = files
        self._packs: list[Packed] = []
        self._odd: list[Served] = []
        self._unreadable = ""

    def take(self, body: bytearray) -> bool:
        """Keep what was handed over; False where that is only the wish to have all written."""
        try:
            value = pickle.loads(body)  # noqa: S301 - from the process that started this one
        except Exception as error:  # noqa: BLE001 - values may be of any class, and it raise anything
            self._unreadable = str(error)
            return True
        if isinstance(value, Packed):
            self._packs.append(value)
        elif value is not None:
            self._odd += value
        return value is not None

    def write(self) -> Stored:
        packs, odd, unreadable = self._packs, self._odd, self._unreadable
        self._packs, self._odd, self._unreadable = [], [], ""
        stored = self._files.write(packs, odd)
        return Stored(stored.written, unreadable, unreadable) if unreadable and not stored.why else stored


def main() -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    connection = socket.socket(fileno=int(sys.argv[1]))
    order: Order = received(connection)
    try:
        writer = Writer(LogFiles(order.url, order.origin, order.privacy))
    except (ImportError, OSError, ValueError) as error:
        _tell(connection, str(error))
        return 1
    _tell(connection, "")
    _serve(connection, writer)
    return 0


def _serve(connection: socket.socket, writer: Writer) -> None:
    """Until the other end is gone."""
    bodies: SimpleQueue[bytearray | None] = SimpleQueue()
    threading.Thread(target=_read, args=(connection, bodies), daemon=True).start()
    while (body := bodies.get()) is not None:
        if not writer.take(body):
            stored = writer.write()
            _tell(connection, stored)
    writer.write()


def _tell(connection: socket.socket, told: object) -> None:
    """Where the other end is gone, what it sent before is written all the same."""
    with suppress(OSError):
        connection.sendall(packed(told))


def _read(connection: socket.socket, bodies: SimpleQueue[bytearray | None]) -> None:
    """Also while a file is written, so that the server has nothing to keep."""
    with suppress(EOFError, OSError):
        while True:
            bodies.put(received_body(connection))
    signal.alarm(_LAST_SECONDS)
    bodies.put(None)


if __name__ == "__main__":
    sys.exit(main())
