"""The picture beside the record: the same bytes for the same rollout, with every number that it is to show."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from monitoring.analysis import Evidence, fold, fold_labels
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block, Losses
from monitoring.eprocess import Tally
from monitoring.interval import interval
from monitoring.judgement import judge
from monitoring.label_policy import LabelMode
from monitoring.labels import LabelBlock, Labelled
from monitoring.trail import METRICS
from pipelines.cli_charts import charts, sparks
from pipelines.evidence_picture import svg

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


@pytest.mark.parametrize(
    ("shares", "told"),
    [
        ([], "             0%"),
        ([0.5], "▄▄▄▄▄▄▄▄▄▄    50%"),
        ([-2.0, -1.0], "               0%"),
        ([0.0] * 9 + [0.4, 1.2], "        ▃█ proved"),
    ],
)
def test_a_line_of_bars_shows_how_evidence_came_about(shares: list[float], told: str) -> None:
    assert sparks(shares, "red").plain.split() == told.split()
    assert len(sparks(shares, "red").plain) == 17


def test_a_loss_and_labels_have_their_pictures() -> None:
    policy = AnalysisPolicy(weight_latency=0.2, weight_loss=0.1, weight_labels=0.1)
    losses = (Losses(90, 9.0), Losses(10, 1.0))
    told = [Block(n, "r", 9, 0.0, 1.0, ArmCount(90, 1), ArmCount(10, 0), losses=losses) for n in range(1, 50)]
    found = fold(policy, Evidence.start(policy, (5, 50, 100), labels=LabelMode.REPORT), told)
    found = fold_labels(policy, found, [LabelBlock(1, "r", Labelled(90, 80, 16.0), Labelled(10, 8, 4.0))])
    said, points = judge(policy, found, 100), found.trail.points()
    drawn = svg("churn 7: failed", said, points)
    for text in (b"loss: how bad answers are", b"441 of 4,410", b"labels: how bad answers turned out", b"16 of 80"):
        assert text in drawn
    place = METRICS.index("loss")
    assert points[-1].enough[place] != 0.0
    assert {reading.name for reading in said.metrics if reading.margin95} >= {"errors"}


def test_what_was_kept_before_a_metric_was_known_is_drawn_without_it() -> None:
    found = evidence(300)
    old = [replace(point, worse=point.worse[:4], enough=point.enough[:3]) for point in found.trail.points()]
    assert b"churn" in svg("churn", judge(POLICY, found, 100), old)
