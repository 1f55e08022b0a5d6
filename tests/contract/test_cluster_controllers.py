"""Controllers that are lost in every phase of a rollout, with all that they knew: the next one begins with the store.

That a controller may be killed at any line is shown on this machine (`tests.e2e.test_controllers`); here it is what the
next one makes of a cluster new to it.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.rollout import Phase
from serving.cluster_view import View
from serving.kubernetes import KubernetesTarget
from tests.contract.cluster_rollouts import SECONDS, Rollouts, everything, steady
from tests.fixtures.cluster import LONG, ClusterInstallation
from tests.fixtures.gateway import until

pytestmark = LONG
FINAL = (Phase.SUCCEEDED, Phase.FAILED)


@pytest.fixture
def rollouts(cluster_installation: ClusterInstallation, tmp_path: Path) -> Iterator[Rollouts]:
    """With a live version, and nothing left afterwards."""
    there = cluster_installation
    before, views = steady(there.cluster, there.settings.selector), list[View]()

    def anew() -> KubernetesTarget:
        for view in views:
            view.close()
        views.append(View(there.cluster, there.settings.selector))
        holds = there.docker.engine.in_registry
        return KubernetesTarget(tmp_path, there.cluster, views[-1], there.settings, holds)

    rollouts = Rollouts(tmp_path, there.image("moody"), anew)
    rollouts.goes_live()
    yield rollouts
    for revision in rollouts.target.status():
        rollouts.target.stop(revision)
    until(lambda: everything(there.cluster, there.settings.selector) == before, SECONDS)
    views[-1].close()


def lost_in_every_phase(rollouts: Rollouts, version: int) -> set[Phase]:
    """The phases in which a controller was lost until the rollout was over."""
    lost: set[Phase] = set()

    def moved_on() -> bool:
        return (phase := rollouts.phase_of(version)) is not None and phase not in lost

    while not lost & {*FINAL}:
        rollouts.until(moved_on)
        phase = rollouts.phase_of(version)
        assert phase is not None
        lost.add(phase)
        rollouts.start()
    return lost


def test_a_rollout_ends_as_it_would_have_and_leaves_one_revision(rollouts: Rollouts) -> None:
    version = rollouts.enters()
    lost = lost_in_every_phase(rollouts, version)
    rollouts.ends(version, Phase.SUCCEEDED)
    assert lost >= {Phase.STARTING, Phase.PROVING, Phase.PROGRESSING, Phase.BAKING, Phase.PROMOTING}
    assert rollouts.stable.version.version == version
    rollouts.until(lambda: list(rollouts.target.status()) == [rollouts.stable.id])


def test_one_that_is_taken_back_is_so_by_the_next_one_too(rollouts: Rollouts) -> None:
    stable = rollouts.stable
    version = rollouts.enters(environment=(("MOOD", "broken"),))
    lost = lost_in_every_phase(rollouts, version)
    assert "crash-loops" in rollouts.ends(version, Phase.FAILED)
    assert lost >= {Phase.STARTING, Phase.ROLLING_BACK}
    assert rollouts.stable == stable
    rollouts.until(lambda: list(rollouts.target.status()) == [stable.id])
