"""A rollout while the API server conflicts, wants no requests, fails, and drops its watches, by a faulty way to it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.rollout import Phase
from serving.cluster import CONFIG_MAPS, Cluster
from serving.cluster_access import Outside
from serving.cluster_gateway import GatewayPods
from serving.cluster_tables import ConfigMapTables
from serving.cluster_view import View, Watched
from serving.envoy_router import EnvoyRouter
from serving.kubernetes import KubernetesTarget
from serving.revision import Weights
from tests.contract.cluster_rollouts import Rollouts, everything, steady
from tests.fixtures.cluster import LONG, ClusterFront, ClusterInstallation
from tests.fixtures.faulty import BROKEN, BUSY, CONFLICT, Fault, FaultyWay, faulty_way

pytestmark = LONG
WATCHES = 4
"""Deployments, pods, warnings, and the gateway's tables."""


@dataclass(frozen=True)
class Disturbed:
    """A controller whose every request goes the faulty way, to the API server and by it to the gateway."""

    way: FaultyWay
    rollouts: Rollouts
    undisturbed: ClusterInstallation


@pytest.fixture
def there(
    cluster_installation: ClusterInstallation, cluster_front: ClusterFront, tmp_path: Path
) -> Iterator[Disturbed]:
    real, front = cluster_installation, cluster_front
    before = steady(real.cluster, real.settings.selector)
    with faulty_way(real.connection) as way, closing(Cluster(way.connection, real.settings.namespace)) as cluster:
        view = View(cluster, real.settings.selector)
        tables = Watched(cluster, CONFIG_MAPS, labelSelector=real.settings.selector)
        pods = GatewayPods(view, Outside(cluster), lambda: front.gateway.key)
        written = ConfigMapTables(cluster, tables, front.objects.tables, pods.all)
        router = EnvoyRouter(written, front.gateway.settings, pods.admins, 30.0, silent_are_gone=False)

        def target() -> KubernetesTarget:
            return KubernetesTarget(tmp_path, cluster, view, real.settings, real.docker.engine.in_registry)

        rollouts = Rollouts(tmp_path, real.image("moody"), target, router)
        yield Disturbed(way, rollouts, real)
        way.mend()
        view.close()
        tables.close()
    target_left, router_left = real.target(), front.router()
    router_left.remove(rollouts.model)
    for revision in target_left.status():
        target_left.stop(revision)
    rollouts.until(lambda: everything(real.cluster, real.settings.selector) == before)


@pytest.mark.parametrize("fault", [CONFLICT, BUSY, BROKEN], ids=["conflict", "busy", "broken"])
def test_every_fourth_request_is_refused_and_watches_are_dropped_in_each_phase(there: Disturbed, fault: Fault) -> None:
    way, rollouts = there.way, there.rollouts
    live = rollouts.goes_live()
    # when every fourth request is refused, and all watches are dropped as soon as the rollout is in its next phase
    way.disturb(fault, share=0.25)
    version, seen, dropped = rollouts.enters(), set(), 0
    while (phase := rollouts.phase_of(version)) not in (Phase.SUCCEEDED, Phase.FAILED):
        if phase not in seen:
            seen.add(phase)
            dropped += way.drop()
        rollouts.until(lambda: rollouts.phase_of(version) is not phase)
    # then it goes live all the same, and the former one is gone
    rollouts.ends(version, Phase.SUCCEEDED)
    way.mend()
    rollouts.until(
        lambda: [status.revision.version.version for status in rollouts.target.status().values()] == [version]
    )
    weights = rollouts.router.get_weights()[rollouts.model].weights
    assert weights == Weights.all_to(rollouts.stable)
    assert live != version
    assert dropped >= WATCHES
    assert way.faults(fault.status)
    if fault is BUSY:
        assert way.hurried(1.0) <= WATCHES + 1, "it was asked on and on, although it wants to be left alone"


def test_while_nothing_can_be_written_each_round_tries_once_and_no_more(there: Disturbed) -> None:
    way, rollouts = there.way, there.rollouts
    rollouts.goes_live()
    # when whatever would change something fails, while a candidate is to be started
    way.disturb(BROKEN, only=("PATCH", "DELETE"))
    version = rollouts.enters()
    rollouts.reaches(version, Phase.STARTING)
    before, rounds = len(way.asked), 10
    for _ in range(rounds):
        rollouts.round()
    # then a round costs what it takes to see and one attempt, and the rollout waits
    changes = [one for one in way.asked[before:] if one.method in ("PATCH", "DELETE")]
    assert 0 < len(changes) <= rounds
    assert rollouts.phase_of(version) is Phase.STARTING
    # and once it can be written again it goes on
    way.mend()
    rollouts.ends(version, Phase.SUCCEEDED)
