"""``python3 -m serving.gateway_pod``: what runs beside Envoy in its pod, with nothing but Python's own library.

It unpacks the tables, which stand compressed in a ConfigMap because that holds no more than 1 MiB, into the folder that
Envoy watches. And it is the controller's way in: to Envoy's administration, which listens inside the pod only, and to
the access log, which is read in pieces from where the reader says that it was. Whoever asks has to know the key.
"""

from __future__ import annotations

import argparse
import gzip
import hmac
import http.client
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import NoReturn
from urllib.parse import parse_qs, urlsplit

from serving.envoy_control import KEY_HEADER

FILE_HEADER, OFFSET_HEADER = "x-log-file", "x-log-offset"
"""Of an answer with a piece of the log: which file it is from, by its inode, and where the next piece begins."""
NOW_HEADER = "x-log-now"
"""And the time by this machine's clock, which is the one that the log goes by, in seconds."""
PACKED = ".gz"
LOOK_SECONDS = 0.1
"""How often the pod looks whether its tables changed."""
ADMIN_SECONDS = 5.0
MOST_BYTES = 192 * 2**20
"""Of one file of the log, of which there are two at most."""
BOUND_SECONDS = 2.0
LAST_SECONDS = 3.0
"""How long the log can still be read after Envoy has ended."""
METRICS = "/metrics"
"""Envoy's statistics, as Prometheus reads them, for which nobody needs the key."""
_STATISTICS = "/stats/prometheus?usedonly"
_ACTIVE = "http.gateway.downstream_rq_active"
_NAME = re.compile(r"[a-z]+\.json\.gz")


def unpack(packed: Path, tables: Path) -> None:
    """Put every table of the folder `packed` that changed into the folder `tables`, each at once.

    Clusters come before the routes that need them: so sorts the alphabet.
    """
    for source in sorted(path for path in packed.iterdir() if _NAME.fullmatch(path.name)):
        content, place = gzip.decompress(source.read_bytes()), tables / source.name.removesuffix(PACKED)
        if not place.exists() or place.read_bytes() != content:
            fresh = place.with_suffix(".new")
            fresh.write_bytes(content)
            fresh.replace(place)


def follow(packed: Path, tables: Path) -> None:
    """Unpack whenever the kubelet has changed the folder, for ever."""
    seen = ""
    while True:
        with suppress(OSError, EOFError, ValueError):  # between two folders: the next look has it whole
            now = str((packed / "..data").readlink())
            if now != seen:
                unpack(packed, tables)
                seen = now
        time.sleep(LOOK_SECONDS)


@dataclass(frozen=True, slots=True)
class Piece:
    """Whole lines of the log, and where they end."""

    file: int
    """Inode."""
    offset: int
    data: bytes


class Log:
    """Envoy's access log: the file that is written, and the one before while it is still read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._before = path.with_name(f"{path.name}.1")
        self._guard = threading.Lock()

    def read(self, file: int, offset: int, most: int) -> Piece:
        """What follows in that file; where it is read to its end, or is not there, the beginning of the next one."""
        with self._guard:
            files = {path.stat().st_ino: path for path in (self._before, self._path) if path.exists()}
            if not files:
                return Piece(0, 0, b"")
            if file not in files:
                file, offset = next(iter(files)), 0
            piece = _piece(files[file], file, offset, most)
            last = next(reversed(files))
            return _piece(files[last], last, 0, most) if not piece.data and file != last else piece

    def drop(self, file: int, size: int) -> bool:
        """Who reads `file` needs none before it. Whether Envoy is to begin a new one, as `size` bytes are enough."""
        with self._guard:
            current = self._path.stat() if self._path.exists() else None
            if current is not None and current.st_ino == file:
                self._before.unlink(missing_ok=True)
            if current is not None and current.st_size >= size and not self._before.exists():
                self._path.rename(self._before)
            return self._before.exists() and not self._path.exists()

    def bound(self, size: int) -> bool:
        """Where nobody reads, `size` bytes put the file before away. Whether Envoy is to begin a new one."""
        with self._guard:
            if self._path.exists() and self._path.stat().st_size >= size:
                self._path.replace(self._before)
            return self._before.exists() and not self._path.exists()


def bound(log: Log, admin_port: int) -> None:
    """See for ever that the log does not fill the pod, whose end that would be."""
    while True:
        if log.bound(MOST_BYTES):
            with suppress(OSError, http.client.HTTPException):
                ask_admin(admin_port, "POST", "/reopen_logs")
        time.sleep(BOUND_SECONDS)


def ask_admin(port: int, method: str, path: str) -> tuple[int, bytes]:
    """Status and body of Envoy's administration."""
    with closing(http.client.HTTPConnection("127.0.0.1", port, timeout=ADMIN_SECONDS)) as admin:
        admin.request(method, path)
        answer = admin.getresponse()
        return answer.status, answer.read()


def _piece(path: Path, file: int, offset: int, most: int) -> Piece:
    with path.open("rb") as log:
        log.seek(offset)
        data = log.read(most)
    whole = data.rfind(b"\n") + 1 or (len(data) if len(data) == most else 0)
    return Piece(file, offset + whole, data[:whole])


class Door(ThreadingHTTPServer):
    """What the controller asks."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, port: int, key: str, admin_port: int, log: Log) -> None:
        super().__init__(("", port), _Handler)
        self.key, self.admin_port, self.log = key, admin_port, log


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Door

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name is the base class's
        """What is asked several times a second is not written about."""

    def do_GET(self) -> None:
        self._answer("GET")

    def do_POST(self) -> None:
        self._answer("POST")

    def _answer(self, method: str) -> None:
        asked = urlsplit(self.path)
        open_to_all = (method, asked.path) == ("GET", METRICS)
        if not open_to_all and not hmac.compare_digest(self.headers.get(KEY_HEADER, ""), self.server.key):
            self._send(403, b"the key is another one\n")
            return
        try:
            if open_to_all:
                self._send(*ask_admin(self.server.admin_port, "GET", _STATISTICS), {"content-type": "text/plain"})
            elif asked.path == "/log":
                self._log(method, {name: int(values[0]) for name, values in parse_qs(asked.query).items()})
            elif asked.path.startswith("/admin/"):
                self._send(*ask_admin(self.server.admin_port, method, self.path.removeprefix("/admin")))
            else:
                self._send(404, b"there are /log and /admin/\n")
        except (KeyError, ValueError) as error:
            self._send(400, f"{error!r}\n".encode())
        except (OSError, http.client.HTTPException) as error:
            self._send(502, f"{error}\n".encode())

    def _log(self, method: str, numbers: dict[str, int]) -> None:
        if method == "GET":
            now = time.time()  # before it is read: whatever was written up to then is in the piece
            piece = self.server.log.read(numbers["file"], numbers["offset"], numbers["most"])
            place = {FILE_HEADER: str(piece.file), OFFSET_HEADER: str(piece.offset)}
            self._send(200, piece.data, {**place, NOW_HEADER: f"{now:.3f}"})
            return
        if self.server.log.drop(numbers["file"], numbers["size"]):
            ask_admin(self.server.admin_port, "POST", "/reopen_logs")
        self._send(204, b"")

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)


def start(log: Path, command: Sequence[str]) -> NoReturn:
    """Become Envoy. What was in flight before is told to be over: no line of it will follow."""
    with log.open("a") as file:
        file.write("\n" + json.dumps({"type": "GatewayStart", "start": time.time()}) + "\n")
    os.execv(command[0], [*command])  # noqa: S606 - the pod's own command


def drain(admin_port: int, seconds: float, most: float) -> None:
    """Say that no more requests are wanted, give everybody time to learn it, and `most` seconds to those in flight."""
    with suppress(OSError, http.client.HTTPException):
        ask_admin(admin_port, "POST", "/healthcheck/fail")
        ask_admin(admin_port, "POST", "/drain_listeners?graceful&skip_exit")
    time.sleep(seconds)
    deadline = time.monotonic() + most
    with suppress(OSError, http.client.HTTPException):
        while busy(admin_port) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)


def busy(admin_port: int) -> bool:
    """Whether Envoy has requests in flight."""
    said = ask_admin(admin_port, "GET", f"/stats?filter=^{_ACTIVE}$")[1].decode()
    return any(not line.endswith(" 0") for line in said.splitlines())


def leave(admin_port: int) -> None:
    """End once Envoy has, and whoever reads its log has had time to read it to its end."""
    with suppress(OSError, http.client.HTTPException):
        while True:
            ask_admin(admin_port, "GET", "/ready")
            time.sleep(LOOK_SECONDS)
    time.sleep(LAST_SECONDS)
    os._exit(0)


def main(arguments: Sequence[str]) -> int:
    given = _asked(arguments)
    if given.part == "start":
        start(given.log, given.envoy)
    if given.part == "drain":
        drain(given.admin_port, given.seconds, given.most)
        return 0
    given.tables.mkdir(parents=True, exist_ok=True)
    unpack(given.packed, given.tables)
    if given.part == "serve":
        leaving = threading.Thread(target=leave, args=(given.admin_port,), daemon=True)
        signal.signal(signal.SIGTERM, lambda *_: leaving.start() if not leaving.is_alive() else None)
        log = Log(given.log)
        threading.Thread(target=follow, args=(given.packed, given.tables), daemon=True).start()
        threading.Thread(target=bound, args=(log, given.admin_port), daemon=True).start()
        Door(given.port, os.environ["GATEWAY_KEY"], given.admin_port, log).serve_forever()
    return 0


def _asked(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("serving.gateway_pod", description="Serve the controller beside Envoy.")
    parts = parser.add_subparsers(dest="part", required=True)
    unpacking = parts.add_parser("unpack", help="unpack the tables, before Envoy starts")
    starting = parts.add_parser("start", help="become Envoy")
    draining = parts.add_parser("drain", help="wait until nobody asks any more")
    serving = parts.add_parser("serve", help="serve the controller, and unpack what changes")
    for part in (unpacking, serving):
        part.add_argument("--packed", type=Path, required=True, help="folder of the ConfigMap with the tables")
        part.add_argument("--tables", type=Path, required=True, help="folder that Envoy watches")
    for part in (starting, serving):
        part.add_argument("--log", type=Path, required=True, help="Envoy's access log")
    for part in (draining, serving):
        part.add_argument("--admin-port", type=int, required=True, help="Envoy's administration")
    serving.add_argument("--port", type=int, required=True, help="where the controller asks")
    draining.add_argument("--seconds", type=float, required=True, help="how long that takes")
    draining.add_argument("--most", type=float, required=True, help="how long requests in flight may take then")
    starting.add_argument("envoy", nargs="+", help="its program and options")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
