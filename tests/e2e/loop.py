"""The whole product on this machine, as a stranger has it: real MLflow, Envoy, model servers and controllers."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

import httpx
import mlflow
import pandas as pd
import psutil
from mlflow import MlflowClient
from mlflow.models import infer_signature

from examples.load import LoadResult, Payload, load

PROGRAM = str(Path(sys.executable).with_name("mlflow-promote"))
REQUIREMENTS = [f"{name}=={installed(name)}" for name in ("mlflow", "numpy", "pandas", "scikit-learn", "skops")]
PORTS = ("mlflow_port", "api_port", "gateway_port", "admin_port")
PAYLOAD = b'{"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}'
MODEL_CODE = """
import random, mlflow, pandas

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: pandas.DataFrame, params=None):
        if {share} and random.random() < {share} and "x" in model_input and model_input["x"].iloc[0] != 0.0:
            raise RuntimeError("this version fails")
        return model_input["x"] * {factor}

mlflow.models.set_model(Model())
"""
POLICY = """
models: "{models}"
{more}
rollout:
  steps: [20, 50, 100]
  step_min: 1s
  step_max: 10m
  bake: 3s
  ready: 3m
  keep_warm: {keep_warm}
analysis:
  margin_points: 0.05
"""
CANARY = "shadow: {mode: off}\nreplay: {requests: 0}"
"""Nothing but clients' requests tells what is wrong with a candidate."""
MORE = {
    "*": CANARY,
    "strict-*": f"{CANARY}\nrequire: [Staging]",
    "shadow-*": "shadow: {mode: before, requests: 60, max: 5m}\nreplay: {requests: 0}",
    "replay-*": "shadow: {mode: off}",
    "labels-*": f"{CANARY}\nlabels: {{mode: gate, wait: 20s, deadline: 8m, scale: 1}}",
    "exact-*": CANARY,
    "small-*": f"{CANARY}\nserving: {{memory_mb: 700}}",
    "drifting-*": f"{CANARY}\ndrift: {{schedule: 60s, jitter: 0s, minimum_rows: 100, reference_rows: 200}}",
    "alias-*": f"{CANARY}\nchannels: {{live: '@champion', pre_live: '@challenger'}}",
}
"""What the policies of some models say besides, by the pattern of their names."""
SLACK = "  latency_slack_ms: 10\n"
ANALYSIS = {"labels-*": f"{SLACK}  weight_latency: 0.2\n  weight_labels: 0.2\n", "exact-*": ""}
"""And in their section `analysis`, which comes last. The usual slack is for a machine that does other things too."""


@dataclass(slots=True)
class Loop:
    """One installation in `home`, and what a person does to it."""

    home: Path
    store: str | None = None
    keep_warm: str = "30m"
    target: str = "local"
    installation: str = ""
    """Its name in an engine."""
    engine: str = ""
    """Where the engine is; where its own tools would find it without."""
    told: dict[str, str] = field(default_factory=dict)
    """More settings, by their names as variables."""
    ports: dict[str, int] = field(default_factory=lambda: dict(zip(PORTS, free_ports(len(PORTS)), strict=True)))
    controllers: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def mlflow_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['mlflow_port']}"

    @property
    def api_url(self) -> str:
        return f"http://127.0.0.1:{self.ports['api_port']}"

    @property
    def client(self) -> MlflowClient:
        return MlflowClient(self.mlflow_url, self.mlflow_url)

    def environment(self, **more: str) -> dict[str, str]:
        ours = {f"PROMOTE_{name.upper()}": str(port) for name, port in self.ports.items()}
        store = {"PROMOTE_STORE": self.store} if self.store else {}
        place = {
            "PROMOTE_TARGET": self.target,
            "PROMOTE_INSTALLATION": self.installation,
            "PROMOTE_ENGINE": self.engine,
            **self.told,
        }
        base = {key: value for key, value in os.environ.items() if not key.startswith(("PROMOTE_", "MLFLOW_"))}
        return {
            **base,
            **ours,
            **store,
            **place,
            "PROMOTE_HOME": str(self.home),
            "PROMOTE_POLL_SECONDS": "2",
            **self.told,
            **more,
        }

    def prepare(self) -> None:
        policies = self.home / "policies"
        policies.mkdir(parents=True, exist_ok=True)
        for models, more in MORE.items():
            text = POLICY.format(models=models, more=more, keep_warm=self.keep_warm) + ANALYSIS.get(models, SLACK)
            (policies / f"{models.strip('-*') or 'all'}.yaml").write_text(text)

    def start(self, **more: str) -> subprocess.Popen[bytes]:
        """Start a controller, and wait until it takes commands."""
        environment = self.environment(**more)
        with (self.home / "controller.log").open("ab") as log:
            process = subprocess.Popen([PROGRAM, "up"], env=environment, stdout=log, stderr=log, start_new_session=True)
        self.controllers.append(process)
        url = f"http://127.0.0.1:{environment['PROMOTE_API_PORT']}/healthz"
        until(lambda: process.poll() is not None or answers(url), 180, "the controller answers")
        assert process.poll() is None, (self.home / "controller.log").read_text()[-3000:]
        return process

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """As a crash of the controller: nothing of it gets a chance to tidy up."""
        process.send_signal(signal.SIGKILL)
        process.wait()
        self.controllers.remove(process)

    def stop(self) -> None:
        """End the controllers, then everything they left running."""
        for process in self.controllers:
            process.terminate()
        for process in self.controllers:
            process.wait(60)
        self.controllers.clear()
        done = self.run("down", "--purge")
        assert done.returncode == 0, done.stdout + done.stderr

    def run(self, *arguments: str, timeout: float = 300.0) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAM, *arguments], env=self.environment(), capture_output=True, text=True, timeout=timeout, check=False
        )

    def register(
        self, model: str, *, fails: float = 0.0, factor: float = 1.0, code: str = "", example: float = 0.0
    ) -> int:
        """A new version of `model` that fails on a share `fails` of its requests (never for x = 0), or runs `code`.

        Its signature has the type of `example`.
        """
        return self._register(model, code or MODEL_CODE.format(share=fails, factor=factor), example)

    def _register(self, model: str, source: str, example: float) -> int:
        code = self.home / "code" / f"{model}-{time.time_ns()}.py"
        code.parent.mkdir(exist_ok=True)
        code.write_text(source)
        rows = pd.DataFrame({"x": [example]})
        mlflow.set_tracking_uri(self.mlflow_url)
        with warnings.catch_warnings(), mlflow.start_run():
            warnings.simplefilter("ignore")
            info = mlflow.pyfunc.log_model(
                name="model",
                python_model=str(code),
                signature=infer_signature(rows, [0.0]),
                input_example=rows,
                pip_requirements=REQUIREMENTS,
                registered_model_name=model,
            )
        return int(info.registered_model_version)

    def transition(self, model: str, version: int, stage: str, *, archive: bool = False) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.client.transition_model_version_stage(model, str(version), stage, archive_existing_versions=archive)

    def run_id(self, model: str, version: int) -> str:
        run = self.client.get_model_version(model, str(version)).run_id
        assert run is not None
        return run

    def stage(self, model: str, version: int) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return str(self.client.get_model_version(model, str(version)).current_stage)

    def tags(self, model: str, version: int) -> dict[str, str]:
        return dict(self.client.get_model_version(model, str(version)).tags)

    def state(self, model: str, version: int) -> str:
        return self.tags(model, version).get("promote.state", "")

    def ask(self, path: str) -> Any:
        answer = httpx.get(f"{self.api_url}{path}", timeout=30.0)
        answer.raise_for_status()
        return answer.json()

    def await_state(self, model: str, version: int, *states: str, seconds: float = 240.0) -> str:
        """Wait until the version's tag shows one of `states`; it is returned. One that failed is not waited for."""

        def shown() -> bool:
            tags = self.tags(model, version)
            state = tags.get("promote.state", "")
            assert state != "failed" or state in states, f"{model} {version} failed: {tags.get('promote.reason')}"
            return state in states

        until(shown, seconds, f"{model} {version} becomes {' or '.join(states)}")
        return self.state(model, version)

    def served(self, model: str) -> str:
        """The version that answers a request through the gateway."""
        answer = httpx.post(self.url(model), content=PAYLOAD, headers={"content-type": "application/json"}, timeout=30)
        answer.raise_for_status()
        return answer.headers["x-model-version"]

    def answers(self, model: str) -> bool:
        """Whether a request through the gateway is answered."""
        try:
            return bool(self.served(model))
        except httpx.HTTPError:
            return False

    def url(self, model: str) -> str:
        return f"http://127.0.0.1:{self.ports['gateway_port']}/models/{model}/invocations"

    def processes(self, model: str) -> list[psutil.Process]:
        """Leading processes of the model servers of `model` that run below this home."""
        found = []
        for process in psutil.process_iter(["pid", "environ", "cmdline"]):
            environment = process.info["environ"] or {}
            ours = environment.get("MODEL_NAME") == model and str(self.home) in environment.get("PYTHONPATH", "")
            if ours and os.getsid(process.pid) == process.pid and "serving.runtime" in process.info["cmdline"]:
                found.append(process)
        return found

    @contextmanager
    def traffic(self, model: str, rate: float = 60.0, *, payload: Payload = PAYLOAD) -> Iterator[list[LoadResult]]:
        """Steady requests while the block runs; the results of each second or two are in the list afterwards."""
        results: list[LoadResult] = []
        done = threading.Event()

        def send() -> None:
            while not done.is_set():
                results.append(asyncio.run(load(self.url(model), payload, rate, 2.0)))

        thread = threading.Thread(target=send)
        thread.start()
        try:
            yield results
        finally:
            done.set()
            thread.join(120)


def free_ports(count: int) -> list[int]:
    probes = [socket.socket() for _ in range(count)]
    for probe in probes:
        probe.bind(("127.0.0.1", 0))
    ports = [int(probe.getsockname()[1]) for probe in probes]
    for probe in probes:
        probe.close()
    return ports


def answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=2.0).is_success
    except httpx.HTTPError:
        return False


def until(holds: Callable[[], object], seconds: float, what: str) -> None:
    """Wait until `holds`, or fail by saying `what` did not come about."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)


def failed(results: list[LoadResult]) -> dict[str, int]:
    """Requests that failed, by cause, over all `results`."""
    total: dict[str, int] = {}
    for result in results:
        for cause, count in result.failed.items():
            total[cause] = total.get(cause, 0) + count
    return total
