"""As much of a cluster's HTTP interface as lists and watches take, which goes wrong as it is told to."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kubernetes.client import Configuration

Object = dict[str, Any]


@dataclass
class Refusal:
    """An answer instead of what was asked for."""

    status: int
    message: str = "not now"
    headers: dict[str, str] = field(default_factory=dict)


class SmallCluster:
    """Objects of one kind, with versions that only grow."""

    def __init__(self, server: ThreadingHTTPServer) -> None:
        self.server = server
        self.objects: dict[str, Object] = {}
        self.version = 10
        self.oldest = 0
        """Watches from before this version are refused: `expire`."""
        self.refusals: list[Refusal] = []
        """Answers to the next requests, the first first."""
        self.away = False
        """While set, connections are closed without an answer."""
        self.asked: list[str] = []
        """Method, path and query of every request, in order."""
        self.sent: list[Object] = []
        """Bodies of requests."""
        self.most = 500
        """Objects in one page."""
        self._watches: list[queue.Queue[bytes | None]] = []
        self._told: list[tuple[int, bytes]] = []
        """What became of objects, by version, for those who follow from an older one."""
        self._guard = threading.RLock()

    @property
    def connection(self) -> Configuration:
        made = Configuration(host=f"http://127.0.0.1:{self.server.server_port}")
        made.api_key["authorization"] = "Bearer of-the-tests"
        return made

    def put(self, name: str, **more: Any) -> Object:
        with self._guard:
            self.version += 1
            known = name in self.objects
            made = {"metadata": {"name": name, "resourceVersion": str(self.version), "managedFields": [1]}, **more}
            self.objects[name] = made
            self._tell("MODIFIED" if known else "ADDED", made)
            return json.loads(json.dumps(made))  # type: ignore[no-any-return]

    def remove(self, name: str) -> None:
        with self._guard:
            self.version += 1
            gone = self.objects.pop(name)
            gone["metadata"]["resourceVersion"] = str(self.version)
            self._tell("DELETED", gone)

    def bookmark(self) -> None:
        self.version += 1
        self._tell("BOOKMARK", {"metadata": {"resourceVersion": str(self.version)}})

    def tell_older(self, name: str, version: int) -> None:
        """As a watch does that is behind."""
        self._tell("MODIFIED", {"metadata": {"name": name, "resourceVersion": str(version)}})

    def expire(self) -> None:
        """Whoever follows is told that what they know is too old."""
        with self._guard:
            self.oldest = self.version = self.version + 1
            self._tell("ERROR", {"kind": "Status", "code": 410, "message": "too old resource version"})
            self.drop()

    def drop(self) -> None:
        """Every watch ends in the middle of a line."""
        with self._guard:
            for one in self._watches:
                one.put(b'{"type": "ADD')
                one.put(None)
            self._watches = []

    def watching(self) -> int:
        return len(self._watches)

    def _tell(self, kind: str, of: Object) -> None:
        with self._guard:
            line = json.dumps({"type": kind, "object": of}).encode() + b"\n"
            if kind in ("ADDED", "MODIFIED", "DELETED"):
                self._told.append((self.version, line))
            for one in self._watches:
                one.put(line)

    def page(self, start: int) -> Object:
        with self._guard:
            found = sorted(self.objects.values(), key=lambda one: str(one["metadata"]["name"]))
            more = str(start + self.most) if start + self.most < len(found) else ""
            metadata = {"resourceVersion": str(self.version), "continue": more}
            return {"metadata": metadata, "items": found[start : start + self.most]}

    def follow(self, version: int) -> queue.Queue[bytes | None]:
        with self._guard:
            made: queue.Queue[bytes | None] = queue.Queue()
            for told, line in self._told:
                if told > version:
                    made.put(line)
            self._watches.append(made)
            return made


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    cluster: SmallCluster

    def _serve(self) -> None:
        self.cluster.asked.append(f"{self.command} {self.path}")
        length = int(self.headers.get("content-length") or 0)
        if length:
            self.cluster.sent.append(json.loads(self.rfile.read(length)))
        if self.cluster.away:
            self.close_connection = True
            return
        query = {key: values[0] for key, values in parse_qs(urlsplit(self.path).query).items()}
        if self.cluster.refusals:
            self._refuse(self.cluster.refusals.pop(0))
        elif query.get("watch") == "true":
            self._watch(int(query["resourceVersion"]))
        else:
            self._answer(200, self.cluster.page(int(query.get("continue", 0))))

    do_GET = do_PATCH = do_DELETE = _serve  # noqa: N815 - as the library calls them

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - as the library calls it
        """Nothing."""

    def _refuse(self, refusal: Refusal) -> None:
        told = {"kind": "Status", "message": refusal.message, "code": refusal.status}
        self._answer(refusal.status, told, refusal.headers)

    def _answer(self, status: int, told: Object, headers: dict[str, str] | None = None) -> None:
        body = json.dumps(told).encode()
        self.send_response(status)
        for name, value in {**(headers or {}), "content-length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _watch(self, version: int) -> None:
        if version < self.cluster.oldest:
            self._refuse(Refusal(410, "too old resource version"))
            return
        lines = self.cluster.follow(version)
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        while (line := lines.get()) is not None:
            self.wfile.write(b"%x\r\n%s\r\n" % (len(line), line))
            self.wfile.flush()
        self.close_connection = True


@contextmanager
def small_cluster() -> Iterator[SmallCluster]:
    handler = type("Handler", (_Handler,), {})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        server.daemon_threads = True
        cluster = SmallCluster(server)
        handler.cluster = cluster  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield cluster
        finally:
            cluster.drop()
            server.shutdown()
