"""One controller over a real Kubernetes API server: what a round costs with 10 to 1,000 models, 50 of them in a canary.

Deployments, Services and pods are real objects of the cluster and its controllers make the pods; a node that runs
nothing says that they are ready. Registry, images, gateway and evidence are in memory, so what is measured is what
the cluster costs: seconds for a round, requests to the API server, memory. Needs KUBECONFIG.
"""

from __future__ import annotations

import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
import uuid
from pathlib import Path

import psutil
from kubernetes.client import ApiClient, VersionApi

from benchmarks.engine import Installation
from benchmarks.fake_node import LABEL, fake_node
from serving.cluster import Cluster, connect
from serving.cluster_view import View
from serving.kubernetes import KubernetesTarget
from serving.kubernetes_objects import ClusterSettings
from serving.revision import RevisionState
from tests.fixtures.cluster import namespace

MODELS = tuple(int(count) for count in os.environ.get("MODELS", "10,100,1000").split(","))
CANARIES = 50
STEADY_SECONDS = 60.0
TICK_SECONDS = 0.5
"""Between two rounds, as the controller has it while rollouts are under way."""
_START_SECONDS = 1800.0


class Counted(Cluster):
    """Counts its requests."""

    requests = 0

    def _ask(self, *what: object, **options: object) -> object:  # type: ignore[override]
        self.requests += 1
        return super()._ask(*what, **options)  # type: ignore[arg-type]


def measure() -> dict[str, object]:
    """Each size in a process of its own, so that its memory is its own."""
    found = {}
    for models in MODELS:
        print(f"  {models} models", file=sys.stderr, flush=True)
        told = subprocess.run(
            [sys.executable, "-m", "benchmarks.cluster_scale", str(models)], stdout=subprocess.PIPE, check=True
        )
        found[str(models)] = json.loads(told.stdout)
    return {"by_models": found, "canaries": CANARIES, "kubernetes": _version()}


def _version() -> str:
    return str(VersionApi(ApiClient(connect())).get_code().git_version)


def measure_one(models: int) -> dict[str, object]:
    logging.disable(logging.WARNING)
    connection, name = connect(), f"bench-{uuid.uuid4().hex[:8]}"
    own = psutil.Process()
    with (
        tempfile.TemporaryDirectory() as home,
        fake_node(connection, name, 10 * models + 1000),
        namespace(connection) as space,
    ):
        cluster = Counted(connection, space)
        settings = ClusterSettings(space, name, node_selector={LABEL: name})
        view = View(cluster, settings.selector)
        target = KubernetesTarget(Path(home), cluster, view, settings, lambda _: True)
        began = time.monotonic()
        there = Installation(models, min(CANARIES, models), target)
        _await_ready(target, models)
        started = time.monotonic() - began
        print(f"  all are live after {started:.0f} s", file=sys.stderr, flush=True)
        began = time.monotonic()
        while not _in_canary(there):
            there.round()
            time.sleep(TICK_SECONDS)
            if time.monotonic() - began > _START_SECONDS:
                raise RuntimeError("not every candidate got its traffic")
        in_canary = time.monotonic() - began
        cluster.requests, rounds, until = 0, [], time.monotonic() + STEADY_SECONDS
        while time.monotonic() < until:
            there.traffic()
            begun = time.perf_counter()
            there.round()
            rounds.append(time.perf_counter() - begun)
            time.sleep(TICK_SECONDS)
        figures: dict[str, object] = {
            "seconds_until_all_are_live": round(started, 1),
            "seconds_until_all_canaries_have_traffic": round(in_canary, 1),
            "round_seconds_median": round(statistics.median(rounds), 4),
            "round_seconds_p99": round(sorted(rounds)[int(len(rounds) * 0.99)], 4),
            "requests_per_minute": round(cluster.requests * 60 / STEADY_SECONDS, 1),
            "memory_mb": round(own.memory_info().rss / 1e6),
        }
        view.close()
        cluster.close()
    return figures


def _await_ready(target: KubernetesTarget, models: int) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        ready = sum(status.state is RevisionState.READY for status in target.status().values())
        if ready == models:
            return
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {ready} of {models} revisions got ready")
        time.sleep(1.0)


def _in_canary(there: Installation) -> bool:
    active = there.store.active()
    return len(active) == len(there.canaries) and all(rollout.weight for rollout in active)


if __name__ == "__main__":
    print(json.dumps(measure_one(int(sys.argv[1])) if len(sys.argv) > 1 else measure(), indent=1))
