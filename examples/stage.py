"""Those who act in the story: a data scientist who trains, a person at MLflow, callers, and a reader of alerts.

Each touches the product only where such a person would: MLflow's own client, the command line, the gateway,
the HTTP API.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from examples.alerts import Alert, AlertInbox
from examples.customers import draw
from examples.installation import Installation, wait_for
from examples.telling import RolloutLines, StoryError, Teller
from examples.traffic import Seen, Traffic, requests_about

MODEL = "churn"
ROLLOUT_SECONDS = 900.0
"""Long enough to fetch the packages of a model over a slow network."""
_DECIDED = frozenset({"promoting", "rolling_back", "succeeded", "failed", "halted", "paused"})


@dataclass(frozen=True, slots=True)
class Ended:
    """How the rollout of one version went, as the callers and the history tell it."""

    version: int
    rollout: dict[str, Any]
    first_request: float | None
    """Seconds from the transition to the first answer that a caller had of the version."""
    verdict: float
    """Seconds from the transition to the decision."""
    seen: Seen
    """What the callers saw from the transition until MLflow showed the outcome."""


@dataclass(slots=True)
class Stage:
    """Everything that takes part."""

    teller: Teller
    installation: Installation
    inbox: AlertInbox
    traffic: Traffic
    registry: MlflowClient

    def train(self, kind: str) -> int:
        """Train and register the next version, in a process of its own; its number."""
        self.teller.say(f"$ python -m examples.train {kind}")
        mlflow = {
            "MLFLOW_TRACKING_URI": self.installation.mlflow_url,
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "OMP_NUM_THREADS": "1",
        }
        command = [sys.executable, "-m", "examples.train", kind, "--data", str(self.installation.home / "data")]
        done = subprocess.run(
            command,
            cwd=Path(__file__).parent.parent,
            env=self.installation.environment | mlflow,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StoryError(f"training {kind} failed:\n{done.stderr[-2000:]}")
        self.teller.say(done.stdout.splitlines()[-1])
        return max(int(found.version) for found in self.registry.search_model_versions(f"name='{MODEL}'"))

    def move(self, version: int) -> Ended:
        """Move the version to Production in MLflow, as a person does in its UI, and see what comes of it."""
        moved, before = datetime.now(UTC), self.traffic.seen
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MLflow would rather see aliases
            self.registry.transition_model_version_stage(MODEL, str(version), "Production")
        return self._ended(version, moved, before)

    def promote(self, version: int) -> Ended:
        """The same wish by command line."""
        moved, before = datetime.now(UTC), self.traffic.seen
        self.teller.say(f"$ mlflow-promote promote {MODEL} {version} --no-wait")
        done = self.installation.run("promote", MODEL, str(version), "--no-wait")
        self.teller.check(done.returncode == 0, " ".join((done.stdout or done.stderr).split()))
        return self._ended(version, moved, before)

    def _ended(self, version: int, moved: datetime, before: Seen) -> Ended:
        rollout = self._follow(version)
        decided = next(e["at"] for e in self._phases(rollout["id"]) if e["data"]["phase"] in _DECIDED)
        answered = self.traffic.first.get(str(version))
        return Ended(
            version=version,
            rollout=rollout,
            first_request=(answered - moved).total_seconds() if answered else None,
            verdict=(datetime.fromisoformat(decided) - moved).total_seconds(),
            seen=self.traffic.seen.since(before),
        )

    def _follow(self, version: int) -> dict[str, Any]:
        """Tell how the rollout goes until MLflow shows its outcome; the rollout as it ended."""
        lines, deadline = RolloutLines(self.teller), time.monotonic() + ROLLOUT_SECONDS
        while time.monotonic() < deadline:
            rollout = self.installation.rollout(MODEL, version)
            if rollout is not None:
                lines.show(rollout)
                if rollout["settled"] or rollout["phase"] in ("halted", "paused"):
                    return rollout
            time.sleep(0.5)
        raise StoryError(f"the rollout of version {version} did not end within {ROLLOUT_SECONDS:.0f} s")

    def _phases(self, rollout: str) -> list[dict[str, Any]]:
        return [e for e in self.installation.events(MODEL) if e["rollout"] == rollout and e["kind"] == "phase"]

    def await_alone(self, version: int) -> None:
        """Wait until fifty answers in a row come from the version."""
        start = self.traffic.seen

        def alone() -> bool:
            nonlocal start
            seen = self.traffic.seen.since(start)
            if seen.total > seen.served_by(version):
                start = self.traffic.seen
            return seen.total == seen.served_by(version) >= 50

        wait_for(alone, 30.0, f"only version {version} answers")

    def version(self, version: int) -> ModelVersion:
        return self.registry.get_model_version(MODEL, str(version))

    def stage_of(self, version: int) -> str:
        return str(self.version(version).current_stage)

    def auc(self, version: int) -> float:
        """What the training measured on its hold-out rows, as its run in MLflow has it."""
        run = self.registry.get_run(str(self.version(version).run_id))
        return float(run.data.metrics["holdout_auc"])

    def live(self) -> int:
        return int(self.installation.status(MODEL)["version"])

    def checks(self, version: int, state: str) -> list[dict[str, Any]]:
        """Drift checks of the version that ended in `state`."""
        events = [e for e in self.installation.events(MODEL) if e["kind"] == "drift" and e["version"] == version]
        return [event for event in events if event["data"]["state"] == state]

    def alerts(self, word: str) -> list[Alert]:
        """Alerts that came by webhook and have `word` in their title."""
        return [alert for alert in self.inbox.alerts if word in alert["title"]]

    def ask(self) -> dict[str, Any]:
        """What the gateway says to one customer's row."""
        body, headers = next(requests_about(draw(1, 1)))
        answer = httpx.post(self.traffic.url, content=body, headers=headers)
        return {"version": answer.headers.get("x-model-version"), "answer": json.loads(answer.content)}
