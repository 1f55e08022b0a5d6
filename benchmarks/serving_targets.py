"""What is wanted of the model server, held against the figures of `serving`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.peers.servers import COMPILED, NATIVE

_ONE, _SOME, _MANY = (f"{clients} clients, 1 rows" for clients in (1, 16, 64))
"""Names of loads in the figures."""
_YARDSTICKS = {
    "to_mlflow": "times `mlflow models serve`",
    "to_best_peer": "times the best peer",
    "to_bare_uvicorn": "of bare uvicorn",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio of requests per second that one of our servers should reach under a load."""

    server: str
    load: str
    ratio: str
    least: float


RATIOS = (
    Target(COMPILED.name, _ONE, "to_mlflow", 40),
    Target(COMPILED.name, _MANY, "to_mlflow", 60),
    *(Target(COMPILED.name, load, "to_best_peer", 8) for load in (_ONE, _SOME, _MANY)),
    Target(COMPILED.name, _ONE, "to_bare_uvicorn", 0.4),
    Target(NATIVE.name, _ONE, "to_best_peer", 1),
    *(Target(NATIVE.name, load, "to_best_peer", 1.3) for load in (_SOME, _MANY)),
)

P99_MS, START_SECONDS, MEMORY_MB = 5.0, 1.5, 120.0
"""Most of a compiled server: latency at half of what it can do; of the light model start and memory, too."""


def table(models: Mapping[str, Any]) -> str:
    """Every target with what was measured, as Markdown."""
    lines = ["| model | target | measured | wanted | |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(line for name in models for line in _of(name, models[name]["1 worker"]))]) + "\n"


def _of(model: str, figures: Mapping[str, Any]) -> Iterator[str]:
    for target in RATIOS:
        got = figures["ratios"][target.load][target.server][target.ratio]
        what = f"{target.server}, {target.load.split()[0]} at once, {_YARDSTICKS[target.ratio]}"
        yield _line(model, what, f"{got:g}", f"at least {target.least:g}", met=got >= target.least)
    compiled = figures["servers"][COMPILED.name]
    most = [("99th percentile at half load, ms", compiled["half load"]["p99_ms"], P99_MS)]
    if model == "light":
        most.append(("seconds to the first answer", compiled["start_s"], START_SECONDS))
        most.append(("memory, MB", compiled["memory_mb"], MEMORY_MB))
    for what, got, wanted in most:
        yield _line(model, f"{COMPILED.name}, {what}", f"{got:g}", f"at most {wanted:g}", met=got <= wanted)


def _line(model: str, what: str, got: str, wanted: str, *, met: bool) -> str:
    return f"| {model} | {what} | {got} | {wanted} | {'met' if met else 'missed'} |"
