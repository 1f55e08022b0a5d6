"""The picture beside the record: the same bytes for the same rollout, with every number that it is to show."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from monitoring.analysis import Evidence, fold
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block
from monitoring.eprocess import Tally
from monitoring.judgement import judge
from pipelines.cli_charts import charts
from pipelines.evidence_picture import interval, svg

POLICY = AnalysisPolicy()


def evidence(blocks: int) -> Evidence:
    told = [Block(n, "r", 9, 0.0, 1.0, ArmCount(90, 1), ArmCount(10, 0)) for n in range(1, blocks + 1)]
    return fold(POLICY, Evidence.start(POLICY, (5, 50, 100)), told)


def test_the_same_rollout_gives_the_same_picture_with_its_title() -> None:
    found = evidence(300)
    drawn = svg("churn 7: failed", judge(POLICY, found, 100), found.trail.points())
    assert drawn == svg("churn 7: failed", judge(POLICY, found, 100), found.trail.points())
    assert ElementTree.fromstring(drawn).tag.endswith("svg")
    for text in (b"churn 7: failed", b"errors", b"refusals", b"latency", b"300 of 27,000", b"0 of 3,000"):
        assert text in drawn


def test_the_trail_is_short_however_long_the_rollout() -> None:
    points = evidence(3_000).trail.points()
    assert 20 < len(points) < 60
    requests = [point.requests for point in points]
    assert requests == sorted(requests)
    assert (requests[0], requests[-1]) == (10, 30_000)


@pytest.mark.parametrize(
    ("bad", "requests", "expected"),
    [
        (0, 0, (0.0, 0.0, 1.0)),
        (0, 100, (0.0, 0.0, 0.0370)),
        (100, 100, (0.9630, 1.0, 1.0)),
        (10, 100, (0.055, 0.1, 0.174)),
    ],
)
def test_intervals(bad: int, requests: int, expected: tuple[float, float, float]) -> None:
    assert interval(Tally(requests, bad)) == pytest.approx(expected, abs=6e-4)


def test_the_terminal_shows_a_chart_once_there_is_something_to_draw() -> None:
    moments = [{"requests": 10 * n, "worse": -0.1 * n, "enough": {"errors": 0.3 * n}} for n in range(5)]
    assert [*charts(moments[:2])] == []
    (chart,) = charts(moments)
    for text in ("worse", "good enough for all traffic", "proved", "requests of the candidate"):
        assert text in chart.plain
