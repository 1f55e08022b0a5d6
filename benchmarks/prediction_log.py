"""What share of the throughput logging every prediction costs, at full speed.

Two servers of each compiled model, one with the prediction log, asked in turn for the same rows; what comes first
changes from pair to pair. The client is wrk, and shares the machine's cores with the server and with the process that
writes the log. Run it with `python -m benchmarks.prediction_log`.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.peers import load
from benchmarks.peers.plans import compile_plan
from benchmarks.peers.servers import COMPILED, LOGGED, Running, running
from benchmarks.serving import HOME, MODELS, bodies, expected

CLIENTS = (1, 16, 64)
ROUNDS = int(os.environ.get("ROUNDS", "15"))
SECONDS = float(os.environ.get("SECONDS", "2"))


def measure() -> dict[str, object]:
    """Per model and clients: the share of requests per second that is lost, in percent."""
    load.required()
    with tempfile.TemporaryDirectory() as folder:
        return {name: _model(name, Path(folder)) for name in MODELS}


def _model(name: str, folder: Path) -> dict[str, object]:
    model = MODELS[name](name, folder / name)
    compile_plan(model.folder)
    answers = expected(model)
    with ExitStack() as stack:
        bare, logged = (stack.enter_context(running(one, HOME, model, 1, answers)) for one in (COMPILED, LOGGED))
        rows = bodies(COMPILED, model, 1, folder)
        return {f"{clients} clients": _lost(bare, logged, rows, clients) for clients in CLIENTS}


def _lost(bare: Running, logged: Running, rows: Path, clients: int) -> dict[str, Any]:
    print(f"  {clients} clients", flush=True)
    pairs = [_pair(bare, logged, rows, clients, number) for number in range(ROUNDS)]
    lost = [100 * (1 - with_log / without) for without, with_log in pairs]
    low, _, high = quantiles(lost, n=4)
    return {
        "lost_percent": round(median(lost), 1),
        "quartiles": [round(low, 1), round(high, 1)],
        "without_log": round(median(without for without, _ in pairs)),
        "with_log": round(median(with_log for _, with_log in pairs)),
        "pairs": ROUNDS,
    }


def _pair(bare: Running, logged: Running, rows: Path, clients: int, number: int) -> tuple[float, float]:
    order: Sequence[Running] = (bare, logged) if number % 2 else (logged, bare)
    rates = {one.server.name: load.run(one.url, rows, clients, SECONDS).requests_per_second for one in order}
    return rates[bare.server.name], rates[logged.server.name]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
