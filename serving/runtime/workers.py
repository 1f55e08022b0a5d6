"""Several model servers on one socket: the system hands each new connection to one of them.

Each is a process with the model loaded for itself, and listens only once it is ready. One that ends by itself
ends them all, because whoever runs this program knows better whether to start it again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from types import FrameType

from serving.runtime.settings import Settings


def serve_by_several(settings: Settings, listener: socket.socket) -> int:
    """Serve by `settings.workers` processes until SIGTERM or until one of them ends; the exit status."""
    workers = [_start(settings, listener.fileno()) for _ in range(settings.workers)]
    stopping: list[int] = []

    def stop(number: int, _frame: FrameType | None) -> None:
        stopping.append(number)
        _tell(workers, signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    while not stopping and all(worker.poll() is None for worker in workers):
        time.sleep(0.1)
    _tell(workers, signal.SIGTERM)
    codes = [worker.wait() for worker in workers]
    return 0 if stopping else max(map(abs, codes)) or 1


def _start(settings: Settings, descriptor: int) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "serving.runtime", "--model", str(settings.model)]
    return subprocess.Popen(
        [*command, "--fd", str(descriptor), "--late"], pass_fds=[descriptor], env={**os.environ, "WORKERS": "1"}
    )


def _tell(workers: list[subprocess.Popen[bytes]], number: signal.Signals) -> None:
    for worker in workers:
        if worker.poll() is None:
            worker.send_signal(number)
