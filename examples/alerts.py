"""Somewhere for alerts to go: a webhook receiver of the kind that a chat system has."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Alert = dict[str, Any]


class AlertInbox:
    """Takes alerts on a port of this machine and keeps them."""

    def __init__(self) -> None:
        self.alerts: list[Alert] = []
        inbox = self.alerts

        class Receiver(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                inbox.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Say nothing: the story is told elsewhere."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
        self._thread = threading.Thread(target=self._server.serve_forever, name="alerts", daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/alerts"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
