"""The evidence of a rollout as a picture beside its record: how it came about, and how often both revisions were bad.

The same rollout gives the same bytes, as its record does. Whiskers are 95 % intervals of each share by itself, for the
eye; what was decided rests on the curves.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from monitoring.interval import interval
from monitoring.judgement import Judgement, Reading
from monitoring.trail import METRICS, Point

mpl.rcParams["svg.hashsalt"] = "mlflow-promote"

_WORSE, _ENOUGH, _STABLE, _CANDIDATE = "#b2182b", "#1b7837", "#4d4d4d", "#2166ac"
_FLOOR, _CEILING = -0.6, 1.25
_TITLES = {
    "errors": "errors: requests that failed",
    "refusals": "refusals: requests answered 4xx",
    "latency": "latency: requests beyond the usual 95 %",
    "loss": "loss: how bad answers are by their own word",
    "labels": "labels: how bad answers turned out to be",
}
"""Metrics that have a share of bad requests, or a mean loss."""


def svg(title: str, said: Judgement, trail: Sequence[Point]) -> bytes:
    """One row per metric: its evidence over the candidate's requests, and both arms' shares."""
    readings = [reading for reading in said.metrics if reading.name in _TITLES]
    figure = Figure(figsize=(9.0, 2.4 * len(readings) + 0.6), layout="constrained")
    figure.suptitle(title, fontsize=11)
    for row, reading in enumerate(readings):
        curve = figure.add_subplot(len(readings), 3, (3 * row + 1, 3 * row + 2))
        _evidence(curve, reading.name, trail)
        _shares(figure.add_subplot(len(readings), 3, 3 * row + 3), reading)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="svg", metadata={"Date": None, "Title": title})
    return drawn.getvalue()


def _evidence(axes: Axes, metric: str, trail: Sequence[Point]) -> None:
    place = METRICS.index(metric)
    known = [point for point in trail if len(point.worse) > place]
    requests = [point.requests for point in known]
    axes.plot(requests, [_within(point.worse[place]) for point in known], color=_WORSE, label="worse")
    axes.plot(requests, [_within(point.enough[place] or 0.0) for point in known], color=_ENOUGH, label="good enough")
    axes.axhline(1.0, color="black", linewidth=0.8, linestyle="--")
    axes.set_ylim(_FLOOR, _CEILING)
    axes.set_yticks([0.0, 1.0], ["none", "proved"])
    axes.set_title(_TITLES[metric], fontsize=9, loc="left")
    axes.set_xlabel("requests of the candidate", fontsize=8)
    axes.legend(fontsize=7, loc="lower right", frameon=False)


def _shares(axes: Axes, reading: Reading) -> None:
    arms = (("stable", reading.stable, _STABLE), ("candidate", reading.candidate, _CANDIDATE))
    for place, (_, arm, colour) in enumerate(arms):
        low, middle, high = interval(arm)
        reach = [[100 * (middle - low)], [100 * (high - middle)]]
        axes.errorbar([place], [100 * middle], reach, fmt="o", color=colour, capsize=4)
    axes.set_xticks([0, 1], [f"{name}\n{arm.errors:,.0f} of {arm.requests:,.0f}" for name, arm, _ in arms], fontsize=8)
    axes.set_xlim(-0.6, 1.6)
    axes.set_ylim(bottom=0.0)
    axes.set_ylabel("%", fontsize=8)


def _within(share: float) -> float:
    return min(_CEILING, max(_FLOOR, share))
