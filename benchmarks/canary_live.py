"""Canaries on this machine, with real processes, Envoy and load: the right verdict, how soon, and at whose cost.

Every kind of candidate once, then the same version against itself many times, several models at a time: each of
those that is taken back is a false alarm.
"""

from __future__ import annotations

import json
import tempfile
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

from tests.e2e.canary_kinds import KINDS, Behaviour, Kind, Outcome, made_live, tried
from tests.e2e.conftest import installed
from tests.e2e.loop import Loop

USUAL_SECONDS = 10.0
"""Load on the stable version alone, before."""
EQUALS, MODELS = 50, 5
"""Candidates that are the same as the stable version, and how many models try them at a time."""


def measure() -> dict[str, object]:
    with tempfile.TemporaryDirectory(prefix="promote-bench-") as folder:
        stories = installed(Path(folder) / "home", keep_warm="5s")
        loop = next(stories)
        try:
            return {"kinds": _kinds(loop), "equal_candidates": _equals(loop)}
        finally:
            next(stories, None)


def _kinds(loop: Loop) -> dict[str, object]:
    found: dict[str, object] = {}
    for number, (name, kind) in enumerate(KINDS.items()):
        model = f"{'exact' if kind.exact else 'kind'}-{number}"
        found[name] = {**asdict(_tried(loop, model, kind)), "right": kind.right, "requests_per_second": kind.rate}
        print(name, json.dumps(found[name]), flush=True)
    return found


def _tried(loop: Loop, model: str, kind: Kind) -> Outcome:
    made_live(loop, model, kind.stable)
    return tried(loop, model, kind.candidate, rate=kind.rate, usual_seconds=USUAL_SECONDS)


def _equals(loop: Loop) -> dict[str, object]:
    with ThreadPoolExecutor(MODELS) as pool:
        phases = Counter[str]()
        for several in pool.map(lambda number: _equal(loop, f"equal-{number}"), range(MODELS)):
            phases.update(several)
    return {"rollouts": EQUALS, **phases}


def _equal(loop: Loop, model: str) -> list[str]:
    made_live(loop, model, Behaviour())
    kind, rounds = KINDS["equal"], EQUALS // MODELS
    return [
        tried(loop, model, kind.candidate, rate=kind.rate, usual_seconds=USUAL_SECONDS).phase for _ in range(rounds)
    ]


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
