"""What copies for a candidate cost the client.

Latency through the gateway without copies, with them, and with a candidate that never answers them. Real Envoy, servers
in processes of their own that take five milliseconds without using a core, steady load. The cases take turns in rounds,
so that what else the machine does meets all alike. What two models cost each other by computing on the same cores is
not in these figures.
"""

from __future__ import annotations

import argparse
import asyncio
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

import httpx
import uvicorn

from examples.load import LoadResult, load
from serving.envoy import GatewaySettings
from serving.envoy_process import local_gateway
from serving.envoy_router import router_at
from serving.gateway import Gateway
from serving.revision import Address, Weights
from serving.router import Route
from tests.fixtures.gateway import free_port, until

RATE = 200.0
"""Requests per second."""
SECONDS = 4.0
"""Of load, per case and round."""
ROUNDS = 9
TAKES = 0.005
"""Seconds that an answer takes."""
HANGS = 25.0
"""Seconds that an answer takes that is not waited for."""
CASES = ("without", "with", "hung")
PAYLOAD = b'{"dataframe_split": {"columns": ["x"], "data": [[1.0]]}}'


def measure() -> dict[str, object]:
    """Median and 99th percentile in milliseconds, each the median over the rounds, and what failed."""
    with _installed() as (gateway, routes):
        results: dict[str, list[LoadResult]] = {case: [] for case in CASES}
        for _ in range(ROUNDS):
            for case in CASES:
                results[case].append(_loaded(gateway, routes[case]))
        dropped = gateway_stat(gateway, "cluster.hung~shadow.upstream_rq_503")
    return {
        "requests_per_second": RATE,
        "seconds": SECONDS,
        "rounds": ROUNDS,
        "median_ms": {case: _share(found, 0.50) for case, found in results.items()},
        "p99_ms": {case: _share(found, 0.99) for case, found in results.items()},
        "p99_ms_each_round": {case: [_ms(one, 0.99) for one in found] for case, found in results.items()},
        "failed": {case: sum(sum(one.failed.values()) for one in found) for case, found in results.items()},
        "copies_not_sent_in_the_last_round": int(dropped or 0),
    }


def gateway_stat(gateway: Gateway, name: str) -> str:
    url = f"http://127.0.0.1:{gateway.settings.admin_port}/stats?filter=^{name}$"
    return httpx.get(url, trust_env=False).text.partition(": ")[2].strip()


def _share(found: list[LoadResult], share: float) -> float:
    return round(median(_ms(one, share) for one in found), 2)


def _ms(result: LoadResult, share: float) -> float:
    return round(1000 * result.latency(share), 2)


def _loaded(gateway: Gateway, route: Route) -> LoadResult:
    router = router_at(gateway.files.home, gateway.settings)
    router.set_weights(route)
    until(lambda: router.get_weights().get("churn") == route)
    url = f"{gateway.url}/models/churn/invocations"
    asyncio.run(load(url, PAYLOAD, RATE, 0.5))
    return asyncio.run(load(url, PAYLOAD, RATE, SECONDS))


@contextmanager
def _installed() -> Iterator[tuple[Gateway, dict[str, Route]]]:
    """A gateway, and the route of each case."""
    with ExitStack() as stack:
        stable, candidate, hung = (stack.enter_context(_server(takes)) for takes in (TAKES, TAKES, HANGS))
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        gateway = local_gateway(Path(folder), GatewaySettings(port=free_port(), admin_port=free_port()))
        gateway.ensure()
        stack.callback(gateway.stop, drain_seconds=0.0)
        all_stable, ends = Weights({"stable": 100}), {"stable": (stable,), "candidate": (candidate,), "hung": (hung,)}
        yield (
            gateway,
            {
                "without": Route("churn", all_stable, ends, "rollout/shadowed"),
                "with": Route("churn", all_stable, ends, "rollout/shadow", "candidate", shadow="candidate"),
                "hung": Route("churn", all_stable, ends, "rollout/shadow", "hung", shadow="hung"),
            },
        )


@contextmanager
def _server(takes: float) -> Iterator[Address]:
    address = Address("127.0.0.1", free_port())
    command = [sys.executable, "-m", "benchmarks.shadow", "--port", str(address.port), "--takes", str(takes)]
    with subprocess.Popen(command) as process:
        try:
            until(lambda: _answers(address), 60.0)
            yield address
        finally:
            process.kill()


def _answers(address: Address) -> bool:
    try:
        return httpx.get(f"http://{address}/ping", trust_env=False).is_success
    except httpx.TransportError:
        return False


def _serve(port: int, takes: float) -> None:
    async def app(scope: dict[str, object], receive: object, send: object) -> None:
        assert callable(receive)
        assert callable(send)
        while (await receive()).get("more_body"):
            pass
        await asyncio.sleep(0 if scope["path"] == "/ping" else takes)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-promote-prediction", b"[0.5]")]})
        await send({"type": "http.response.body", "body": b'{"predictions": [0.5]}'})

    uvicorn.run(app, port=port, log_level="error", lifespan="off")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int)
    parser.add_argument("--takes", type=float, default=TAKES)
    asked = parser.parse_args()
    if asked.port:
        _serve(asked.port, asked.takes)
        return
    from benchmarks.run import write

    print(write("shadow", measure).read_text())


if __name__ == "__main__":
    main()
