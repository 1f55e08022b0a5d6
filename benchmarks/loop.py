"""The whole loop on this machine: how fast a transition gets traffic, and what it costs the clients.

Real MLflow, Envoy and model servers. Steady load at 200 requests per second runs through a full promotion
and a full rollback; a request counts as lost where the client got no answer or one it should not have got.
The version that is rolled back fails on 30 % of its requests by its own doing: those are counted apart.
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from pathlib import Path

from tests.e2e.conftest import installed
from tests.e2e.loop import Loop, failed

RATE = 200.0
REPEATS = 5


def measure() -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="promote-bench-") as folder:
        stories = installed(Path(folder) / "home", keep_warm="5s")
        loop = next(stories)
        try:
            return _measured(loop)
        finally:
            next(stories, None)


def _measured(loop: Loop) -> dict[str, object]:
    first = loop.register("bench")
    loop.transition("bench", first, "Production")
    loop.await_state("bench", first, "succeeded")
    figures: dict[str, object] = {"requests_per_second": RATE}
    firsts, promotions = [], []
    with loop.traffic("bench", RATE) as results:
        for _ in range(REPEATS):
            first_request, promotion = _promote(loop)
            firsts.append(first_request)
            promotions.append(promotion)
    figures["transition_to_first_candidate_request_seconds"] = _spread(firsts)
    figures["transition_to_live_seconds"] = _spread(promotions)
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


def _promote(loop: Loop) -> tuple[float, float]:
    """Seconds from the transition to the first request on the new version, and to its having all traffic."""
    version = loop.register("bench")
    loop.transition("bench", version, "Production")
    began = time.perf_counter()
    while loop.served("bench") != str(version):
        time.sleep(0.005)
    first = time.perf_counter() - began
    loop.await_state("bench", version, "succeeded")
    return first, time.perf_counter() - began


def _spread(seconds: list[float]) -> dict[str, float]:
    return {"median": round(statistics.median(seconds), 2), "most": round(max(seconds), 2)}


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
