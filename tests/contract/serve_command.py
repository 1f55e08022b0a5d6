"""``mlflow-promote serve`` as a process of its own, as tests start it, read it and end it."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

SECONDS = 120.0
"""How long a first start may take on a busy machine: an environment is made, the model is compiled."""


@dataclass(frozen=True, slots=True)
class Serving:
    """A running command whose server answers."""

    process: subprocess.Popen[str]
    log: Path
    """What it printed on standard error."""
    told: dict[str, Any]

    @property
    def url(self) -> str:
        return str(self.told["url"])

    def ask(self, body: Any, path: str = "/invocations") -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=30.0)

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)

    def end(self, number: signal.Signals = signal.SIGTERM) -> int:
        """The exit status after that signal; nothing that it started may be left."""
        family = self.family()
        self.process.send_signal(number)
        code = self.process.wait(SECONDS)
        assert gone(family), [process.cmdline() for process in family if process.is_running()]
        return code


def gone(family: list[psutil.Process], seconds: float = 20.0) -> bool:
    return not psutil.wait_procs(family, timeout=seconds)[1]


def environment(home: Path, more: Mapping[str, str] | None = None) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PROMOTE_", "MLFLOW_"))}
    return {**kept, "PROMOTE_HOME": str(home), "LINGER": "0.05", "COLUMNS": "200", **(more or {})}


def command(*words: str | Path) -> list[str]:
    return [str(Path(sys.executable).with_name("mlflow-promote")), "serve", *map(str, words)]


@contextmanager
def serving(home: Path, *words: str | Path, more: Mapping[str, str] | None = None) -> Iterator[Serving]:
    """Start it at any free port, and wait until it says that it answers."""
    home.mkdir(parents=True, exist_ok=True)
    log = home / "serve.log"
    with (
        log.open("w") as said,
        subprocess.Popen(
            command(*words, "--port", "0", "--json"),
            env=environment(home, more),
            cwd=home,
            stdout=subprocess.PIPE,
            stderr=said,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            yield Serving(process, log, _object(process, log))
        finally:
            _clean(process)


def run(home: Path, *words: str | Path, more: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run it until it ends by itself, as it does where it cannot serve."""
    return subprocess.run(
        command(*words), env=environment(home, more), capture_output=True, text=True, timeout=SECONDS, check=False
    )


def _object(process: subprocess.Popen[str], log: Path) -> dict[str, Any]:
    """The one object that it prints; what it said where it ends before."""
    assert process.stdout is not None
    deadline, text = time.monotonic() + SECONDS, b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while not text.endswith(b"\n}\n"):
            assert selector.select(deadline - time.monotonic()), f"it does not answer: {log.read_text()}"
            part = os.read(process.stdout.fileno(), 65536)
            assert part, f"it ended with {process.wait(SECONDS)}: {log.read_text()}"
            text += part
    told = json.loads(text)
    assert "url" in told, f"it does not serve: {told}"
    return dict(told)


def _clean(process: subprocess.Popen[str]) -> None:
    """Whatever a failed test leaves."""
    if process.poll() is None:
        family = psutil.Process(process.pid).children(recursive=True)
        for one in (*family, psutil.Process(process.pid)):
            one.kill()
