"""What one line of the access log says."""

from __future__ import annotations

import json

import pytest

from monitoring.blocks import Arm, Record
from monitoring.log_line import Line, parse

PATIENCE = 1.0
ENDED: dict[str, object] = {
    "type": "UpstreamEnd",
    "start": "1000.250000",
    "ms": 500,
    "id": "r1",
    "model": "churn",
    "step": "team/ro/2",
    "candidate": "churn-v2",
    "cluster": "churn-v2",
    "host": "127.0.0.1:9",
    "code": 200,
    "flags": "-",
    "began": 90,
    "sent": 4,
    "answered": 120,
}
NOTHING = {"began": None, "sent": None, "answered": None, "code": 0}


def line(**changes: object) -> bytes:
    return json.dumps(ENDED | changes).encode()


def read(**changes: object) -> Line:
    found = parse(line(**changes), PATIENCE)
    assert found is not None
    return found


def test_a_request_that_starts_is_undecided() -> None:
    started = read(type="UpstreamPoolReady", ms=0, **NOTHING)
    assert started == Line(
        "UpstreamPoolReady", 1000.25, "churn", True, Record("r1", "team/ro", 2, Arm.CANDIDATE, 1000.25)
    )


def test_a_request_that_ended_is_decided() -> None:
    record = Record("r1", "team/ro", 2, Arm.CANDIDATE, 1000.25, 1000.75)
    assert read() == Line("UpstreamEnd", 1000.75, "churn", False, record)


@pytest.mark.parametrize(
    ("changes", "error", "abandoned"),
    [
        ({}, False, False),
        ({"code": 404}, True, False),
        ({"code": 500}, True, False),
        ({"code": 599}, True, False),
        ({**NOTHING, "flags": "UF"}, True, False),
        ({"answered": None, "code": 0, "flags": "UC"}, True, False),
        ({"answered": None, "flags": "UPE"}, True, False),
        ({**NOTHING, "flags": "UO"}, True, False),
        ({"answered": None, "code": 0, "ms": 999}, False, True),
        ({"answered": None, "code": 0, "ms": 1000}, True, False),
        ({"answered": None, "code": 200, "ms": 30000}, True, False),
        ({"answered": None, "code": 0, "sent": None, "ms": 30000}, False, True),
        ({**NOTHING, "ms": 400}, False, True),
        ({**NOTHING, "ms": 1500}, True, False),
        ({**NOTHING, "type": "DownstreamEnd", "code": 503, "flags": "UH"}, True, False),
    ],
    ids=[
        "answered",
        "refused",
        "500",
        "599",
        "refused",
        "reset",
        "cut in mid-answer",
        "too many waiting",
        "client left soon",
        "client waited long",
        "timed out in mid-answer",
        "client never sent it all",
        "left without a connection",
        "waited for a connection",
        "no host",
    ],
)
def test_how_a_request_ended(changes: dict[str, object], error: bool, abandoned: bool) -> None:
    record = read(**changes).record
    assert record is not None
    assert (record.error, record.abandoned) == (error, abandoned)


@pytest.mark.parametrize(
    ("cluster", "candidate", "arm"),
    [("churn-v2", "churn-v2", Arm.CANDIDATE), ("churn-v1", "churn-v2", Arm.STABLE), ("churn-v1", "", Arm.STABLE)],
)
def test_the_arm_is_the_candidates_where_it_served(cluster: str, candidate: str, arm: Arm) -> None:
    record = read(cluster=cluster, candidate=candidate).record
    assert record is not None
    assert record.arm is arm


def test_requests_outside_of_rollouts_count_for_the_rate_alone() -> None:
    assert read(step="").record is None
    assert [read(step="", **NOTHING, flags="UF").first, read(step="").first] == [True, False]


@pytest.mark.parametrize("changes", [{"model": None, "step": None}, {"cluster": None, "flags": "NC"}])
def test_lines_about_nothing_of_ours_are_passed_over(changes: dict[str, object]) -> None:
    assert parse(line(**changes), PATIENCE) is None


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b"\xff",
        b"[]",
        b"null",
        b"{}",
        line(step="x"),
        line(step="ro/x"),
        line(ms=None),
        line(start="then"),
        line()[:-9],
    ],
)
def test_garbled_lines_are_refused(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".*"):
        parse(text, PATIENCE)
