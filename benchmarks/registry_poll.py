"""What a poll of a large MLflow registry costs: requests, our own CPU time, and the wall clock.

A real MLflow server on SQLite with 10,000 models of 5 versions. The rows are written straight into MLflow's
tables with its own table definitions, because 60,000 calls of its API would take half an hour; everything that
is measured goes through the API. Own time is the CPU time of this process, which holds nothing but the client.
"""

from __future__ import annotations

import json
import logging
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import mlflow
from mlflow.store.model_registry.dbmodels.models import SqlModelVersion, SqlRegisteredModel, SqlRegisteredModelAlias
from mlflow.store.model_registry.sqlalchemy_store import SqlAlchemyStore
from sqlalchemy import insert

from registry_hooks.mlflow_reading import LATE_SECONDS
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import Channel, ModelVersion
from registry_hooks.watcher import Watcher
from tests.fixtures.registry import start_mlflow

MODELS, VERSIONS = 10_000, 5
ALIASED = 1_000
"""Models whose policy names an alias."""
ALIAS_REQUESTS_PER_MINUTE = 60
POLLS = 20
YEAR_MS = 365 * 24 * 3600 * 1000
LIMIT_MS = 100.0
"""Most own time of a poll with nothing new."""


def measure(models: int = MODELS) -> dict[str, object]:
    """Figures by name; milliseconds are medians over some polls unless the name says otherwise."""
    with tempfile.TemporaryDirectory() as folder:
        uri = f"sqlite:///{folder}/mlflow.db"
        fill(uri, models)
        with start_mlflow(Path(folder) / "server", backend_uri=uri) as server:
            return {"mlflow": mlflow.__version__, "models": models, "versions": VERSIONS, **_figures(server.uri)}


def fill(uri: str, models: int) -> None:
    """Models ``m00000`` ... changed over the last year; version 5 of each in Production, 4 archived."""
    store = SqlAlchemyStore(uri)  # type: ignore[no-untyped-call]
    newest = int(time.time() * 1000) - 60_000
    stamps = {f"m{n:05}": newest - n * (YEAR_MS // models) for n in range(models)}
    with store.engine.begin() as database:
        database.execute(insert(SqlRegisteredModel), [_row(name=m, at=at) for m, at in stamps.items()])
        versions = [{**_row(name=m, at=at), **v} for m, at in stamps.items() for v in _versions()]
        database.execute(insert(SqlModelVersion), versions)
        champions = [{"name": m, "alias": "champion", "version": 5} for m in list(stamps)[:ALIASED]]
        database.execute(insert(SqlRegisteredModelAlias), champions)
    store.engine.dispose()


def _row(name: str, at: int) -> dict[str, object]:
    return {"name": name, "creation_time": at, "last_updated_time": at}


def _versions() -> Iterator[dict[str, object]]:
    stages = {VERSIONS: "Production", VERSIONS - 1: "Archived"}
    for version in range(1, VERSIONS + 1):
        stage = stages.get(version, "None")
        yield {"version": version, "current_stage": stage, "source": "s3://bucket/model", "status": "READY"}


def _figures(uri: str) -> dict[str, object]:
    registry = MlflowRegistry(uri)
    aliased = [f"m{n:05}" for n in range(ALIASED)]
    watcher = Watcher(registry, registry, lambda: aliased, ALIAS_REQUESTS_PER_MINUTE, full_read_seconds=3600)
    everything = _cost(registry.changed)
    _wait_until_settled(registry)
    nothing = [_cost(registry.changed) for _ in range(POLLS)]
    batch = [_cost(lambda: registry.snapshot(aliased[:100])) for _ in range(3)]
    registry.assign(ModelVersion("m00500", 5), Channel.parse("Staging"))
    one = [_cost(registry.changed) for _ in range(2)]
    return {
        **_named("everything", [everything]),
        **_named("nothing_new", nothing),
        **_named("one_change", one),
        **_named("100_aliased_models", batch),
        "aliased": ALIASED,
        "alias_requests_per_minute": ALIAS_REQUESTS_PER_MINUTE,
        "worst_alias_delay_s": watcher.worst_alias_delay(),
        "nothing_new_within_limit": max(own for _, own, _ in nothing) < LIMIT_MS,
    }


def _wait_until_settled(registry: MlflowRegistry) -> None:
    """Polls read the newest models again until no change can appear behind them any more."""
    until = time.monotonic() + LATE_SECONDS + 2
    while time.monotonic() < until:
        registry.changed()
        time.sleep(1)


def _cost(poll: Callable[[], object]) -> tuple[int, float, float]:
    """Requests, own CPU milliseconds, wall milliseconds."""
    with _counted() as requests:
        own, wall = time.process_time(), time.perf_counter()
        poll()
        own, wall = time.process_time() - own, time.perf_counter() - wall
    return len(requests), own * 1000, wall * 1000


def _named(name: str, costs: list[tuple[int, float, float]]) -> dict[str, object]:
    requests, own, wall = zip(*costs, strict=True)
    return {
        f"{name}_requests": max(requests),
        f"{name}_own_ms": round(statistics.median(own), 1),
        f"{name}_own_ms_max": round(max(own), 1),
        f"{name}_wall_ms": round(statistics.median(wall), 1),
    }


@contextmanager
def _counted() -> Iterator[list[str]]:
    """The requests made meanwhile: urllib3, which MLflow's client uses, logs each one that was answered."""
    requests: list[str] = []

    class Count(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if " HTTP/" in record.getMessage():
                requests.append(record.getMessage())

    log, handler = logging.getLogger("urllib3.connectionpool"), Count()
    level, propagate = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.DEBUG)
    log.propagate = False
    try:
        yield requests
    finally:
        log.removeHandler(handler)
        log.setLevel(level)
        log.propagate = propagate


if __name__ == "__main__":
    print(json.dumps({"at": datetime.now(UTC).isoformat(timespec="seconds"), **measure()}, indent=2))
