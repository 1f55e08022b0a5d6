"""Servers in pods are asked how they are: those that start often, those that are ready in turn."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import httpx
import pytest

from serving.cluster_access import Ask
from serving.kubernetes_objects import CONTAINER, NAME
from serving.kubernetes_reading import Said
from serving.pod_health import PodHealth
from serving.pod_parts import Object
from tests.fixtures.gateway import until

SECONDS = 30.0
RATE = 2.0


class Pods:
    """`Access` to pods that answer what they are told to."""

    def __init__(self) -> None:
        self.answers: dict[str, tuple[int, dict[str, Any]]] = {}
        self.asked: list[str] = []

    def pod(self, name: str, address: str, port: int, headers: Mapping[str, str]) -> Ask:
        assert (address, port, dict(headers)) == (f"10.0.0.{name}", 8080, {})

        def ask(method: str, path: str) -> tuple[int, Mapping[str, str], bytes]:
            assert (method, path) == ("GET", "/health")
            self.asked.append(name)
            if name not in self.answers:
                raise OSError("nobody answers")
            status, told = self.answers[name]
            return status, {}, json.dumps(told).encode()

        return ask

    def client(self) -> httpx.Client:
        raise NotImplementedError


class Clock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def pods() -> Pods:
    return Pods()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def health(pods: Pods, clock: Clock) -> Iterator[PodHealth]:
    health = PodHealth(pods, RATE, clock)
    yield health
    health.close()


def pod(name: str, *, ready: bool = False, state: str = "running", revision: str = "churn-v7-1") -> Object:
    told = {"name": CONTAINER, "state": {state: {}}, "restartCount": 0}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    return {
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {NAME: revision}},
        "status": {"podIP": f"10.0.0.{name}", "containerStatuses": [told], "conditions": conditions},
    }


def starting(percent: int) -> tuple[int, dict[str, Any]]:
    told = {"revision": "churn-v7-1", "status": "starting", "detail": f"fetching: {percent} %", "fetched": percent}
    return 503, told


def degraded(warning: str) -> tuple[int, dict[str, Any]]:
    return 200, {"revision": "churn-v7-1", "status": "degraded", "warnings": ["no signature", warning]}


def asked_at_least(pods: Pods, count: int) -> bool:
    return len(pods.asked) >= count


def heard(health: PodHealth, clock: Clock, one: Object, wanted: Said) -> None:
    """What it says comes with a later look, and nothing is asked for it meanwhile."""
    until(lambda: health.look([one])[one["metadata"]["uid"]] == wanted, SECONDS)
    assert clock.now


def test_how_far_a_server_is_and_what_is_wrong_with_it_is_heard(pods: Pods, health: PodHealth, clock: Clock) -> None:
    pods.answers["1"] = starting(41)
    heard(health, clock, pod("1"), Said(at="fetching: 41 %", fetched=41))
    assert pods.asked == ["1"]
    clock.now += 1.0
    pods.answers["1"] = starting(42)
    heard(health, clock, pod("1"), Said(at="fetching: 42 %", fetched=42))
    assert health.look([pod("1", ready=True)]) == {"uid-1": Said()}
    pods.answers["1"] = degraded("is not compiled any more")
    clock.now += 30.0
    heard(health, clock, pod("1", ready=True), Said(ready=True, warning="is not compiled any more"))
    pods.answers["1"] = 200, {"revision": "churn-v7-1", "status": "ready", "warnings": ["no signature"]}
    clock.now += 30.0
    heard(health, clock, pod("1", ready=True), Said(ready=True))


@pytest.mark.parametrize(
    "answer",
    [
        None,
        (200, {"revision": "other-v1-2", "status": "degraded", "warnings": ["of another"]}),
        (503, {"revision": "other-v1-2", "detail": "of another", "fetched": 9}),
        (503, {"detail": "of nobody"}),
        (503, {"revision": "churn-v7-1", "fetched": "many"}),
        (200, {"revision": "churn-v7-1", "status": "degraded", "warnings": []}),
    ],
)
def test_one_that_says_nothing_of_this_revision_is_as_it_was(
    answer: tuple[int, dict[str, Any]] | None, pods: Pods, health: PodHealth, clock: Clock
) -> None:
    pods.answers["1"] = starting(41)
    heard(health, clock, pod("1"), Said(at="fetching: 41 %", fetched=41))
    del pods.answers["1"]
    if answer is not None:
        pods.answers["1"] = answer
    clock.now += 1.0
    health.look([pod("1")])
    until(lambda: pods.asked == ["1", "1"], SECONDS)
    clock.now += 1.0
    until(lambda: health.look([pod("1")]) and len(pods.asked) == 3, SECONDS)  # the second answer was taken in
    assert health.look([pod("1")]) == {"uid-1": Said(at="fetching: 41 %", fetched=41)}


@pytest.mark.parametrize("state", ["waiting", "terminated"])
def test_only_a_server_that_runs_is_asked(state: str, pods: Pods, health: PodHealth, clock: Clock) -> None:
    ending = pod("2")
    ending["metadata"]["deletionTimestamp"] = "now"
    for _ in range(3):
        assert health.look([pod("1", state=state), ending]) == {}
        clock.now += 60.0
    assert pods.asked == []


def test_a_thousand_that_are_ready_are_asked_in_turn_and_no_faster_than_allowed(
    pods: Pods, health: PodHealth, clock: Clock
) -> None:
    many = [pod(str(number), ready=True) for number in range(1000)]
    for one in many:
        pods.answers[one["metadata"]["name"]] = degraded("warned")
    looks, step = 100, 0.5
    for look in range(1, looks + 1):
        health.look(many)
        expected = int(1 + (look - 1) * step * RATE)
        until(partial(asked_at_least, pods, expected), SECONDS)
        clock.now += step
    assert len(pods.asked) <= 1 + looks * step * RATE
    assert len(set(pods.asked)) == len(pods.asked)


def test_one_that_starts_does_not_wait_for_those_that_are_ready(pods: Pods, health: PodHealth, clock: Clock) -> None:
    many = [pod(str(number), ready=True) for number in range(100)]
    health.look(many)
    pods.answers["new"] = starting(1)
    until(lambda: health.look([*many, pod("new")])["uid-new"] == Said(at="fetching: 1 %", fetched=1), SECONDS)
    assert pods.asked.count("new") == 1


def test_a_server_that_was_started_again_is_heard_anew(pods: Pods, health: PodHealth, clock: Clock) -> None:
    pods.answers["1"] = starting(80)
    heard(health, clock, pod("1"), Said(at="fetching: 80 %", fetched=80))
    assert health.look([pod("1", state="terminated")]) == {}
    del pods.answers["1"]
    assert health.look([pod("1")]) == {"uid-1": Said()}
