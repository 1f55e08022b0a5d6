"""``python -m serving.runtime.fetch_worker MANIFEST CACHE TRIES``: fetches the model, in a process of its own.

So the server can end at once whatever a read from the network hangs in, and has no thread of anybody's left when it
forks. It is ended by being killed; what it holds is on disk. It ends by itself when its standard input is closed, which
is when the server is gone, and it is deaf to signals that are meant for the server.

What it says are lines of JSON on standard output: what it is `doing`, how many bytes are `done` `of` all, or a
`warning`; at last the `folder`, or an `error`.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from pathlib import Path

from serving.runtime import manifest
from serving.runtime.model_cache import FetchError, ModelCache

_SAY_SECONDS = 0.5


class _Report:
    """Tells whoever reads standard output."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._now: Callable[[], tuple[str, int]] = lambda: ("looking for the model", 0)
        self._guard = threading.Lock()

    def at(self, now: Callable[[], tuple[str, int]]) -> None:
        self._now = now

    def warn(self, text: str) -> None:
        self.say(warning=text)

    def say(self, **told: str | int) -> None:
        with self._guard:
            sys.stdout.write(json.dumps(told) + "\n")
            sys.stdout.flush()

    def keep_saying(self) -> None:
        waiting = threading.Event()
        while not waiting.wait(_SAY_SECONDS):
            doing, done = self._now()
            self.say(doing=doing, done=done, of=self._size)


def main() -> int:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_the_server, daemon=True).start()
    listed = manifest.read(Path(sys.argv[1]))
    assert listed is not None
    report = _Report(listed.size)
    threading.Thread(target=report.keep_saying, daemon=True).start()
    try:
        folder = ModelCache(Path(sys.argv[2]), listed, int(sys.argv[3]), report).model()
    except FetchError as error:
        report.say(error=str(error))
        return 1
    report.say(folder=str(folder))
    return 0


def _end_with_the_server() -> None:
    sys.stdin.read()
    os._exit(1)


if __name__ == "__main__":
    status = 1
    try:
        status = main()
    except Exception:  # noqa: BLE001 - whoever waits for this process is told, whatever it was
        traceback.print_exc()
    finally:
        # Not the usual way out: it would wait for threads that still read from the network.
        sys.stderr.flush()
        os._exit(status)
