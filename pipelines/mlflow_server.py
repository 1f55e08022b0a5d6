"""The MLflow server of a laptop: started and watched by us where no other is named.

It runs with our app plugin, so that a transition wakes the controller at once. Like everything else that
serves, it is a session of its own and outlives the controller.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import httpx

from serving.processes import adopt, launch

_START_SECONDS = 120.0
"""The first start also makes the database."""


class MlflowServerError(Exception):
    """The embedded MLflow server does not run."""


class MlflowServer:
    """MLflow with SQLite and a folder of artifacts below `home`."""

    def __init__(self, home: Path, port: int, controller: str, token: str | None = None) -> None:
        """`controller` is the address that the app plugin asks and wakes, with `token` where it wants one."""
        self.uri = f"http://127.0.0.1:{port}"
        self._home, self._port = home.absolute(), port
        self._controller, self._token = controller, token
        self._record, self._log = self._home / "server.json", self._home / "server.log"

    def ensure(self) -> None:
        """See that it runs and answers; `MlflowServerError` where it does not within two minutes."""
        process = adopt(self._record)
        if process is None or not process.alive():
            self._home.mkdir(parents=True, exist_ok=True)
            process = launch(
                self._command(),
                record=self._record,
                log=self._log,
                environment=self._environment(),
                directory=self._home,
            )
        deadline = time.monotonic() + _START_SECONDS
        while not self._answers():
            if time.monotonic() > deadline or not process.alive():
                raise MlflowServerError(f"the MLflow server on port {self._port} does not answer; see {self._log}")
            time.sleep(0.2)

    def stop(self) -> None:
        process = adopt(self._record)
        if process is not None:
            process.end(10.0)
        self._record.unlink(missing_ok=True)

    def _answers(self) -> bool:
        try:
            return httpx.get(f"{self.uri}/health", timeout=2.0).status_code == httpx.codes.OK
        except httpx.HTTPError:
            return False

    def _environment(self) -> dict[str, str]:
        """The app plugin learns where the controller is; workers for MLflow's evaluation jobs are not started."""
        ours = {
            "PROMOTE_URL": self._controller,
            "PROMOTE_TOKEN": self._token or "",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        }
        return {key: value for key, value in os.environ.items() if key != "MLFLOW_TRACKING_URI"} | ours

    def _command(self) -> list[str]:
        options = {
            "--host": "127.0.0.1",
            "--port": str(self._port),
            "--workers": "1",
            "--backend-store-uri": f"sqlite:///{self._home / 'mlflow.db'}",
            "--artifacts-destination": str(self._home / "artifacts"),
            "--app-name": "promote",
        }
        return [sys.executable, "-m", "mlflow", "server", *(part for pair in options.items() for part in pair)]
