"""What the front and a model process say to each other: pickled messages, each behind its length.

Both ends are the same program in the same environment, and nobody else holds the socket, so pickle is safe here and
carries NumPy arrays without a copy on the way in. Only values of NumPy, of Python itself and of `exchange` travel: the
front has no pandas to read anything else with.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from struct import Struct
from typing import Any

from serving.runtime.exchange import Predictions, Raw, Rows, ServingError, Written
from serving.runtime.settings import Device

_LENGTH = Struct("!Q")


@dataclass(frozen=True, slots=True)
class Setup:
    """The first message to a model process."""

    folder: Path
    tensors: tuple[str, ...]
    """Names of the signature's tensors; none where it has columns or there is no signature."""
    threads: int
    """Predictions at once."""
    cores: int
    """Computing threads of each."""
    log: bool
    """Whether inputs and outputs are needed for the prediction log."""
    device: Device
    """What a model of PyTorch may compute on."""
    rows: int
    """Rows of the largest batch; 1 where every request is predicted alone."""
    example: Rows | None
    """The model's input example, for batches that grow on a GPU; None where none do, or it cannot be parsed here."""
    number: int = 0
    """Of the process among those of its server."""


@dataclass(frozen=True, slots=True)
class Hello:
    """The model is loaded and has made its warm-up prediction."""

    seconds: float
    """That took so long."""
    device: str
    """Where the model computes, such as ``cuda:0``; empty where that cannot be told."""
    rows: int
    """Rows of the largest batch that it can hold there, at most those of the setup."""


@dataclass(frozen=True, slots=True)
class Broken:
    """The model cannot be loaded, or fails on its own input example."""

    reason: str


@dataclass(frozen=True, slots=True)
class Job:
    """One prediction to make."""

    number: int
    ask: Rows | Raw
    requests: int
    """So many were put together."""


@dataclass(frozen=True, slots=True)
class Done:
    """What became of a job."""

    number: int
    answer: Predictions | Written | ServingError
    seconds: float
    """The model took so long."""
    finite: bool = True
    """Whether the predictions are free of NaN and infinities."""


def packed(message: Any) -> bytes:
    body = pickle.dumps(message, protocol=5)
    return _LENGTH.pack(len(body)) + body


class Unpacker:
    """Messages from the pieces in which a stream arrives."""

    def __init__(self) -> None:
        self._pieces = bytearray()

    def feed(self, piece: bytes) -> Iterator[Any]:
        """The messages that are complete with `piece`."""
        self._pieces += piece
        while len(self._pieces) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._pieces)[0]
            if len(self._pieces) < end:
                return
            body = bytes(self._pieces[_LENGTH.size : end])
            del self._pieces[:end]
            yield pickle.loads(body)  # noqa: S301 - from our own process, see above


def received(connection: socket.socket) -> Any:
    """The next message; `EOFError` where the other end is gone."""
    return pickle.loads(received_body(connection))  # noqa: S301 - from our own process, see above


def received_body(connection: socket.socket) -> bytearray:
    """The next message as it came; `EOFError` where the other end is gone."""
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    return _exactly(connection, length)


def _exactly(connection: socket.socket, size: int) -> bytearray:
    body = bytearray(size)
    rest = memoryview(body)
    while rest:
        count = connection.recv_into(rest)
        if count == 0:
            raise EOFError("the other end is gone")
        rest = rest[count:]
    return body
