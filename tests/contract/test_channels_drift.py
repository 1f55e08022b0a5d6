"""What follows from drift: the version that was live before takes over through the same engine, where it may.

A real drift check over rows in memory; the rest as in `tests.contract.whole_controller`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pandas as pd
import pytest
from prometheus_client import CollectorRegistry

from monitoring.drift import Action, DriftPolicy
from monitoring.drift_gauges import DriftGauges
from pipelines.drift_here import DriftChecksHere
from pipelines.drift_job import DriftJob
from pipelines.drift_runs import DriftRuns
from pipelines.rollout import Goal, Origin, Phase
from registry_hooks.model_version import ModelVersion
from tests.contract.whole_controller import WholeController
from tests.fakes.drift import FakeDriftReporter, FakeReferenceData, FakeServedRows
from tests.fixtures.drift import customers

LIVE, RESTORE = Goal.LIVE, Goal.RESTORE
SUCCEEDED, FAILED = Phase.SUCCEEDED, Phase.FAILED
ROWS_APART = timedelta(seconds=0.1)
"""Two thousand rows are served well within the time that the version before is kept warm."""


def watched(world: WholeController, action: Action) -> None:
    """Version 2 is live after version 1, and watched for drift."""
    drift = DriftPolicy(reference_rows=1000, window_seconds=3600, action=action)
    world.policy = replace(world.policy, drift=drift)
    world.registers(3)
    world.goes_live(1)
    world.goes_live(2)


def check(world: WholeController, version: int) -> str:
    """The predictions of what is live change, and the check is run; what it found."""
    live = world.live()
    assert live is not None
    rows = pd.concat([customers(1000, 1), customers(1000, 2, lifted=0.2)], ignore_index=True)
    times = pd.date_range(live.since, periods=len(rows), freq=ROWS_APART)
    served = FakeServedRows({ModelVersion(world.model, version): rows.assign(timestamp=times)})
    world.now = max(world.now, live.since + len(rows) * ROWS_APART)
    gauges = DriftGauges(CollectorRegistry())
    checks = DriftChecksHere(world.registry, FakeReferenceData(), served, FakeDriftReporter())
    job = DriftJob(checks, world.registry, world.notifier, gauges)
    runs = DriftRuns(
        job=job,
        rollouts=world.store,
        inbox=world.store,
        history=world.store,
        registry=world.registry,
        policy=world.for_model,
        now=lambda: world.now,
        wake=world.controller.wake,
    )
    return runs.run(world.model).text.partition(":")[0]


def drifts(world: WholeController, version: int = 2) -> None:
    assert check(world, version) == "drifted"


def test_the_version_before_is_restored_and_the_registry_follows(either: WholeController) -> None:
    watched(either, Action.ROLLBACK)
    wished = either.wishes()
    drifts(either)
    either.rests()
    assert either.outcomes()[2:] == [(1, RESTORE, SUCCEEDED)]
    assert (either.rollout().intent.origin, either.rollout().intent.reason[:6]) == (Origin.DRIFT, "drift:")
    assert (either.holders(), either.served()) == ({1}, {1: 100})
    assert (either.tags(1)["state"], either.tags(2)["drift"]) == ("succeeded", "drifted")
    assert either.wishes() == wished


def test_there_is_nothing_to_go_back_to_a_second_time(either: WholeController) -> None:
    watched(either, Action.ROLLBACK)
    drifts(either)
    either.rests()
    drifts(either, version=1)
    either.rests()
    assert either.outcomes()[2:] == [(1, RESTORE, SUCCEEDED)]


def test_a_policy_that_only_alerts_leaves_the_traffic_alone(either: WholeController) -> None:
    watched(either, Action.ALERT)
    drifts(either)
    either.rests()
    assert len(either.outcomes()) == 2
    assert [alert.title for alert in either.alerts()] == ["predictions drifted"]
    assert (either.holders(), either.served()) == ({2}, {2: 100})


def test_a_rollout_under_way_is_not_disturbed(either: WholeController) -> None:
    watched(either, Action.ROLLBACK)
    either.weights.clear()
    either.enters(3)
    either.until(lambda: either.weights)
    drifts(either)
    either.rests()
    assert either.outcomes()[2:] == [(3, LIVE, SUCCEEDED)]
    assert (either.holders(), either.served()) == ({3}, {3: 100})


def _gate(world: WholeController) -> None:
    world.refused.add(1)


def _abort(world: WholeController) -> None:
    """As soon as the registry shows version 1 where the engine put it, somebody takes it out again."""
    world.target.behaviour = replace(world.target.behaviour, ready_after=10**6)
    world.until(lambda: world.store.active() and 1 in world.holders())
    world.idles()
    world.withdraws(1)


@pytest.mark.parametrize("ends", [_gate, _abort], ids=["gate fails", "withdrawn"])
def test_a_restore_that_fails_leaves_the_live_version_where_it_was(
    either: WholeController, ends: Callable[[WholeController], None]
) -> None:
    watched(either, Action.ROLLBACK)
    either.round(1000.0)
    either.idles()
    before = either.stage(1)
    drifts(either)
    ends(either)
    either.rests()
    assert either.outcomes()[2:] == [(1, RESTORE, FAILED)]
    assert (either.holders(), either.served()) == ({2}, {2: 100})
    assert either.stage(1) == (before if ends is _gate else None)
