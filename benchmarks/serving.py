"""The model server beside what people use today: the same models, the same rows, in the same rounds.

Every server runs while all are measured; only one is asked at a time, and the rounds are interleaved, so that a
slow minute of the machine hits them all. The client is wrk; server and client share the machine's cores.
"""

from __future__ import annotations

import json
import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any

import mlflow.pyfunc
import numpy as np
import pandas as pd

from benchmarks import serving_targets
from benchmarks.peers import load
from benchmarks.peers.models import Trained, network, sklearn_model
from benchmarks.peers.plans import compile_plan
from benchmarks.peers.servers import BARE, COMPILED, LOGGED, MLFLOW, NATIVE, PEERS, ROOT, Running, Server, running

TARGETS = Path(__file__).with_name("results") / "serving_targets.md"
HOME = ROOT / ".promote" / "peers"
"""Where the peers' environments are kept."""
MODELS = {"light": sklearn_model, "forest": sklearn_model, "network": network}
WANTED = os.environ.get("MODELS", ",".join(MODELS)).split(",")
LOADS = ((1, 1), (16, 1), (64, 1), (1, 100), (16, 100))
"""Clients, and rows in each request."""
SEVERAL = os.environ.get("SEVERAL", "yes") == "yes"
"""Whether the light model is also served by as many workers as there are cores."""
ROUNDS = int(os.environ.get("ROUNDS", "3"))
SECONDS = float(os.environ.get("SECONDS", "2"))


def measure() -> dict[str, object]:
    """Per model and server: requests per second, latencies, start-up, memory, and ratios."""
    load.required()
    for server in (MLFLOW, *PEERS):
        print(f"  environment of {server.name}", flush=True)
        server.install(HOME)
    with tempfile.TemporaryDirectory() as folder:
        figures = {name: _model(name, Path(folder)) for name in WANTED}
    TARGETS.write_text(serving_targets.table(figures))
    return {"versions": {s.name: s.versions(HOME) for s in (MLFLOW, *PEERS, COMPILED)}, "models": figures}


def _model(name: str, folder: Path) -> dict[str, object]:
    model = MODELS[name](name, folder / name)
    why = compile_plan(model.folder)
    answers = expected(model)
    figures: dict[str, Any] = {"plan": why}
    cores = os.cpu_count() or 1
    for workers in sorted({1, cores} if name == "light" and SEVERAL else {1}):
        loads = LOADS if workers == 1 else ((64, 1),)
        figures[f"{workers} worker{'s' * (workers > 1)}"] = _side_by_side(model, answers, workers, loads, folder)
    return figures


def _side_by_side(
    model: Trained, expected: list[Any], workers: int, loads: Sequence[tuple[int, int]], folder: Path
) -> dict[str, object]:
    with ExitStack() as stack:
        servers = (BARE, MLFLOW, *PEERS, COMPILED, LOGGED, NATIVE)
        up = [one for server in servers if (one := _started(stack, server, model, workers, expected))]
        told: dict[str, Any] = {
            one.server.name: {"start_s": round(one.start_seconds, 2), "memory_mb": one.memory_mb()} for one in up
        }
        for clients, rows in loads:
            for one, figures in _rounds(up, model, clients, rows, folder):
                told[one.server.name][f"{clients} clients, {rows} rows"] = figures
        if workers == 1:
            for one in up:
                told[one.server.name]["half load"] = _half(one, model, told[one.server.name], folder)
    return {"servers": told, "ratios": _ratios(told)}


def _started(stack: ExitStack, server: Server, model: Trained, workers: int, expected: list[Any]) -> Running | None:
    """None where it does not come up, as peers do with some models and with several workers."""
    print(f"  {model.name}: starting {server.name}, {workers} worker(s)", flush=True)
    try:
        return stack.enter_context(running(server, HOME, model, workers, [] if server is BARE else expected))
    except RuntimeError as error:
        print(f"  {error}", flush=True)
        return None


def _rounds(
    up: Sequence[Running], model: Trained, clients: int, rows: int, folder: Path
) -> Iterator[tuple[Running, dict[str, float]]]:
    seen: dict[str, list[load.Figures]] = {one.server.name: [] for one in up}
    sent = {one.server.name: bodies(one.server, model, rows, folder) for one in up}
    for _ in range(ROUNDS):
        for one in up:
            seen[one.server.name].append(load.run(one.url, sent[one.server.name], clients, SECONDS))
    for one in up:
        runs = seen[one.server.name]
        yield one, _medians(runs)


def _medians(runs: Sequence[load.Figures]) -> dict[str, float]:
    return {
        "requests_per_second": round(median(run.requests_per_second for run in runs), 1),
        "p50_ms": round(median(run.p50 for run in runs), 2),
        "p99_ms": round(median(run.p99 for run in runs), 2),
        "failed": sum(run.failed for run in runs),
    }


def _half(one: Running, model: Trained, told: Mapping[str, Any], folder: Path) -> dict[str, float]:
    """Latency at half of what 64 clients can get at most."""
    most = told["64 clients, 1 rows"]["requests_per_second"]
    sent = bodies(one.server, model, 1, folder)
    return _medians([load.run(one.url, sent, 64, SECONDS, rate=most / 2) for _ in range(ROUNDS)])


def bodies(server: Server, model: Trained, rows: int, folder: Path) -> Path:
    path = folder / f"{model.name}-{server.name.replace(' ', '-')}-{rows}.jsonl"
    if not path.exists():
        parts = [model.rows[first : first + rows] for first in range(0, len(model.rows), rows)]
        path.write_text("\n".join(json.dumps(server.body(model, part)) for part in parts) + "\n")
    return path


def _ratios(told: Mapping[str, Any]) -> dict[str, dict[str, dict[str, float]]]:
    """How many times the requests per second of each yardstick ours answers."""
    ratios: dict[str, dict[str, dict[str, float]]] = {}
    for load_name in (name for name in told[MLFLOW.name] if "clients" in name):
        rate = {name: figures[load_name]["requests_per_second"] or math.nan for name, figures in told.items()}
        best = max(rate[peer.name] for peer in (MLFLOW, *PEERS) if peer.name in rate)
        ratios[load_name] = {
            ours: {
                "to_mlflow": round(rate[ours] / rate[MLFLOW.name], 2),
                "to_best_peer": round(rate[ours] / best, 2),
                "to_bare_uvicorn": round(rate[ours] / rate[BARE.name], 3),
            }
            for ours in (COMPILED.name, LOGGED.name, NATIVE.name)
            if ours in rate
        }
    return ratios


def expected(model: Trained) -> list[Any]:
    frame = pd.DataFrame(model.rows[:20], columns=list(model.columns)).infer_objects()
    return [float(value) for value in np.asarray(mlflow.pyfunc.load_model(str(model.folder)).predict(frame)).ravel()]


def main() -> None:
    print(json.dumps(measure(), indent=1))


if __name__ == "__main__":
    main()
