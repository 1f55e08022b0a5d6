"""What was approved is what is built: gate, record and build on a real MLflow server whose artifacts are changed."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from pipelines import approving
from pipelines.approving import Approvals
from pipelines.gates import StandardGates
from pipelines.replaying import Replays
from pipelines.rollout import GateResult, Goal, Intent, Origin, Phase, Rollout, RolloutPolicy
from pipelines.sql_store import SqlStore
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import Channel, ModelVersion
from serving.image import BuildState, ImageRequest, ImageStatus
from serving.local_image import LocalImageBuilder
from serving.revision import RevisionStatus
from serving.runtime.model_files import digest, listed
from tests.contract.mlflow_person import MlflowPerson
from tests.contract.whole_controller import WholeController
from tests.fakes.registry import FakeRegistry
from tests.fakes.store import FakeStore
from tests.fixtures.gateway import until
from tests.fixtures.registry import MlflowServer

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LIVE, PRE_LIVE = Channel.parse("Production"), Channel.parse("Staging")
SECONDS = 60.0


def rollout(version: ModelVersion, goal: Goal = Goal.LIVE, *, refuse_pickle: bool = False, name: str = "") -> Rollout:
    intent = Intent("i", goal, LIVE, version.model, version.version, Origin.COMMAND, NOW)
    policy = RolloutPolicy(refuse_pickle=refuse_pickle)
    return Rollout(name or uuid.uuid4().hex, intent, policy, Phase.CHECKING, NOW, NOW, stable=None)


class Stored:
    """A version in a real registry, and its files where the server keeps them."""

    def __init__(self, server: MlflowServer) -> None:
        person = MlflowPerson.at(server)
        run = person.run_with_model()
        self.version = person.version_of(f"churn-{uuid.uuid4().hex[:8]}", f"runs:/{run}/model", run)
        (self.folder,) = (server.log.parent / "artifacts").glob(f"**/{run}/artifacts/model")
        self.digest = digest(listed(self.folder))


@pytest.fixture
def stored(mlflow_server: MlflowServer) -> Stored:
    return Stored(mlflow_server)


@pytest.fixture
def registry(mlflow_server: MlflowServer) -> MlflowRegistry:
    return MlflowRegistry(mlflow_server.uri)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqlStore]:
    with closing(SqlStore(f"sqlite:///{tmp_path / 'store.db'}")) as opened:
        yield opened


@pytest.fixture
def gates(registry: MlflowRegistry, store: SqlStore, tmp_path: Path) -> Iterator[StandardGates]:
    approvals = closing(Approvals(registry, store, tmp_path / "approving"))
    with httpx.Client() as client, closing(Replays("nowhere")) as replays, approvals as looks:
        yield StandardGates(registry, client, replays, looks)


def results(gates: StandardGates, tried: Rollout) -> dict[str, GateResult]:
    found = until(lambda: gates.run(tried, None, None), SECONDS)
    return {gate.name: gate for gate in found or ()}


def test_files_are_recorded_when_a_version_is_first_seen(
    gates: StandardGates, store: SqlStore, stored: Stored, tmp_path: Path
) -> None:
    first = results(gates, rollout(stored.version))
    assert all(gate.passed for gate in first.values())
    assert list(first) == ["registered", "files", "pickle"]
    assert first["files"].data == {"sha256": stored.digest, "approved": stored.digest, "files": 2, "bytes": 14}
    recorded = store.approved(stored.version, f"runs:/{stored.folder.parts[-3]}/model")
    assert recorded is not None
    assert recorded.files == listed(stored.folder)
    assert results(gates, rollout(stored.version))["files"].detail == first["files"].detail
    assert list((tmp_path / "approving").iterdir()) == [], "what was downloaded is gone"


def hidden_bytecode(model: Path) -> None:
    (model / "code" / "__pycache__").mkdir(parents=True)
    (model / "code" / "__pycache__" / "prices.cpython-311.pyc").write_bytes(b"run without a look at the source")


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "content": (lambda model: (model / "data" / "weights.bin").write_bytes(b"\0\2"), "data/weights.bin has SHA-256"),
    "new": (lambda model: (model / "code.py").write_text("import os"), "code.py is new"),
    "missing": (lambda model: (model / "data" / "weights.bin").unlink(), "data/weights.bin is missing"),
    "bytecode": (hidden_bytecode, "code/__pycache__/prices.cpython-311.pyc is new"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_files_that_were_changed_after_that_stop_the_next_rollout(
    gates: StandardGates, stored: Stored, change: str
) -> None:
    assert results(gates, rollout(stored.version))["files"].passed
    alter, told = CHANGES[change]
    alter(stored.folder)
    now = digest(listed(stored.folder))
    for _ in range(2):
        refused = results(gates, rollout(stored.version))["files"]
        assert not refused.passed
        assert f"SHA-256 {now} now, {stored.digest} when they were first seen" in refused.detail
        assert f"the files of {stored.version} were changed" in refused.detail
        assert told in refused.detail


def test_files_that_were_put_back_pass_again(gates: StandardGates, stored: Stored) -> None:
    weights = stored.folder / "data" / "weights.bin"
    was = weights.read_bytes()
    results(gates, rollout(stored.version))
    weights.write_bytes(b"another")
    assert not results(gates, rollout(stored.version))["files"].passed
    weights.write_bytes(was)
    assert results(gates, rollout(stored.version))["files"].passed


def test_going_back_does_not_wait_for_a_download(gates: StandardGates, stored: Stored) -> None:
    back = rollout(stored.version, Goal.RESTORE)
    assert "first seen" in results(gates, back)["files"].detail
    stored.folder.rename(stored.folder.with_name("lost"))
    restored = results(gates, rollout(stored.version, Goal.RESTORE))["files"]
    assert (restored.passed, restored.data) == (True, {"sha256": stored.digest})
    assert "not downloaded again" in restored.detail
    assert not results(gates, rollout(stored.version))["files"].passed


def test_files_that_cannot_be_had_fail_the_gate(gates: StandardGates, registry: MlflowRegistry, stored: Stored) -> None:
    (stored.folder / "MLmodel").unlink()
    refused = results(gates, rollout(stored.version))["files"]
    assert not refused.passed
    assert "holds no MLmodel" in refused.detail


def test_a_registry_that_is_away_is_asked_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(approving, "_AGAIN_SECONDS", 0.05)
    registry, store = FakeRegistry(), FakeStore()
    tried = rollout(registry.register("churn"))
    store.broken = True
    with closing(Approvals(registry, store, tmp_path)) as approvals:
        assert approvals.results(tried, "here") is None
        told = until(lambda: approvals.progress(tried), SECONDS)
        until(lambda: "trying again: the store does not answer" in approvals.progress(tried), SECONDS)
        assert told
        assert approvals.busy(tried)
        store.broken = False
        found = until(lambda: approvals.results(tried, "here"), SECONDS)
        assert [gate.passed for gate in found or ()] == [True, True]
        assert approvals.progress(tried) == ""
        approvals.forget(tried)
        assert not approvals.busy(tried)


def test_closing_ends_a_look_that_waits(tmp_path: Path) -> None:
    registry, store = FakeRegistry(), FakeStore()
    tried = rollout(registry.register("churn"))
    registry.broken = True
    approvals = Approvals(registry, store, tmp_path)
    approvals.results(tried, "here")
    until(lambda: "trying again" in approvals.progress(tried), SECONDS)
    began = time.monotonic()
    approvals.close()
    assert time.monotonic() - began < 4.5


PICKLED = """
flavors:
  python_function: {loader_module: mlflow.sklearn, model_path: model.pkl}
  sklearn: {serialization_format: cloudpickle, pickled_model: model.pkl}
"""


def test_how_a_model_is_loaded_is_named_and_a_policy_refuses_pickles(gates: StandardGates, stored: Stored) -> None:
    (stored.folder / "MLmodel").write_text(PICKLED)
    named = results(gates, rollout(stored.version))["pickle"]
    assert named.passed
    assert named.detail == "sklearn by cloudpickle, which unpickles model.pkl"
    assert named.data == {"kind": "sklearn by cloudpickle", "unpickles": "model.pkl"}
    refused = results(gates, rollout(stored.version, refuse_pickle=True))["pickle"]
    assert not refused.passed
    assert refused.detail == (
        f"{stored.version} is loaded as sklearn by cloudpickle, which unpickles model.pkl; "
        "log it with serialization_format='skops', or set rollout.refuse_pickle: false in its policy"
    )


def test_a_policy_that_refuses_pickles_takes_what_is_none(gates: StandardGates, stored: Stored) -> None:
    assert results(gates, rollout(stored.version, refuse_pickle=True))["pickle"].passed


def built(registry: MlflowRegistry, home: Path, request: ImageRequest) -> ImageStatus:
    with closing(LocalImageBuilder(home, registry)) as builder:
        builder.build(request)
        until(lambda: builder.find(request).state is not BuildState.BUILDING, SECONDS)
        return builder.find(request)


def test_files_that_change_between_the_gate_and_the_build_are_not_built(
    gates: StandardGates, registry: MlflowRegistry, stored: Stored, tmp_path: Path
) -> None:
    approved = str(results(gates, rollout(stored.version))["files"].data["sha256"])
    request = ImageRequest(stored.version, "source", "server", approved)
    as_it_is = built(registry, tmp_path / "home", request)
    assert "not a model that MLflow can serve" in as_it_is.detail, "the files were taken; the model is none"
    (stored.folder / "data" / "weights.bin").write_bytes(b"\0\2")
    refused = built(registry, tmp_path / "other", request)
    assert refused.state is BuildState.FAILED
    now = digest(listed(stored.folder))
    assert f"the files of {stored.version} have SHA-256 {now}, those approved had {approved}" in refused.detail


class Gated(WholeController):
    """With the real gates before the build."""

    gates: StandardGates

    def run(
        self, rollout: Rollout, candidate: RevisionStatus | None, stable: RevisionStatus | None
    ) -> tuple[GateResult, ...] | None:
        if rollout.phase is not Phase.CHECKING:
            return super().run(rollout, candidate, stable)
        results = self.gates.run(rollout, candidate, stable)
        time.sleep(0.0 if results else 0.05)
        return results


def test_a_rollout_of_files_that_were_changed_after_approval_goes_back_and_says_both_digests(
    gates: StandardGates, mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    person = MlflowPerson.at(mlflow_server)
    story = Gated(tmp_path, person, lambda: MlflowRegistry(mlflow_server.uri), LIVE, PRE_LIVE)
    story.gates = gates
    story.registers(2)
    story.goes_live(1)
    story.moves(2, PRE_LIVE)
    story.rests()
    assert story.tags(2)["state"] == "ready"
    run = person.client.get_model_version(story.model, "2").run_id
    (folder,) = (mlflow_server.log.parent / "artifacts").glob(f"**/{run}/artifacts/model")
    approved = digest(listed(folder))
    assert story.builder.built[-1].files == approved
    (folder / "data" / "weights.bin").write_bytes(b"\0\2")
    story.enters(2)
    story.rests()
    assert story.phase_of(2) is Phase.FAILED
    now = digest(listed(folder))
    reason = story.rollout().reason
    assert reason.startswith(f"gate files: the files of {story.model} 2 were changed: SHA-256 {now} now, {approved} ")
    assert story.tags(2)["reason"] == reason[:500]
    assert story.served() == {1: 100}
    assert story.holders() == {1}
