"""One installation of the product for the story, used as a stranger would: commands, HTTP, settings.

Everything that the demo knows of how the product is set up, started, asked and stopped stands here.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import yaml

from examples.cluster import DemoNamespace
from examples.telling import StoryError

Json = dict[str, Any]
START_SECONDS = 120.0
LOG = "controller.log"
PROGRAM = str(Path(sys.executable).with_name("mlflow-promote"))


class Installation:
    """MLflow, controller and gateway on free ports, with all that they keep and their settings in `home`."""

    def __init__(self, home: Path, policies: Path, alerts: str, cluster: DemoNamespace | None = None) -> None:
        self.home, self.cluster = home, cluster
        mlflow, api, gateway, admin = free_ports(4)
        self.mlflow_url, self.api_url = f"http://127.0.0.1:{mlflow}", f"http://127.0.0.1:{api}"
        self.gateway_url = f"http://127.0.0.1:{gateway}"
        settings = {
            "policies": str(policies),
            "mlflow_port": mlflow,
            "api_port": api,
            "gateway_port": gateway,
            "admin_port": admin,
            "notify": [alerts],
            "target": os.environ.get("TARGET") or "local",
        }
        if cluster is not None:
            settings |= cluster.settings
            self.gateway_url = f"http://127.0.0.1:{settings['gateway_port']}"
        (home / "settings.yaml").write_text(yaml.safe_dump(settings))
        outside = {name: value for name, value in os.environ.items() if not name.startswith(("PROMOTE_", "MLFLOW_"))}
        self.environment = {**outside, "PROMOTE_HOME": str(home)}

    def start(self) -> None:
        """``mlflow-promote up``; returns once MLflow and the controller answer."""
        if self.cluster is not None:
            self.cluster.make()
        started = self.run("up", "--detach")
        if started.returncode:
            raise StoryError(f"'mlflow-promote up' exits {started.returncode}:\n{started.stdout}{started.stderr}")
        wait_for(self._answers, START_SECONDS, "MLflow and the controller answer")

    def _answers(self) -> bool:
        try:
            return all(httpx.get(url).is_success for url in (f"{self.mlflow_url}/health", f"{self.api_url}/healthz"))
        except httpx.HTTPError:
            return False

    def last_words(self, lines: int = 15) -> str:
        """What the controller logged last."""
        log = self.home / LOG
        return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``mlflow-promote`` with these arguments."""
        return subprocess.run(
            [PROGRAM, *arguments], env=self.environment, capture_output=True, text=True, timeout=300, check=False
        )

    def ask(self, path: str) -> Json:
        """The API's answer; `StoryError` where it refuses."""
        answer = httpx.get(f"{self.api_url}{path}", timeout=30.0)
        if not answer.is_success:
            raise StoryError(f"GET {path} answered {answer.status_code}: {answer.text[:300]}")
        found: Json = answer.json()
        return found

    def status(self, model: str) -> Json:
        """The model's status, as the command line tells it to programs."""
        told = self.run("status", model, "--json")
        if told.returncode:
            raise StoryError(f"'mlflow-promote status {model}' exits {told.returncode}: {told.stdout}{told.stderr}")
        found: Json = json.loads(told.stdout)["models"][0]
        return found

    def events(self, model: str) -> list[Json]:
        """The model's history, oldest first."""
        found: list[Json] = self.ask(f"/models/{model}/history?limit=1000")["events"]
        return found

    def rollout(self, model: str, version: int) -> Json | None:
        """The newest rollout of the version; None before there is one."""
        found = [e["rollout"] for e in self.events(model) if e["version"] == version and e["rollout"]]
        return self.ask(f"/rollouts/{found[-1]}") if found else None

    def stop(self) -> None:
        """``mlflow-promote down`` ends everything that ``up`` started; nothing of it is left in an engine."""
        self.run("down", "--purge")
        if self.cluster is not None:
            self.cluster.remove()


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on now; held together, so that they differ."""
    probes = [socket.socket() for _ in range(count)]
    try:
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
    finally:
        for probe in probes:
            probe.close()


def wait_for(holds: Callable[[], object], seconds: float, what: str, pause: float = 0.2) -> None:
    """Wait until `holds`; `StoryError` where `what` did not come about in time."""
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise StoryError(f"not within {seconds:.0f} s: {what}")
        time.sleep(pause)
