"""The servers side by side: their environments, how each is started, and how each wants to be asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from benchmarks.peers.models import Trained
from tests.fixtures.gateway import free_port

ROOT = Path(__file__).parents[2]
SHARED = ("mlflow-skinny==3.17.2", "scikit-learn==1.9.1", "pandas==2.3.3", "cloudpickle", "torch==2.13.0", "numpy")
START_SECONDS = 40

Body = Callable[[Trained, list[list[Any]]], dict[str, Any]]
Command = Callable[[Path, Trained, int, int], list[str]]


def _split(model: Trained, rows: list[list[Any]]) -> dict[str, Any]:
    return {"dataframe_split": {"columns": list(model.columns), "data": rows}}


def _rows(_model: Trained, rows: list[list[Any]]) -> dict[str, Any]:
    return {"rows": rows}


def _tensors(model: Trained, rows: list[list[Any]]) -> dict[str, Any]:
    """The Open Inference Protocol, which is what MLServer's batching understands."""
    inputs: list[dict[str, Any]] = []
    for name, values in zip(model.columns, zip(*rows, strict=True), strict=True):
        word = isinstance(values[0], str)
        about = {"datatype": "BYTES", "parameters": {"content_type": "str"}} if word else {"datatype": "FP64"}
        inputs.append({"name": name, "shape": [len(rows), 1], "data": list(values), **about})
    return {"parameters": {"content_type": "pd"}, "inputs": inputs}


def _instances(_model: Trained, rows: list[list[Any]]) -> dict[str, Any]:
    return {"instances": rows}


@dataclass(frozen=True, slots=True)
class Server:
    """One way to serve a model."""

    name: str
    packages: tuple[str, ...]
    """Of an environment of its own; none for that of this project."""
    path: str
    body: Body
    command: Command
    """From the Python, the model, a port and a number of workers."""

    def python(self, home: Path) -> Path:
        return home / self.name.split()[0] / "bin" / "python" if self.packages else Path(sys.executable)

    def install(self, home: Path) -> None:
        """Make the environment, unless it is there."""
        done = home / self.name.split()[0] / "complete"
        if not self.packages or done.exists():
            return
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(done.parent)], check=True)
        pip = (str(self.python(home)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check")
        subprocess.run([*pip, *self.packages, *SHARED], check=True)
        done.touch()

    def versions(self, home: Path) -> dict[str, str]:
        """What is installed of the packages that were asked for, and of those that do the work."""
        listed = subprocess.run(
            [str(ROOT / ".venv" / "bin" / "uv"), "pip", "list", "--format=json", "--python", str(self.python(home))],
            check=True,
            capture_output=True,
            text=True,
        )
        wanted = {name.partition("==")[0] for name in (*self.packages, *SHARED, "mlflow", "uvicorn", "onnxruntime")}
        return {entry["name"]: entry["version"] for entry in json.loads(listed.stdout) if entry["name"] in wanted}


@dataclass(frozen=True, slots=True)
class Running:
    """A server that answers."""

    server: Server
    url: str
    start_seconds: float
    """From starting the program to its first right answer."""
    process: subprocess.Popen[bytes]

    def memory_mb(self) -> float:
        """Of the program and all that it started, memory that they share counted once."""
        parent = psutil.Process(self.process.pid)
        parts = [parent, *parent.children(recursive=True)]
        return round(sum(part.memory_full_info().pss for part in parts) / 1e6, 1)


@contextmanager
def running(server: Server, home: Path, model: Trained, workers: int, expected: list[Any]) -> Iterator[Running]:
    """The server, once it answers the first rows of `model` with what is `expected`."""
    port = free_port()
    command = server.command(server.python(home), model, port, workers)
    told = {
        "PEER_MODEL": str(model.folder),
        "PEER_PORT": str(port),
        "PEER_WORKERS": str(workers),
        "WORKERS": str(workers),
        "PYTHONPATH": str(ROOT),
    }
    began = time.perf_counter()
    log = (home / f"{server.name.replace(' ', '-')}.log").open("wb")
    process = subprocess.Popen(
        command,
        env={**os.environ, **told, "PATH": f"{server.python(home).parent}:{os.environ['PATH']}"},
        cwd=home,
        stdout=log,
        stderr=log,
        process_group=0,
    )
    try:
        url = f"http://127.0.0.1:{port}{server.path}"
        _await_answer(process, url, server.body(model, model.rows[:1]))
        took = time.perf_counter() - began
        if expected:
            _check(server, url, model, expected)
        yield Running(server, url, took, process)
    finally:
        _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the program and all that it started, by force where it does not end by itself."""
    for number, seconds in ((signal.SIGTERM, 15), (signal.SIGKILL, 5)):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        with suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
            if number == signal.SIGKILL:
                return


def _await_answer(process: subprocess.Popen[bytes], url: str, body: Mapping[str, Any]) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        try:
            _ask(url, body)
        except (OSError, ValueError) as error:
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{process.args!r} does not answer") from error
            time.sleep(0.01)
        else:
            return


def _check(server: Server, url: str, model: Trained, expected: list[Any]) -> None:
    told = _ask(url, server.body(model, model.rows[: len(expected)]))
    if isinstance(told, dict):
        answers = told["predictions"] if "predictions" in told else told["outputs"][0]["data"]
    else:
        answers = told
    values = [next(iter(a.values())) if isinstance(a, dict) else a[0] if isinstance(a, list) else a for a in answers]
    if len(values) != len(expected) or any(abs(a - b) > 1e-4 for a, b in zip(values, expected, strict=True)):
        raise RuntimeError(f"{server.name} answers {values}, right is {expected}")


def _ask(url: str, body: Mapping[str, Any]) -> Any:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.loads(answer.read())


def _mlflow(python: Path, model: Trained, port: int, workers: int) -> list[str]:
    options = ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    return [str(python), "-m", "mlflow", "models", "serve", "-m", str(model.folder), *options]


def _mlserver(python: Path, model: Trained, port: int, workers: int) -> list[str]:
    folder = model.folder.parent / f"mlserver-{model.name}"
    folder.mkdir(exist_ok=True)
    batching = {"max_batch_size": 64, "max_batch_time": 0.005}
    about = {
        "name": "model",
        "implementation": "mlserver_mlflow.MLflowRuntime",
        "parameters": {"uri": str(model.folder)},
    }
    (folder / "model-settings.json").write_text(json.dumps(about | batching))
    free = {"http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "host": "127.0.0.1"}
    (folder / "settings.json").write_text(json.dumps(free | {"parallel_workers": workers, "debug": False}))
    return [str(python.with_name("mlserver")), "start", str(folder)]


def _bento(python: Path, _model: Trained, port: int, _workers: int) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port)]
    return [str(python), "-m", "bentoml", "serve", "benchmarks.peers.bento_service:Scoring", *where]


def _module(name: str) -> Command:
    return lambda python, _model, _port, _workers: [str(python), "-m", f"benchmarks.peers.{name}"]


def _bare(python: Path, _model: Trained, port: int, workers: int) -> list[str]:
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", str(workers)]
    return [
        str(python),
        "-m",
        "uvicorn",
        "benchmarks.peers.bare:app",
        "--log-level",
        "warning",
        "--no-access-log",
        *where,
    ]


def _ours(*options: str) -> Command:
    def command(python: Path, model: Trained, port: int, _workers: int) -> list[str]:
        where = ["--plan", str(model.folder / "plan"), "--port", str(port)]
        return [str(python), "-m", "serving.runtime", "--model", str(model.folder), *where, *options]

    return command


def _logged(python: Path, model: Trained, port: int, workers: int) -> list[str]:
    folder = model.folder.parent / f"log-{model.name}"
    return ["env", f"PREDICTION_LOG={folder}", *_ours()(python, model, port, workers)]


BARE = Server("bare uvicorn", (), "/invocations", _split, _bare)
"""Not a peer: the answer is always the same, and never checked."""
MLFLOW = Server("mlflow models serve", (), "/invocations", _split, _mlflow)
PEERS = (
    Server(
        "MLServer",
        ("mlserver==1.7.1", "mlserver-mlflow==1.7.1", "uvloop<0.22"),
        "/v2/models/model/infer",
        _tensors,
        _mlserver,
    ),
    Server("BentoML", ("bentoml==1.4.39",), "/predict", _rows, _bento),
    Server("KServe", ("kserve==0.21.0",), "/v1/models/model:predict", _instances, _module("kserve_server")),
    Server("LitServe", ("litserve==0.2.19",), "/predict", _rows, _module("lit_server")),
)
COMPILED = Server("compiled", (), "/invocations", _split, _ours())
LOGGED = Server("compiled with log", (), "/invocations", _split, _logged)
"""With the prediction log, of every request."""
NATIVE = Server("native", (), "/invocations", _split, _ours("--native"))
