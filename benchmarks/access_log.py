"""What reading the access log costs, of one core at 2,000 requests a second through the gateway.

The lines are a real Envoy's, with ids, times, revisions and predictions of their own. They are written as Envoy
writes them, a second's worth at a time, and read as often as a controller does; the clock is simulated, the CPU
time is not: it is all that the process spent on reading, folding and saving.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from uuid import UUID

import httpx

from monitoring.access_log import AccessLogBlocks, ReadingPolicy
from monitoring.blocks import Scale
from monitoring.log_file import LogFile
from serving.envoy import GatewaySettings
from serving.envoy_process import local_gateway
from serving.envoy_router import router_at
from serving.gateway import Gateway
from serving.revision import Weights
from serving.router import Route
from tests.fixtures.gateway import Upstream, free_port, until

RATE = 2000
"""Requests per second."""
SECONDS = 20
"""Simulated time of one run."""
ROUNDS = 5
"""Runs of each case, in turn."""
WEIGHT = 10
"""The candidate's share in percent."""
HANGING = 10.0
"""Seconds that a hanging request takes; every later block waits for it."""
BEGAN = 1_700_000_000.0


@dataclass(frozen=True, slots=True)
class Case:
    """What is going on while the log is read."""

    step: str
    """Of the rollout, or empty."""
    reads_per_second: int = 2
    hanging: float = 0.0
    """Share of the candidate's requests that are answered only after `HANGING`."""


CASES = {
    "no_rollout": Case(""),
    "rollout": Case("rollout/0"),
    "rollout_read_eight_times_a_second": Case("rollout/0", 8),
    "rollout_with_hanging_requests": Case("rollout/0", hanging=0.01),
}


def measure() -> dict[str, object]:
    """CPU time per request of two lines, in microseconds, and what that is of a core at `RATE`."""
    sample = _sample()
    spent: dict[str, list[float]] = {name: [] for name in CASES}
    for number in range(ROUNDS):
        for name, case in CASES.items():
            spent[name].append(_run(case, sample, seed=number))
    medians = {name: median(each) for name, each in spent.items()}
    return {
        "bytes_per_request": sum(len(_text(line)) for line in sample),
        "requests_per_second": RATE,
        "seconds": SECONDS,
        "rounds": ROUNDS,
        "microseconds_per_request": {name: round(1e6 * each, 2) for name, each in medians.items()},
        "percent_of_a_core": {name: round(100 * RATE * each, 2) for name, each in medians.items()},
    }


def _sample() -> tuple[dict[str, object], dict[str, object]]:
    """The two lines that a real Envoy writes for an answered request."""
    with _envoy() as (gateway, upstream):
        router = router_at(gateway.files.home, gateway.settings)
        router.set_weights(Route("churn", Weights({"v1": 100}), {"v1": (upstream.address,)}, "rollout/0", "v2"))
        until(router.get_weights)
        httpx.post(f"{gateway.url}/models/churn/invocations", json={}, trust_env=False).raise_for_status()
        until(lambda: "UpstreamEnd" in gateway.files.access_log.read_text())
        lines = [json.loads(text) for text in gateway.files.access_log.read_text().splitlines() if text]
    began, ended = (
        next(line for line in lines if line["type"] == kind) for kind in ("UpstreamPoolReady", "UpstreamEnd")
    )
    return began, {"took": 8000, **ended}


@contextmanager
def _envoy() -> Iterator[tuple[Gateway, Upstream]]:
    with tempfile.TemporaryDirectory() as folder:
        upstream = Upstream("v1")
        gateway = local_gateway(Path(folder), GatewaySettings(port=free_port(), admin_port=free_port(), workers=1))
        gateway.ensure()
        try:
            yield gateway, upstream
        finally:
            gateway.stop(drain_seconds=0.0)
            upstream.close()


def _text(line: dict[str, object]) -> str:
    return json.dumps(line, separators=(",", ":")) + "\n"


def _run(case: Case, sample: tuple[dict[str, object], dict[str, object]], seed: int) -> float:
    """Seconds of CPU time per request."""
    seconds = [*_written(case, sample, random.Random(seed))]
    with tempfile.TemporaryDirectory() as folder:
        log, now = Path(folder) / "access.log", [BEGAN]
        log.touch()
        reading = ReadingPolicy(rest_seconds=0.0)
        source = AccessLogBlocks([LogFile(log, lambda: None)], Path(folder), reading=reading, clock=lambda: now[0])
        spent, seen = 0.0, 0
        for number, lines in enumerate(seconds):
            if case.step and number == 3:
                source.prepare("rollout", "churn", Scale())
            for part in range(case.reads_per_second):
                size = len(lines) // case.reads_per_second + 1
                with log.open("a") as file:
                    file.writelines(lines[part * size : (part + 1) * size])
                now[0] += 1.0 / case.reads_per_second
                begun = time.process_time()
                blocks = source.blocks("rollout", seen)
                spent += time.process_time() - begun
                seen = blocks[-1].id if blocks else seen
        assert (seen > 0) is bool(case.step)
    return spent / (RATE * SECONDS)


def _written(
    case: Case, sample: tuple[dict[str, object], dict[str, object]], rng: random.Random
) -> Iterator[list[str]]:
    """What the log gains in each second, without requests that outlast the run."""
    lines: list[tuple[float, str]] = []
    for number in range(RATE * SECONDS):
        at = BEGAN + number / RATE
        candidate = rng.random() < WEIGHT / 100
        took = HANGING if candidate and rng.random() < case.hanging else rng.expovariate(1 / 0.02)
        lines += _request(case, sample, at, candidate, took, rng)
    lines.sort()
    first = 0
    for second in range(1, SECONDS + 1):
        last = next((n for n in range(first, len(lines)) if lines[n][0] >= BEGAN + second), len(lines))
        yield [text for _, text in lines[first:last]]
        first = last


def _request(
    case: Case,
    sample: tuple[dict[str, object], dict[str, object]],
    at: float,
    candidate: bool,
    took: float,
    rng: random.Random,
) -> list[tuple[float, str]]:
    revision = "churn-v2" if candidate else "churn-v1"
    own = {
        "start": f"{at:.6f}",
        "id": str(UUID(int=rng.getrandbits(128))),
        "cluster": revision,
        "revision": revision,
        "candidate": "churn-v2" if case.step else "",
        "step": case.step if not case.step or at >= BEGAN + 3 else "",
    }
    end = {"ms": int(took * 1000), "took": int(took * 1e6), "prediction": f"[{rng.random():.6g}]"}
    began, ended = ({**line, **own} for line in sample)
    return [(at, _text(began)), (at + took, _text({**ended, **end}))]


def main() -> None:
    from benchmarks.run import write

    print(write("access_log", measure).read_text())


if __name__ == "__main__":
    main()
