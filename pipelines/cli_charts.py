"""How the evidence of a rollout came about, drawn in the terminal.

All metrics together are two curves, each by itself is a line of bars. All are shares of what is needed, so what is at
the top is proved.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import plotext
from rich.text import Text

from pipelines.client import Json

_WIDTH, _HEIGHT = 72, 9
_LEAST = 3
"""Moments without which there is nothing to draw."""
_FLOOR, _CEILING = -0.5, 1.15


_BARS = " ▁▂▃▄▅▆▇█"
_SPARKS = 10


def sparks(shares: Sequence[float], style: str) -> Text:
    """Evidence over time as shares of what is needed, and how far it is now."""
    some = [shares[round(place * (len(shares) - 1) / _SPARKS)] for place in range(_SPARKS + 1)] if shares else []
    bars = "".join(_BARS[round((len(_BARS) - 1) * min(1.0, max(0.0, share)))] for share in some[1:])
    now = shares[-1] if shares else 0.0
    return Text.assemble((bars.ljust(_SPARKS), style), " proved" if now >= 1 else f" {max(0.0, now):6.0%}")


def charts(trail: Sequence[Json]) -> Iterator[Text]:
    """One chart, where there is enough to draw."""
    if len(trail) >= _LEAST:
        yield Text.from_ansi(_chart(trail))


def _chart(trail: Sequence[Json]) -> str:
    requests = [moment["requests"] for moment in trail]
    plotext.clear_figure()
    plotext.theme("clear")
    plotext.plotsize(_WIDTH, _HEIGHT)
    worse = [_within(moment["worse"]) for moment in trail]
    enough = [_within(min(moment["enough"].values(), default=0.0)) for moment in trail]
    plotext.plot(requests, worse, color="red", marker="braille", label="worse")
    plotext.plot(requests, enough, color="green", marker="braille", label="good enough for all traffic")
    plotext.hline(1.0)
    plotext.ylim(_FLOOR, _CEILING)
    plotext.yticks([0.0, 1.0], ["none", "proved"])
    plotext.xlabel("requests of the candidate")
    return str(plotext.build())


def _within(share: float) -> float:
    return min(_CEILING, max(_FLOOR, share))
