"""What a cluster is made of goes away for a while in the middle of a rollout: traffic goes on, and so does the rollout.

How it goes away is for whoever has brought the cluster up: commands in variables, without which a test is skipped.
"""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pipelines.rollout import Phase
from serving.cluster import PODS
from serving.kubernetes_objects import NAME, name_of
from serving.revision import Weights
from tests.contract.cluster_rollouts import Rollouts, everything, steady, traffic
from tests.fixtures.cluster import LONG, ClusterFront, ClusterInstallation
from tests.fixtures.gateway import until

pytestmark = LONG
RESTART_API_SERVER = "RESTART_API_SERVER"
"""Ends the API server and starts it again."""
STOP_KUBELET, START_KUBELET = "STOP_KUBELET", "START_KUBELET"
"""They stop the kubelet of the only node, and have it go on."""
AWAY_SECONDS = 12.0
"""Less than it takes until a node counts as lost."""
PAYLOAD = b'{"dataframe_split": {"columns": ["mood", "value"], "data": [["fine", 1.5]]}}'


def named(*variables: str) -> pytest.MarkDecorator:
    missing = [one for one in variables if one not in os.environ]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)}: no such command is named")


def ordered(variable: str) -> None:
    subprocess.run(os.environ[variable], shell=True, check=True, timeout=240, stdout=subprocess.DEVNULL)


@dataclass(frozen=True)
class Served:
    """A live version behind the gateway of the cluster."""

    rollouts: Rollouts
    url: str
    cluster: ClusterInstallation


@pytest.fixture
def served(cluster_installation: ClusterInstallation, cluster_front: ClusterFront, tmp_path: Path) -> Iterator[Served]:
    there, router = cluster_installation, cluster_front.router()
    before = steady(there.cluster, there.settings.selector)
    rollouts = Rollouts(tmp_path, there.image("moody"), there.target, router)
    rollouts.goes_live()
    yield Served(rollouts, f"{cluster_front.gateway.url}/models/{rollouts.model}/invocations", there)
    router.remove(rollouts.model)
    for revision in rollouts.target.status():
        rollouts.target.stop(revision)
    until(lambda: everything(there.cluster, there.settings.selector) == before, 180)


def in_canary(rollouts: Rollouts) -> int:
    """A version with its first share of the traffic, which does not get more before a test says so."""
    rollouts.proof = False
    version = rollouts.enters()
    rollouts.reaches(version, Phase.PROGRESSING)
    rollouts.until(lambda: weights(rollouts).of(rollouts.candidate(version)) > 0)
    return version


def weights(rollouts: Rollouts) -> Weights:
    return rollouts.router.get_weights()[rollouts.model].weights


def goes_live_alone(served: Served, version: int) -> None:
    rollouts, there = served.rollouts, served.cluster
    rollouts.proof = True
    rollouts.ends(version, Phase.SUCCEEDED)
    assert rollouts.stable == rollouts.candidate(version)
    rollouts.until(lambda: len(rollouts.target.status()) == 1)
    left, _ = there.cluster.list(PODS, labelSelector=f"{there.settings.selector},{NAME}")
    assert [pod["metadata"]["labels"][NAME] for pod in left] == [name_of(rollouts.stable.id)]


@named(RESTART_API_SERVER)
def test_the_api_server_is_restarted_in_the_middle_of_a_rollout(served: Served) -> None:
    rollouts = served.rollouts
    version = in_canary(rollouts)
    # when the API server is lost and comes back, and the controller goes on meanwhile
    with traffic(served.url, PAYLOAD) as results:
        restarting = threading.Thread(target=ordered, args=(RESTART_API_SERVER,))
        restarting.start()
        rounds = 0
        while restarting.is_alive():
            rollouts.round()
            rounds += 1
        rollouts.until(lambda: rollouts.target.status()[rollouts.candidate(version).id].ready)
        # then nothing was decided, and the rollout goes on to its end
        assert rollouts.phase_of(version) is Phase.PROGRESSING
        goes_live_alone(served, version)
    assert rounds > 1
    assert sum(one.ok for one in results) > 0
    assert [one.failed for one in results if one.failed] == []


@named(STOP_KUBELET, START_KUBELET)
def test_the_kubelet_stands_still_in_the_middle_of_a_rollout(served: Served) -> None:
    rollouts = served.rollouts
    version, unfollowed = in_canary(rollouts), list[Phase | None]()

    def goes_on() -> None:
        """By a clock of its own: rounds wait for the kubelet, and after forty seconds its node counts as lost."""
        unfollowed.append(rollouts.phase_of(version))
        ordered(START_KUBELET)

    again = threading.Timer(AWAY_SECONDS, goes_on)
    ordered(STOP_KUBELET)
    try:
        again.start()
        # when the next weight is due while nobody tells the gateway's pods
        with traffic(served.url, PAYLOAD) as results:
            rollouts.proof = True
            while again.is_alive():
                rollouts.round()
            # then the rollout waits for them, and goes on to its end once they follow
            goes_live_alone(served, version)
    finally:
        again.join()
        ordered(START_KUBELET)
    assert unfollowed == [Phase.PROGRESSING]
    assert sum(one.ok for one in results) > 0
    assert [one.failed for one in results if one.failed] == []
