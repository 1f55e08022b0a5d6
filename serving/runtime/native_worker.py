"""``python -m serving.runtime.native_worker``: a process that holds one model and predicts what the front sends.

It never outlives the front: the kernel kills it when the front dies, and where there is no such kernel it notices that
its socket was closed. What the model prints goes to the log, and signals meant for the server do not touch it.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import logging
import os
import select
import signal
import socket
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from types import FrameType
from typing import Any

from serving.runtime.frames import Broken, Hello, Job, Setup, packed, received
from serving.runtime.json_logs import configure

_PR_SET_PDEATHSIG = 1

_logger = logging.getLogger("serving.runtime.native_worker")


def main() -> int:
    connection = socket.socket(fileno=int(sys.argv[1]))
    _belong_to(int(sys.argv[2]), connection)
    faulthandler.enable()
    configure(as_json=os.environ.get("LOG_FORMAT", "json") == "json")
    os.environ["_MLFLOW_IS_IN_SERVING_ENVIRONMENT"] = "true"
    try:
        return _serve(connection, received(connection))
    except (EOFError, ConnectionError):
        return 0


def _serve(connection: socket.socket, setup: Setup) -> int:
    began = time.monotonic()
    try:
        from serving.runtime.native_model import NativeModel

        model = NativeModel(setup)
        rows = model.warm_up()
    except Exception as error:  # a model's own code runs while it is loaded, and may raise anything
        _logger.exception("the model cannot be loaded")
        connection.sendall(packed(Broken(_last_line(error))))
        return 1
    connection.sendall(packed(Hello(time.monotonic() - began, model.device, rows)))
    if setup.threads > 1:
        _several_at_once(connection, model, setup.threads)
    while True:
        connection.sendall(packed(model.do(received(connection))))


def _several_at_once(connection: socket.socket, model: Any, threads: int) -> None:
    lock = threading.Lock()

    def do(job: Job) -> None:
        answer = packed(model.do(job))
        with lock, contextlib.suppress(OSError):
            connection.sendall(answer)

    with ThreadPoolExecutor(threads, "predict") as pool:
        while True:
            pool.submit(do, received(connection)).add_done_callback(_end_with)


def _end_with(prediction: Future[None]) -> None:
    """What ends a thread, such as a model that exits, ends the process as it would without threads."""
    if prediction.exception() is not None:
        os._exit(1)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__


def _belong_to(front: int, connection: socket.socket) -> None:
    """End with the front, whatever the model is doing then, and leave the end to it."""
    with contextlib.suppress(OSError):
        os.setpgid(0, 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _leave_it)
    os.register_at_fork(after_in_child=lambda: _forked(connection))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(connection,), name="watch", daemon=True).start()
    if os.getppid() != front:
        os._exit(0)


def _leave_it(_number: int, _frame: FrameType | None) -> None:
    """The front decides when a model process ends. (To ignore the signal would be inherited by what a model runs.)"""


def _forked(connection: socket.socket) -> None:
    """A child of the model must neither keep the socket open nor be deaf to signals."""
    os.close(connection.detach())
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)


def _watch(connection: socket.socket) -> None:
    poll = select.poll()
    poll.register(connection, getattr(select, "POLLRDHUP", 0))
    poll.poll()
    os._exit(0)


if __name__ == "__main__":
    status = main()
    logging.shutdown()
    # Not the usual way out: threads and atexit handlers of a model's libraries may take any time.
    os._exit(status)
