"""What `kubectl` shows of revisions: their phase and weight, and every decision as an event of its own."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import kubernetes_validate
import pytest

from pipelines.cluster_showing import PHASE, WEIGHT, event_object, shown
from pipelines.rollout import Event, Phase
from serving.kubernetes_objects import ClusterSettings, deployment
from serving.pod_parts import Object
from tests.fixtures.kubernetes_schemas import Check
from tests.unit.test_rollout import CANDIDATE, STABLE, rollout

AT = datetime(2026, 1, 1, 12, tzinfo=UTC)
TOLD = Event("churn", AT, "phase", "progressing: 5 %", 7, "rollout-1", "somebody@example.org")


def place() -> Object:
    made = deployment(STABLE, ClusterSettings("live", "live"))
    return {**made, "metadata": {**made["metadata"], "uid": "11111111-0000-0000-0000-000000000000"}}


@pytest.mark.parametrize(
    ("phase", "step", "labels"),
    [
        (Phase.STARTING, 0, ("stable", "100", "starting", "0")),
        (Phase.PROGRESSING, 1, ("stable", "50", "progressing", "50")),
        (Phase.ROLLING_BACK, 1, ("stable", "100", "rolling_back", "0")),
        (Phase.PROMOTING, 3, ("stable", "0", "promoting", "100")),
    ],
)
def test_revisions_of_a_rollout_show_its_phase_and_their_shares(
    phase: Phase, step: int, labels: tuple[str, ...]
) -> None:
    found = shown([rollout(phase, step=step)], [STABLE.id])
    stable, candidate = found[STABLE.id], found[CANDIDATE.id]
    assert (stable[PHASE], stable[WEIGHT], candidate[PHASE], candidate[WEIGHT]) == labels


def test_what_is_live_has_everything() -> None:
    assert shown([], [STABLE.id]) == {STABLE.id: {PHASE: "stable", WEIGHT: "100"}}


def test_an_event_is_one_that_kubernetes_takes_and_says_who_and_what() -> None:
    made = event_object(TOLD, place())
    for version in ("1.25", "1.37"):
        kubernetes_validate.validate(made, version, strict=True)
    assert made["involvedObject"]["uid"] == place()["metadata"]["uid"]
    assert made["message"] == "somebody@example.org: progressing: 5 %"
    assert (made["type"], made["firstTimestamp"]) == ("Normal", "2026-01-01T12:00:00Z")
    assert event_object(replace(TOLD, kind="alert"), place())["type"] == "Warning"


def test_kubernetes_1_24_takes_an_event(kubernetes_1_24: Check) -> None:
    kubernetes_1_24([event_object(TOLD, place())])


def test_the_same_event_is_the_same_object_and_another_one_is_not() -> None:
    name = event_object(TOLD, place())["metadata"]["name"]
    assert event_object(replace(TOLD), place())["metadata"]["name"] == name
    for other in (replace(TOLD, text="another"), replace(TOLD, at=AT + timedelta(microseconds=1))):
        assert event_object(other, place())["metadata"]["name"] != name


def test_a_long_message_is_cut_to_what_a_cluster_takes() -> None:
    assert len(event_object(replace(TOLD, text="why " * 1000), place())["message"]) <= 1024
