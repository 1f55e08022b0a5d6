"""Every target of the canary analysis, and the rules of others on the same requests: simulations on all cores.

Seeded, so that a second run gives the same figures. A table and pictures of them are written beside the result.
Run it with ``python -m benchmarks.run canary_targets``, which takes about a quarter of an hour on two cores.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from benchmarks.canary import error_rate, pictures, requests, rollouts
from benchmarks.canary.comparison import BAD, GOOD, NAMES, OURS, costs, summary
from benchmarks.canary.figure import Figure

RESULTS = Path(__file__).with_name("results")
Target = Callable[[int], list[Figure]]
TARGETS: dict[str, tuple[Target, int, int]] = {
    "G1": (error_rate.g1, 450, 20),
    "G2": (rollouts.g2, 60, 2),
    "G3": (error_rate.g3, 150, 12),
    "G4": (error_rate.g4, 2_000, 60),
    "G5": (error_rate.g5, 2_000, 80),
    "G6": (error_rate.g6, 2_000, 150),
    "G7": (requests.g7, 45, 4),
    "G8": (requests.g8, 50, 4),
    "G9": (requests.g9, 50, 4),
    "G10": (error_rate.g10, 120, 10),
    "G11": (error_rate.g11, 500, 60),
    "G12": (rollouts.g12, 70, 4),
    "G13": (rollouts.g13, 100, 6),
    "G14": (error_rate.g14, 300, 15),
    "G14, all metrics": (requests.g14_family, 40, 2),
    "G15": (error_rate.g15, 400, 20),
    "G16": (requests.g16, 70, 5),
    "G17": (requests.g17, 45, 2),
    "G18": (rollouts.g18, 50, 3),
    "G19": (rollouts.g19, 2_000, 200),
}
"""By name: what measures it, its replicates here, and those that are few enough for every run of the tests."""
CANARIES = 32
"""Canaries of each world that the rules are compared on."""


def measure() -> dict[str, object]:
    """Every figure and every comparison."""
    with ProcessPoolExecutor(os.cpu_count()) as pool:
        figures, found = _collected(pool)
    for name, picture in (
        ("targets", pictures.targets(figures)),
        ("rules", pictures.compared(found)),
        ("evidence", pictures.evidence()),
    ):
        (RESULTS / f"canary_{name}.svg").write_bytes(picture)
    (RESULTS / "canary_targets.md").write_text(table(figures, found))
    return {
        "targets": [figure.told() for figure in figures],
        "rules": found,
    }


def _collected(pool: ProcessPoolExecutor) -> tuple[list[Figure], dict[str, dict[str, Any]]]:
    worlds = GOOD | BAD
    waiting: dict[Future[Any], tuple[str, int]] = {}
    for name, (target, runs, _) in TARGETS.items():
        waiting[pool.submit(target, runs)] = name, 0
    for name, world in worlds.items():
        for run in range(CANARIES):
            waiting[pool.submit(costs, world, run)] = name, run
    told = _told(waiting)
    figures = [figure for name in TARGETS for figure in told[name][0]]
    return figures, {name: summary([told[name][run] for run in range(CANARIES)]) for name in worlds}


def _told(waiting: Mapping[Future[Any], tuple[str, int]]) -> dict[str, dict[int, Any]]:
    told: dict[str, dict[int, Any]] = {}
    began = time.monotonic()
    for number, future in enumerate(as_completed(waiting), start=1):
        name, run = waiting[future]
        told.setdefault(name, {})[run] = future.result()
        print(f"{time.monotonic() - began:5.0f} s  {number} of {len(waiting)}: {name}", flush=True)
    return told


def table(figures: Sequence[Figure], found: Mapping[str, Mapping[str, Any]]) -> str:
    """All of it in Markdown."""
    return "\n".join((*_targets(figures), "", *_rules(found), ""))


def _targets(figures: Sequence[Figure]) -> Iterator[str]:
    yield "| target | | measured | standard error | wanted | replicates | seed | |"
    yield "|---|---|---|---|---|---|---|---|"
    for figure in figures:
        told = figure.told()
        verdict = "met" if figure.met else "missed" if figure.missed else "within chance"
        cells = [told[key] for key in ("target", "what", "value", "standard_error", "limit", "replicates", "seed")]
        yield f"| {' | '.join(map(str, cells))} | {verdict} |"


def _rules(found: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    yield "| candidate | rule | taken back | failed requests | candidate's requests | minutes |"
    yield "|---|---|---|---|---|---|"
    for world, by_rule in found.items():
        for name in NAMES:
            one = by_rule[name]
            cells = [f"{one[key]:.3g} ± {one[key + '_error']:.2g}" for key in _COLUMNS]
            shown = f"**{name}**" if name == OURS else name
            yield f"| {world} | {shown} | {' | '.join(cells)} |"


_COLUMNS = ("taken_back", "failed_requests", "candidate_requests", "minutes")
