"""What is live and under way, as Prometheus reads it."""

from __future__ import annotations

from datetime import timedelta

from prometheus_client import CollectorRegistry, generate_latest

from pipelines.live import Live
from pipelines.rollout import Phase
from pipelines.rollout_gauges import RolloutGauges
from registry_hooks.model_version import Channel
from tests.fakes.store import FakeStore
from tests.unit.test_rollout import NOW, STABLE, rollout

PRODUCTION = Channel.parse("Production")


def told(store: FakeStore, *, leads: bool = True) -> dict[str, float]:
    """Every series with its value."""
    registry = CollectorRegistry()
    RolloutGauges(store, lambda: leads, lambda: NOW + timedelta(seconds=90), registry)
    lines = [line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def test_rollouts_tell_their_phase_weight_and_time_and_models_what_is_live() -> None:
    store = FakeStore()
    store.keep(Live("churn", PRODUCTION, STABLE, NOW))
    store.save(rollout(Phase.PROGRESSING, step=1))
    of = '{model="churn",phase="progressing",version="7"}'
    assert told(store) == {
        "promote_leads": 1.0,
        'promote_live_version{model="churn"}': 6.0,
        'promote_live_since_seconds{model="churn"}': NOW.timestamp(),
        f"promote_rollout{of}": 1.0,
        f"promote_rollout_weight{of}": 50.0,
        f"promote_rollout_phase_seconds{of}": 90.0,
    }


def test_a_retired_model_has_no_live_version() -> None:
    store = FakeStore()
    store.keep(Live("churn", PRODUCTION, None, NOW))
    assert not any("promote_live_version{" in line for line in told(store))


def test_without_a_store_there_is_nothing_but_who_leads() -> None:
    store = FakeStore()
    store.broken = True
    assert told(store, leads=False) == {"promote_leads": 0.0}
