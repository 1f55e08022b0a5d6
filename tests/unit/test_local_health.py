"""Looks at many model servers: a hanging one costs no more than a moment, and a slip is forgiven."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from serving.local_health import MISSES, MOMENT_SECONDS, Health, Starting
from serving.revision import Address


class Answers(BaseHTTPRequestHandler):
    """Says that it is ready, or what `says` is set to."""

    says = (200, {"revision": "a"})

    def do_GET(self) -> None:
        status, content = self.says
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Keep the test's output quiet."""


@pytest.fixture
def port() -> Iterator[int]:
    Answers.says = (200, {"revision": "a"})
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def at(port: int, *revisions: str) -> dict[str, tuple[str, Address]]:
    """Servers of these revisions, all at one port."""
    return {revision: (revision, Address("127.0.0.1", port)) for revision in revisions}


def test_only_a_server_that_is_ready_and_the_right_one_counts(port: int) -> None:
    assert Health().look(at(port, "a", "b")) == {"a": "", "b": None}
    for says in ((503, {"revision": "a"}), (200, ["a"][:0]), (200, {})):
        Answers.says = says  # type: ignore[assignment]
        assert Health().look(at(port, "a")) == {"a": None}


def test_what_a_degraded_server_says_of_itself_is_passed_on(port: int) -> None:
    Answers.says = (200, {"revision": "a", "status": "degraded", "warnings": ["no signature", "it limps"]})  # type: ignore[dict-item]
    assert Health().look(at(port, "a")) == {"a": "it limps"}
    Answers.says = (200, {"revision": "a", "status": "degraded"})
    assert Health().look(at(port, "a")) == {"a": None}


def test_what_a_starting_server_is_at_is_known_until_it_is_ready(port: int) -> None:
    health = Health()
    assert health.starting("a") == Starting()
    at_it = "fetching the model: 3 % of 2.1 GB"
    Answers.says = (503, {"revision": "a", "status": "starting", "detail": at_it, "fetched": 3})  # type: ignore[dict-item]
    assert health.look(at(port, "a", "b")) == {"a": None, "b": None}
    assert (health.starting("a"), health.starting("b")) == (Starting(at_it, 3), Starting())
    Answers.says = (200, {"revision": "a"})
    assert health.look(at(port, "a")) == {"a": ""}
    assert health.starting("a") == Starting()


def test_a_ready_server_may_miss_a_few_times(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serving.local_health.FRESH_SECONDS", 0.0)
    health = Health()
    assert health.look(at(port, "a")) == {"a": ""}
    Answers.says = (503, {})
    assert [health.look(at(port, "a"))["a"] for _ in range(MISSES)] == [""] * (MISSES - 1) + [None]
    Answers.says = (200, {"revision": "a"})
    assert health.look(at(port, "a")) == {"a": ""}


def test_servers_that_hang_cost_a_moment_and_hide_no_other(port: int) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        ports = at(silent.getsockname()[1], *(f"hangs-{n}" for n in range(5))) | at(port, "a")
        health = Health()
        assert health.look(ports)["a"] == ""
        began = time.monotonic()
        assert [key for key, said in health.look(ports).items() if said is not None] == ["a"]
        assert time.monotonic() - began < MOMENT_SECONDS + 0.5
