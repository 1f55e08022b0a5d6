"""What only containers can show: how they are confined, how they die, and that installations are apart."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry_hooks.model_version import ModelVersion
from serving.docker import DockerTarget
from serving.docker_engine import Container, Engine
from serving.revision import Revision, RevisionSettings, RevisionState, RevisionStatus, Weights
from serving.router import Route
from serving.target import TargetError
from tests.fixtures.engines import ENGINES, EngineInstallation, engine_installation
from tests.fixtures.gateway import free_port, until

pytestmark = pytest.mark.timeout(900)
"""The first image of all takes minutes on a busy machine."""
READY_SECONDS = 120.0
HOG = (("MOOD", "fine"),)


@pytest.fixture(params=ENGINES, scope="module")
def there(request: pytest.FixtureRequest) -> EngineInstallation:
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    return installation


@pytest.fixture
def target(there: EngineInstallation) -> Iterator[DockerTarget]:
    target = there.target()
    yield target
    stop_all(target)


def stop_all(target: DockerTarget) -> None:
    for revision in target.status():
        target.stop(revision)
    until(lambda: not target.status(), 60)


def revision_of(there: EngineInstallation, model: str = "churn", version: int = 1, **settings: Any) -> Revision:
    settings = {"drain_seconds": 5.0, **settings}
    return Revision(ModelVersion(model, version), there.image(model), RevisionSettings(**settings))


def ready(target: DockerTarget, revision: Revision) -> RevisionStatus:
    target.start(revision)
    return in_state(target, revision, RevisionState.READY)


def in_state(target: DockerTarget, revision: Revision, state: RevisionState) -> RevisionStatus:
    until(lambda: target.status()[revision.id].state is state, READY_SECONDS)
    return target.status()[revision.id]


def containers(there: EngineInstallation, revision: Revision) -> list[Container]:
    return there.engine.containers(revision=revision.id)


def test_a_container_may_do_nothing_but_serve(there: EngineInstallation, target: DockerTarget) -> None:
    revision = revision_of(there, memory_mb=1024, cpus=1.5)
    ready(target, revision)
    (one,) = containers(there, revision)
    told = there.engine.api.inspect_container(one.id)
    host = told["HostConfig"]
    assert host["ReadonlyRootfs"]
    assert not any((host["PortBindings"] or {}).values())
    assert not host["Privileged"]
    assert "no-new-privileges" in str(host["SecurityOpt"])
    assert (host["Memory"], host["NanoCpus"]) == (1024 * 2**20, 1_500_000_000)
    assert told["Config"]["User"] not in ("", "0", "root")
    assert list(told["NetworkSettings"]["Networks"]) == [there.network]


def test_want_of_memory_is_said_as_such(there: EngineInstallation, target: DockerTarget) -> None:
    revision = revision_of(there, memory_mb=40)
    target.start(revision)
    status = in_state(target, revision, RevisionState.FAILED)
    assert "memory" in status.reason
    assert "40 MiB" in status.reason
    target.start(revision)
    again = target.status()[revision.id]
    assert again.restarts == 1
    assert "40 MiB" in again.reason


def test_replicas_have_an_address_each_and_one_that_dies_is_told_and_replaced(
    there: EngineInstallation, target: DockerTarget
) -> None:
    revision = revision_of(there, replicas=2)
    addresses = ready(target, revision).addresses
    assert len(set(addresses)) == 2
    there.engine.api.kill(containers(there, revision)[0].id, "SIGKILL")
    until(lambda: "1 of 2 replicas" in target.status()[revision.id].reason, 30)
    status = target.status()[revision.id]
    assert status.ready
    assert "SIGKILL" in status.reason or "signal 9" in status.reason
    after = ready(target, revision)
    until(lambda: target.status()[revision.id].reason == "", READY_SECONDS)
    assert (after.addresses, len(containers(there, revision))) == (addresses, 2)


def test_answers_come_through_the_gateway_and_the_log_is_here(there: EngineInstallation, target: DockerTarget) -> None:
    revision = revision_of(there, environment=(("PREDICTION_LOG_SECONDS", "0.5"),))
    status = ready(target, revision)
    there.router.set_weights(Route("churn", Weights.all_to(revision), {revision.id: status.addresses}))
    url = f"{there.gateway.url}/models/churn/invocations"
    rows = {"dataframe_records": [{"tenure": 3.0, "charges": 80.0}]}
    until(lambda: httpx.post(url, json=rows).is_success, 20)
    until(lambda: list((there.home / "predictions").rglob("*.parquet")), 20)
    there.router.remove("churn")


def test_a_stop_is_taken_up_by_the_next_controller(there: EngineInstallation, target: DockerTarget) -> None:
    revision = revision_of(there, version=4)
    ready(target, revision)
    for one in containers(there, revision):
        there.engine.rename(one.id, one.name + ".stopping")
    second = there.target()
    assert second.status()[revision.id].state is RevisionState.STOPPING
    with pytest.raises(TargetError, match="still stopping"):
        second.start(revision)
    until(lambda: revision.id not in second.status(), 60)
    assert second.logs(revision.id)


def test_installations_do_not_touch_each_other_and_purging_leaves_nothing(
    there: EngineInstallation, tmp_path: Path
) -> None:
    kind = "podman" if there.engine.podman else "docker"
    with engine_installation(kind, tmp_path / "home", {}) as other:
        revision = Revision(ModelVersion("churn", 1), there.image("churn"))
        other.target().start(revision)
        assert revision.id not in there.target().status()
        there.target().stop(revision.id)
        assert revision.id in other.target().status()
        installation = other.engine.installation
    engine = Engine(there.engine.url, installation)
    assert engine.containers() == []
    assert engine.images(installation) == {}
    assert not engine.api.networks(names=[installation])
    assert there.engine.image(revision.image)
    engine.close()


def test_an_engine_that_is_gone_can_be_asked_again(there: EngineInstallation, tmp_path: Path) -> None:
    nowhere = Engine(f"tcp://127.0.0.1:{free_port()}", "nobody")
    lost = DockerTarget(tmp_path, nowhere, "nobody", there.door, "")
    with pytest.raises(TargetError) as refused:
        lost.status()
    assert refused.value.retryable


@pytest.mark.docker
def test_once_it_has_run_well_for_a_while_the_engine_starts_it_again(docker_installation: EngineInstallation) -> None:
    target = docker_installation.target(settled_seconds=0.0)
    revision = revision_of(docker_installation, version=6)
    try:
        ready(target, revision)
        (one,) = containers(docker_installation, revision)
        code = "import os, signal; os.kill(1, signal.SIGKILL) or os.kill(1, signal.SIGTERM)"
        command = docker_installation.engine.api.exec_create(one.id, ["/opt/model/bin/python", "-c", code])
        docker_installation.engine.api.exec_start(command["Id"])
        until(lambda: docker_installation.engine.ending(one.id).restarts == 1, 60)
        time.sleep(0.1)
        in_state(target, revision, RevisionState.READY)
    finally:
        stop_all(target)
