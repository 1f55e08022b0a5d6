"""The gates before traffic, on a registry and on model servers that really run."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from pipelines.approving import Approvals
from pipelines.gates import StandardGates
from pipelines.replaying import Replays
from pipelines.rollout import Goal, Intent, Origin, Phase, Rollout, RolloutPolicy
from registry_hooks.model_version import Channel, ModelVersion
from serving.local import LocalTarget
from serving.revision import RevisionStatus
from tests.fakes.registry import FakeRegistry
from tests.fakes.store import FakeStore
from tests.fixtures.gateway import until
from tests.fixtures.revisions import START_SECONDS, LocalInstallation, end_revisions

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def rollout(model: str, phase: Phase, version: int = 1, *, require_signature: bool = False) -> Rollout:
    intent = Intent("i", Goal.LIVE, Channel.parse("Production"), model, version, Origin.COMMAND, NOW)
    policy = RolloutPolicy(require_signature=require_signature)
    return Rollout("r", intent, policy, phase, NOW, NOW, stable=None)


@pytest.fixture(scope="module")
def candidates(local_installation: LocalInstallation) -> Iterator[dict[str, RevisionStatus]]:
    """Ready revisions of ``churn``, which has a signature, and ``bare``, which has none."""
    target = LocalTarget(local_installation.home, local_installation.log_url)
    revisions = {model: local_installation.revision(model) for model in ("churn", "bare")}
    for revision in revisions.values():
        target.start(revision)
    deadline = time.monotonic() + START_SECONDS
    while not all((status := target.status()).get(r.id) and status[r.id].ready for r in revisions.values()):
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    yield {model: status[revision.id] for model, revision in revisions.items()}
    end_revisions(local_installation.home)


@pytest.fixture
def registry() -> FakeRegistry:
    return FakeRegistry()


@pytest.fixture
def gates(registry: FakeRegistry, tmp_path: Path) -> Iterator[StandardGates]:
    approvals = closing(Approvals(registry, FakeStore(), tmp_path))
    with httpx.Client() as client, closing(Replays("nowhere")) as replays, approvals as looks:
        yield StandardGates(registry, client, replays, looks)


def failed(gates: StandardGates, tried: Rollout, candidate: RevisionStatus | None = None) -> dict[str, str] | None:
    """Why, by the name of each gate that failed; None where the gates could not be run."""
    results = gates.run(tried, candidate, None)
    return None if results is None else {gate.name: gate.detail for gate in results if not gate.passed}


def test_a_version_has_to_be_registered(gates: StandardGates, registry: FakeRegistry) -> None:
    registry.register("churn")
    until(lambda: failed(gates, rollout("churn", Phase.CHECKING)) == {})
    assert "churn 2" in (failed(gates, rollout("churn", Phase.CHECKING, version=2)) or {})["registered"]


def test_a_registry_that_does_not_answer_is_no_failure(gates: StandardGates, registry: FakeRegistry) -> None:
    registry.broken = True
    assert failed(gates, rollout("churn", Phase.CHECKING)) is None


def test_a_candidate_that_answers_as_itself_passes(gates: StandardGates, candidates: dict[str, RevisionStatus]) -> None:
    strict = rollout("churn", Phase.PROVING, require_signature=True)
    assert failed(gates, strict, candidates["churn"]) == {}


def test_a_model_without_signature_passes_unless_the_policy_refuses_it(
    gates: StandardGates, candidates: dict[str, RevisionStatus]
) -> None:
    assert failed(gates, rollout("bare", Phase.PROVING), candidates["bare"]) == {}
    refused = failed(gates, rollout("bare", Phase.PROVING, require_signature=True), candidates["bare"])
    assert refused is not None
    assert "rollout.require_signature: false" in refused["signature"]


def test_another_version_at_the_address_is_found_out(
    gates: StandardGates, candidates: dict[str, RevisionStatus]
) -> None:
    assert set(failed(gates, rollout("churn", Phase.PROVING, version=9), candidates["churn"]) or ()) == {"identity"}


def test_a_candidate_that_does_not_answer_is_asked_again(
    gates: StandardGates, candidates: dict[str, RevisionStatus]
) -> None:
    revision = replace(candidates["churn"].revision, version=ModelVersion("churn", 1))
    gone = RevisionStatus(revision, candidates["churn"].state)
    assert failed(gates, rollout("churn", Phase.PROVING), gone) is None


def test_phases_without_gates_have_no_results(gates: StandardGates) -> None:
    assert failed(gates, rollout("churn", Phase.BUILDING)) is None
