"""What the simulations found, as pictures."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing

from benchmarks.canary.comparison import BAD, GOOD, NAMES, OURS
from benchmarks.canary.counts import requests
from benchmarks.canary.error_rate import POLICY
from benchmarks.canary.figure import Figure
from monitoring.analysis import Evidence, fold, log_e_worse
from monitoring.blocks import Block

_OURS, _OTHERS = "#2f6fab", "#b0b0b0"
_LEAST = 0.8
"""Where a bar on a scale of powers begins."""


def compared(found: Mapping[str, Mapping[str, Any]]) -> bytes:
    """Each rule on good and on bad candidates."""
    drawing = Drawing(figsize=(11.0, 4.6), layout="constrained")
    places = drawing.subplots(1, len(GOOD) + len(BAD), sharey=True)
    for axes, world in zip(places, (*GOOD, *BAD), strict=True):
        by_rule = found[world]
        if world in GOOD:
            _bars(axes, [100 * by_rule[name]["taken_back"] for name in NAMES], "% wrongly taken back")
            axes.set_xlim(0, 100)
        else:
            cost = "candidate_requests" if world.startswith("latency") else "failed_requests"
            _bars(axes, [by_rule[name][cost] for name in NAMES], cost.replace("_", " "))
            axes.set_xscale("log")
            axes.set_xlim(left=_LEAST)
        axes.set_title(world.replace(", ", ",\n"), fontsize=9)
    places[0].invert_yaxis()
    return _svg(drawing, "Candidates judged by several rules")


def _bars(axes: Axes, values: Sequence[float], label: str) -> None:
    colours = [_OURS if name == OURS else _OTHERS for name in NAMES]
    axes.barh(NAMES, values, color=colours)
    axes.set_xlabel(label, fontsize=8)
    axes.tick_params(labelsize=8)
    for row, value in enumerate(values):
        axes.annotate(f"{float(f'{value:.3g}'):,g}", (max(value, _LEAST), row), fontsize=8, va="center")


def targets(figures: Sequence[Figure]) -> bytes:
    """Every figure over its target, with two standard errors; to the left of one is within the target."""
    bounded = [figure for figure in figures if figure.limit and not figure.at_least and figure.limit > 1e-6]
    drawing = Drawing(figsize=(9.0, 0.19 * len(bounded) + 1.0), layout="constrained")
    axes = drawing.subplots()
    rows = np.arange(len(bounded))
    values = [figure.value / figure.limit for figure in bounded]
    errors = [2 * figure.error / figure.limit for figure in bounded]
    axes.errorbar(values, rows, xerr=errors, fmt="o", markersize=3, color=_OURS, linewidth=1)
    axes.axvline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_yticks(rows, [f"{figure.target} {figure.what}" for figure in bounded], fontsize=6)
    axes.set_xlabel("measured over target", fontsize=8)
    axes.invert_yaxis()
    return _svg(drawing, "Targets")


def evidence(canaries: int = 12) -> bytes:
    """The evidence against candidates of three kinds over their requests, a line for each canary at a weight of 5 %."""
    drawing = Drawing(figsize=(9.0, 3.2), layout="constrained")
    places = drawing.subplots(1, 3, sharey=True)
    for axes, (name, rate, most) in zip(
        places, (("equal", 0.01, 4_000), ("errors x5", 0.05, 600), ("dead", 1.0, 12)), strict=True
    ):
        for run in range(canaries):
            axes.plot(*_path(run, rate, most), color=_OURS, linewidth=0.8, alpha=0.7)
        axes.axhline(np.log10(1 / POLICY.alpha_rollback), color="black", linewidth=0.8, linestyle="--")
        axes.set_title(name, fontsize=9)
        axes.set_xlabel("requests of the candidate", fontsize=8)
        axes.set_ylim(-2.0, 3.0)
    places[0].set_ylabel("evidence against it (powers of ten)", fontsize=8)
    return _svg(drawing, "Evidence over requests")


def _path(run: int, rate: float, most: int) -> tuple[list[int], list[float]]:
    rng, state = np.random.default_rng([21, run]), Evidence.start(POLICY, (5, 100))
    seen, log_e = [0], [0.0]
    for number, (stable, candidate) in enumerate(requests(rng, 5, 0.01, rate), start=1):
        state = fold(POLICY, state, [Block(number, "simulated", 0, 0.0, 1.0, stable, candidate)])
        seen.append(state.candidate.requests)
        log_e.append(log_e_worse(POLICY, state) / np.log(10))
        if state.failed is not None or seen[-1] >= most:
            return seen, log_e
    raise AssertionError("requests never end")


def _svg(drawing: Drawing, title: str) -> bytes:
    drawn = io.BytesIO()
    drawing.savefig(drawn, format="svg", metadata={"Date": None, "Title": title})
    return drawn.getvalue()
