"""The gateway's figures: how soon a weight is in force, with few models and many, and what reading the log costs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median, quantiles

from monitoring.access_log import AccessLogBlocks, ReadingPolicy
from monitoring.log_file import LogFile
from serving.envoy import GatewaySettings, cluster_table, route_table
from serving.envoy_process import local_gateway
from serving.envoy_router import EnvoyRouter, router_at
from serving.gateway import Gateway
from serving.revision import Address, Weights
from serving.router import Route
from tests.fixtures.gateway import free_port

CHANGES = 40
MANY_MODELS = 1000
REQUESTS = 10_000


def measure() -> dict[str, float]:
    """Milliseconds from asking for a weight to Envoy reporting it, and CPU seconds of reading 10,000 requests."""
    return {
        **_weight_changes(models=1, prefix="weight_change"),
        **_weight_changes(models=MANY_MODELS, prefix=f"weight_change_{MANY_MODELS}_models"),
        "log_cpu_seconds_per_10000_requests": _reading(),
    }


def _route(model: str, weight: int) -> Route:
    here = (Address("127.0.0.1", 9),)
    stable, candidate = f"{model}-v1", f"{model}-v2"
    weights = Weights({stable: 100 - weight, candidate: weight})
    return Route(model, weights, {stable: here, candidate: here}, f"rollout/{weight}", candidate)


@contextmanager
def _envoy(models: int) -> Iterator[tuple[Gateway, EnvoyRouter]]:
    with tempfile.TemporaryDirectory() as folder:
        settings = GatewaySettings(port=free_port(), admin_port=free_port())
        gateway = local_gateway(Path(folder), settings)
        routes = [_route(f"model-{number}", 5) for number in range(models)]
        gateway.files.tables.mkdir(parents=True)
        gateway.files.clusters.write_text(json.dumps(cluster_table(routes, settings)))
        gateway.files.routes.write_text(json.dumps(route_table(routes, settings)))
        gateway.ensure()
        try:
            yield gateway, router_at(Path(folder), settings)
        finally:
            gateway.stop(drain_seconds=0.0)


def _weight_changes(models: int, prefix: str) -> dict[str, float]:
    with _envoy(models) as (_, router):
        taken = [_change(router, _route("model-0", 1 + number)) for number in range(CHANGES if models == 1 else 12)]
        read = _seconds(router.get_weights)
    return {
        f"{prefix}_ms_median": round(1000 * median(taken), 1),
        f"{prefix}_ms_p95": round(1000 * quantiles(taken, n=20)[-1], 1),
        f"{prefix}_ms_to_read": round(1000 * read, 1),
    }


def _change(router: EnvoyRouter, route: Route) -> float:
    begun = time.perf_counter()
    router.set_weights(route)
    while router.get_weights().get(route.model) != route:
        time.sleep(0.005)
    return time.perf_counter() - begun


def _seconds(action: Callable[[], object]) -> float:
    begun = time.perf_counter()
    action()
    return time.perf_counter() - begun


def _reading() -> float:
    """CPU time to fold a log of 200 requests a second, read once a second as a controller does."""
    batch = 200
    with tempfile.TemporaryDirectory() as folder:
        log, now, spent = Path(folder) / "access.log", [1_700_000_000.0], 0.0
        log.touch()
        reading = ReadingPolicy(rest_seconds=0.0)
        source = AccessLogBlocks([LogFile(log, lambda: None)], Path(folder), reading=reading, clock=lambda: now[0])
        for first in range(0, REQUESTS, batch):
            with log.open("a") as file:
                file.writelines(
                    request_lines(number, now[0] + (number - first) / batch) for number in range(first, first + batch)
                )
            now[0] += 1.0
            begun = time.process_time()
            source.blocks("rollout", after=first // 10)
            spent += time.process_time() - begun
    return round(spent, 3)


def request_lines(number: int, at: float) -> str:
    """What Envoy writes for one answered request."""
    cluster = "churn-v2" if number % 10 == 0 else "churn-v1"
    about = {"start": f"{at:.6f}", "id": f"{number:036d}", "model": "churn", "step": "rollout/0", "host": "127.0.0.1:9"}
    shared = about | {"candidate": "churn-v2", "cluster": cluster, "flags": "-"}
    begun = {"type": "UpstreamPoolReady", "code": 0, "ms": 0, "began": None, "sent": None, "answered": None}
    ended = {"type": "UpstreamEnd", "code": 200, "ms": 8, "began": 90, "sent": 10, "answered": 120}
    return f"{json.dumps(shared | begun)}\n{json.dumps(shared | ended)}\n"


def main() -> None:
    print(json.dumps(measure(), indent=1))


if __name__ == "__main__":
    main()
