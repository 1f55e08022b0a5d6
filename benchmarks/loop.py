"""The whole loop on every target that this machine has: how fast a transition gets traffic, what it costs the clients.

Real MLflow, Envoy and model servers, and real engines. Steady load at 200 requests per second runs through full
promotions and a full rollback; a request counts as lost where the client got no answer or one it should not have got.
The version that is rolled back fails on 30 % of its requests by its own doing: those are counted apart.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from tests.e2e.conftest import installed, installed_in
from tests.e2e.loop import Loop, failed

RATE = 200.0
REPEATS = 5
KEEP_WARM = "5s"


def measure() -> dict[str, object]:
    figures: dict[str, object] = {"requests_per_second": RATE}
    for target in ("local", "docker", "podman"):
        with tempfile.TemporaryDirectory(prefix="promote-bench-") as folder:
            try:
                with _installed(target, Path(folder) / "home") as loop:
                    figures[target] = measured(loop)
            except pytest.skip.Exception as missing:
                figures[target] = f"not measured: {missing}"
    return figures


def _installed(target: str, home: Path) -> AbstractContextManager[Loop]:
    if target == "local":
        return contextmanager(installed)(home, keep_warm=KEEP_WARM)
    return installed_in(target, home, keep_warm=KEEP_WARM)


def measured(loop: Loop) -> dict[str, object]:
    """The figures of one installation."""
    first = loop.register("bench")
    loop.transition("bench", first, "Production")
    loop.await_state("bench", first, "succeeded", seconds=600)
    figures: dict[str, object] = {}
    with loop.traffic("bench", RATE) as results:
        versions = [loop.register("bench") for _ in range(REPEATS)]
        promoted = [_promote(loop, version) for version in versions]
        again = [_promote(loop, version) for version in versions[:-1]]
    firsts, promotions = zip(*promoted, strict=True)
    figures["transition_to_first_candidate_request_seconds"] = _spread(firsts)
    figures["transition_to_live_seconds"] = _spread(promotions)
    figures["the_first_of_these_where_the_image_is_there"] = _spread([first for first, _ in again])
    figures["promotion"] = {"requests": sum(r.sent for r in results), "lost": failed(results)}
    with loop.traffic("bench", RATE) as results:
        version = loop.register("bench", fails=0.3)
        loop.transition("bench", version, "Production")
        loop.await_state("bench", version, "failed")
    answered_500 = failed(results).pop("500", 0)
    lost = {cause: count for cause, count in failed(results).items() if cause != "500"}
    figures["rollback"] = {
        "requests": sum(r.sent for r in results),
        "lost": lost,
        "answered_500_by_the_faulty_version": answered_500,
    }
    return figures


def _promote(loop: Loop, version: int) -> tuple[float, float]:
    """Seconds from the transition to the first request on the version, and to its having all traffic."""
    loop.transition("bench", version, "Production")
    began = time.perf_counter()
    while loop.served("bench") != str(version):
        time.sleep(0.005)
    first = time.perf_counter() - began
    loop.await_state("bench", version, "succeeded")
    return first, time.perf_counter() - began


def _spread(seconds: Sequence[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 2), "most": round(max(seconds), 2)}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
