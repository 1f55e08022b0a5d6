"""Who leads, as a Lease of a real cluster: one holder at a time, whatever clocks say."""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from kubernetes.client import Configuration

from pipelines.cluster_lease import LEASES, ClusterLease
from serving.cluster import Cluster
from serving.pod_parts import Object
from tests.fixtures.cluster import namespace

pytestmark = [pytest.mark.kubernetes]


@pytest.fixture(scope="module")
def space(cluster_connection: Configuration) -> Iterator[str]:
    with namespace(cluster_connection) as name:
        yield name


@dataclass(frozen=True)
class Installation:
    """Of a test's own, without a lease yet."""

    cluster: Cluster
    name: str

    def lease(self) -> ClusterLease:
        """As one controller sees it."""
        return ClusterLease(self.cluster, self.name)

    def kept(self) -> Object:
        return self.cluster.get(LEASES, f"{self.name}-controller") or {}


@pytest.fixture
def live(cluster_connection: Configuration, space: str) -> Iterator[Installation]:
    with closing(Cluster(cluster_connection, space)) as cluster:
        yield Installation(cluster, f"live-{uuid.uuid4().hex[:8]}")


def test_it_has_one_holder(live: Installation) -> None:
    first, second = live.lease(), live.lease()
    assert first.holder() is None
    assert first.acquire("first", 60)
    assert not second.acquire("second", 60)
    assert first.acquire("first", 60)
    held = second.holder()
    assert held is not None
    assert held[0] == "first"
    assert 30 < (held[1] - datetime.now(UTC)).total_seconds() < 90


def test_a_released_one_is_free_and_only_its_holder_releases_it(live: Installation) -> None:
    first, second = live.lease(), live.lease()
    first.acquire("first", 60)
    second.release("second")
    assert not second.acquire("second", 60)
    first.release("first")
    assert first.holder() is None
    assert second.acquire("second", 60)
    assert not first.acquire("first", 60)


def test_one_that_is_not_renewed_is_taken_over_and_no_sooner(live: Installation) -> None:
    second = live.lease()
    assert live.lease().acquire("first", 2)
    seen = time.monotonic()
    while not second.acquire("second", 60):
        assert time.monotonic() < seen + 30
        time.sleep(0.1)
    assert time.monotonic() - seen >= 2


def test_one_that_is_renewed_is_not_taken_over(live: Installation) -> None:
    first, second = live.lease(), live.lease()
    until = time.monotonic() + 4
    while time.monotonic() < until:
        assert first.acquire("first", 2)
        assert not second.acquire("second", 2)
        time.sleep(0.1)


@pytest.mark.parametrize("minutes", [-5, 5])
def test_nobodys_clock_matters(live: Installation, minutes: int) -> None:
    """A holder whose clock is far off, as others see it."""
    assert live.lease().acquire("first", 3)
    at = (datetime.now(UTC) + timedelta(minutes=minutes)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    live.cluster.change(LEASES, f"{live.name}-controller", {"spec": {"renewTime": at}})
    second, seen = live.lease(), time.monotonic()
    assert not second.acquire("second", 60)
    while not second.acquire("second", 60):
        assert time.monotonic() < seen + 30
        time.sleep(0.1)
    assert time.monotonic() - seen >= 3


def test_one_of_many_takes_it(live: Installation) -> None:
    start = threading.Barrier(8)

    def race(name: int) -> bool:
        mine = live.lease()
        start.wait(20)
        return mine.acquire(f"holder {name}", 60)

    with ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(race, range(8))) == 1


def test_it_costs_few_questions_however_often_it_is_asked_for(live: Installation) -> None:
    first = live.lease()
    first.acquire("first", 60)
    version = live.kept()["metadata"]["resourceVersion"]
    for _ in range(50):
        assert first.acquire("first", 60)
    assert live.kept()["metadata"]["resourceVersion"] == version
