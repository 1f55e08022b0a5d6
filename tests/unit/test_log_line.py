"""What one line of the access log says."""

from __future__ import annotations

import json

import pytest

from monitoring.blocks import Arm
from monitoring.filling import Record
from monitoring.log_entry import Entry, entries, prediction
from monitoring.log_line import STARTED, is_first, is_shielding, outcome, record_of, revision_of, written_at

PATIENCE_MS = 1000.0
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


def read(**changes: object) -> Entry:
    found, garbled = entries(line(**changes))
    assert garbled == []
    return found[0]


def record(**changes: object) -> Record:
    return record_of(read(**changes), PATIENCE_MS)


def test_a_request_that_starts_is_undecided() -> None:
    started = {"type": "UpstreamPoolReady", "ms": 0, **NOTHING}
    assert record(**started) == Record("r1", "team/ro", 2, Arm.CANDIDATE, 1000.25)
    assert is_first(read(**started))


def test_a_request_that_ended_is_decided() -> None:
    ended = Record("r1", "team/ro", 2, Arm.CANDIDATE, 1000.25, 1000.75, latency_ms=500.0, host="127.0.0.1:9")
    assert record() == ended
    assert written_at(read()) == 1000.75
    assert not is_first(read())


def test_the_latency_is_what_the_revision_took_where_the_line_says() -> None:
    assert record(took=499_250).latency_ms == 499.25
    assert record(took=None).latency_ms == 500.0, "lines of an Envoy that was started before"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("[0.731]", (0.731,)),
        ('[1, "a", null, true]', (1.0, "a", None, True)),
        (None, None),
        ("-", None),
        ("[]", None),
        ("0.7", None),
        ("[[1]]", None),
        ("[1", None),
        (json.dumps([1] * 17), None),
    ],
)
def test_predictions_are_lists_of_values_or_nothing(text: str | None, values: object) -> None:
    assert prediction(text) == values
    assert record(prediction=text).prediction == values


@pytest.mark.parametrize(
    ("changes", "error", "abandoned"),
    [
        ({}, False, False),
        ({"code": 404}, False, False),
        ({"code": 413, "answered": None, "ms": 2000}, False, True),
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
        "refused by the model",
        "too large for the gateway",
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
    found = record(**changes)
    assert (found.error, found.abandoned) == (error, abandoned)
    assert outcome(read(**changes), PATIENCE_MS)[:2] == (error, abandoned)


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({"code": 400}, True),
        ({"code": 499}, True),
        ({"code": 399}, False),
        ({"code": 500}, False),
        ({"code": 413, "answered": None}, False),
        ({"code": 408, "answered": None, "sent": None}, False),
        ({"code": 422, "flags": "UPE", "answered": None}, False),
    ],
)
def test_a_request_is_refused_by_its_revision_alone(changes: dict[str, object], refused: bool) -> None:
    assert record(**changes).refused is refused


@pytest.mark.parametrize(
    ("cluster", "candidate", "arm"),
    [("churn-v2", "churn-v2", Arm.CANDIDATE), ("churn-v1", "churn-v2", Arm.STABLE), ("churn-v1", "", Arm.STABLE)],
)
def test_the_arm_is_the_candidates_where_it_served(cluster: str, candidate: str, arm: Arm) -> None:
    assert record(cluster=cluster, candidate=candidate).arm is arm


def test_a_request_without_a_connection_has_one_line_only() -> None:
    assert [is_first(read(**NOTHING, flags="UF")), is_first(read())] == [True, False]


@pytest.mark.parametrize(
    "text", [b"{", b"\xff", b"[]", b"null", b"{}", line(start="then"), line(ms="x"), line()[:-9], b'{"type": "x"}']
)
def test_garbled_lines_are_set_apart(text: bytes) -> None:
    found, garbled = entries(b"\n".join([line(), text, b"", line()]) + b"\n")
    assert (len(found), garbled) == (2, [text])


@pytest.mark.parametrize("changes", [{"step": "x"}, {"step": "ro/x"}, {"ms": None}, {"id": None}, {"step": ""}])
def test_lines_that_say_nothing_of_a_rollout_are_refused(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r".*"):
        record(**changes)


def test_fields_that_are_not_known_are_passed_over() -> None:
    assert record(bytes=17, anything={"a": [1]}) == record()


@pytest.mark.parametrize(
    ("revision", "named", "shielding"),
    [("churn-v2", "churn-v2", False), (None, "churn-v2", False), ("churn-v1", "churn-v1", True)],
)
def test_an_attempt_behind_a_shield_is_for_one_revision(revision: str | None, named: str, shielding: bool) -> None:
    entry = read(cluster="churn-v2~shielded", revision=revision)
    assert (revision_of(entry), is_shielding(entry)) == (named, shielding)
    assert record_of(entry, PATIENCE_MS).arm is Arm.CANDIDATE


@pytest.mark.parametrize(
    ("text", "value"), [("0.25", 0.25), ("0", 0.0), ("1", 1.0), (None, None), ("1.5", None), ("nan", None), ("x", None)]
)
def test_a_loss_is_a_number_from_0_to_1_or_nothing(text: str | None, value: float | None) -> None:
    assert record(loss=text).loss == value
    again = Record.read("team/ro", json.loads(json.dumps(record(loss=text).state())))
    assert again == record(loss=text)


def test_what_failed_has_no_loss() -> None:
    assert record(code=500, loss="0.25").loss is None
    assert record(code=400, loss="0.25").loss is None


@pytest.mark.parametrize("missing", [1, 2], ids=["entities", "losses"])
def test_a_record_that_was_kept_before_there_were(missing: int) -> None:
    assert Record.read("team/ro", record(loss=None).state()[:-missing]) == record()


def test_an_entity_is_kept_as_a_digest() -> None:
    for kind in (STARTED, "UpstreamEnd"):
        told = record(type=kind, entity="ada@example.org")
        assert told.entity
        assert "ada" not in json.dumps(told.state())
        assert Record.read("team/ro", json.loads(json.dumps(told.state()))) == told
