"""What every platform owes: revisions start, say how they are, survive a new controller, and stop cleanly."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import pytest

from registry_hooks.model_version import ModelVersion
from serving.cluster import Cluster
from serving.cluster_view import View
from serving.kubernetes import KubernetesTarget
from serving.local import LocalTarget
from serving.revision import Revision, RevisionSettings, RevisionState, RevisionStatus
from serving.signing import Signatures
from serving.target import ServingTarget, TargetError
from serving.verified_target import VerifiedTarget
from tests.fakes.target import Behaviour, FakeTarget
from tests.fixtures.cluster import CLUSTER, ClusterInstallation
from tests.fixtures.engines import DOCKER, PODMAN, EngineInstallation
from tests.fixtures.faulty import BROKEN as BROKEN_ANSWER
from tests.fixtures.faulty import BUSY, CONFLICT, faulty_way
from tests.fixtures.keys import key_pair
from tests.fixtures.patient import Patient
from tests.fixtures.revisions import START_SECONDS, LocalInstallation, end_revisions

pytestmark = pytest.mark.timeout(900)
"""The first image of all takes minutes on a busy machine."""
BROKEN = (("MOOD", "broken"),)
"""Environment of a revision whose model cannot be loaded."""
MISSING = f"sha256:{'0' * 64}"
"""An image that nobody has built."""


@dataclass
class Rig:
    """A platform, and what a test has to be able to do to it from outside."""

    target: ServingTarget
    image: str
    reopen: Callable[[], ServingTarget]
    """A target as another controller would have it."""
    kill: Callable[[Revision], None]
    """Let the revision end by itself."""
    prepare: Callable[[Revision], None] = field(default=lambda revision: None)
    """Called before a revision starts that cannot."""

    def revision(self, version: int, settings: RevisionSettings | None = None) -> Revision:
        return Revision(ModelVersion("moody", version), self.image, settings or RevisionSettings(drain_seconds=10))

    def status(self, revision: Revision) -> RevisionStatus | None:
        return self.target.status().get(revision.id)

    def awaited(self, revision: Revision, state: RevisionState | None) -> RevisionStatus | None:
        """The status once it is in `state` (None: gone)."""
        deadline = time.monotonic() + START_SECONDS
        while True:
            status = self.status(revision)
            if (status.state if status else None) == state:
                return status
            if time.monotonic() > deadline or (status and status.state is RevisionState.FAILED):
                raise AssertionError(f"{revision.id} is not {state} but {status}")
            time.sleep(0.05)

    def ready(self, revision: Revision) -> RevisionStatus:
        self.target.start(revision)
        status = self.awaited(revision, RevisionState.READY)
        assert status is not None
        return status


def fake_rig() -> Rig:
    target = FakeTarget(Behaviour(ready_after=2, drains_for=2), holds=lambda image: image != MISSING)

    def prepare(revision: Revision) -> None:
        target.behaviours[revision.id] = Behaviour(dies_after=2)

    return Rig(target, "image", lambda: target, lambda revision: target.kill(revision.id), prepare)


def verified_rig(home: Path) -> Rig:
    """What verifies images is a target like any other, as long as they are signed."""
    rig, keys, signatures = fake_rig(), key_pair(home), Signatures(home)
    for image in (rig.image, MISSING):
        signatures.keep(keys.signing.sign(image))
    verified = VerifiedTarget(rig.target, keys.verify, signatures)
    return replace(rig, target=verified, reopen=lambda: verified)


def local_rig(local: LocalInstallation) -> Rig:
    def kill(revision: Revision) -> None:
        (server,) = processes_of(revision)
        os.kill(server.pid, signal.SIGKILL)

    def reopen() -> ServingTarget:
        return LocalTarget(local.home, local.log_url)

    return Rig(LocalTarget(local.home, local.log_url), local.images["moody"], reopen, kill)


def engine_rig(there: EngineInstallation) -> Rig:
    def kill(revision: Revision) -> None:
        (server,) = there.engine.containers(revision=revision.id)
        there.engine.api.kill(server.id, "SIGKILL")

    return Rig(there.target(), there.image("moody"), there.target, kill)


def cluster_rig(there: ClusterInstallation) -> Rig:
    return Rig(there.target(), there.image("moody"), there.another_target, there.end)


DISTURBED = pytest.param("disturbed", marks=[*CLUSTER.marks, pytest.mark.nightly])
"""A cluster whose server refuses every fifth request and drops its watches again and again."""


@contextmanager
def disturbed_rig(there: ClusterInstallation) -> Iterator[Rig]:
    over = threading.Event()
    with faulty_way(there.connection) as way, closing(Cluster(way.connection, there.settings.namespace)) as cluster:
        view = View(cluster, there.settings.selector)
        holds = there.docker.engine.in_registry

        def reopen() -> ServingTarget:
            return Patient(KubernetesTarget(there.home, cluster, view, there.settings, holds))

        def drop() -> None:
            while not over.wait(3.0):
                way.drop()

        dropping = threading.Thread(target=drop)
        dropping.start()
        way.disturb(CONFLICT, BUSY, BROKEN_ANSWER, share=0.2)
        yield Rig(reopen(), there.image("moody"), reopen, there.end)
        over.set()
        dropping.join()
        assert all(way.faults(fault.status) for fault in (CONFLICT, BUSY, BROKEN_ANSWER))
        assert way.hurried(1.0) <= _THREADS
        way.mend()
        view.close()


_THREADS = 4
"""Of a view and who asks: each may have been about to ask when another one was told to wait."""


@pytest.fixture(params=["fake", "verified", "local", DOCKER, PODMAN, CLUSTER, DISTURBED], scope="module")
def rig(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    if request.param in ("fake", "verified"):
        yield fake_rig() if request.param == "fake" else verified_rig(tmp_path_factory.mktemp("verified"))
        return
    if request.param in ("docker", "podman"):
        there: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
        yield engine_rig(there)
        for revision in (target := there.target()).status():
            target.stop(revision)
        return
    if request.param == "kubernetes":
        cluster: ClusterInstallation = request.getfixturevalue("cluster_installation")
        yield cluster_rig(cluster)
        for revision in (stopped := cluster.target()).status():
            stopped.stop(revision)
        return
    if request.param == "disturbed":
        undisturbed: ClusterInstallation = request.getfixturevalue("cluster_installation")
        with disturbed_rig(undisturbed) as disturbed:
            yield disturbed
            for revision in disturbed.target.status():
                disturbed.target.stop(revision)
        return
    installation: LocalInstallation = request.getfixturevalue("local_installation")
    yield local_rig(installation)
    end_revisions(installation.home)


@pytest.fixture(scope="module")
def running(rig: Rig) -> Revision:
    """A revision that is ready, for tests that leave it so."""
    revision = rig.revision(1)
    rig.ready(revision)
    return revision


def test_unknown_revisions_are_no_trouble(rig: Rig) -> None:
    rig.target.stop("nobody-v1-0000000000")
    assert rig.target.logs("nobody-v1-0000000000") == ()
    assert "nobody-v1-0000000000" not in rig.target.status()


def test_a_ready_revision_says_where_and_since_when(rig: Rig, running: Revision) -> None:
    status = rig.status(running)
    assert status is not None
    assert (status.revision, status.ready, status.restarts, status.reason) == (running, True, 0, "")
    assert len(status.addresses) == 1
    assert status.addresses[0].port > 0
    assert status.started is not None
    assert status.started.tzinfo is not None


def test_starting_a_running_revision_leaves_it_alone(rig: Rig, running: Revision) -> None:
    before = rig.status(running)
    rig.target.start(running)
    assert rig.status(running) == before


def test_what_it_wrote_can_be_read(rig: Rig, running: Revision) -> None:
    assert rig.target.logs(running.id)
    assert len(rig.target.logs(running.id, lines=1)) == 1


def test_another_controller_finds_it_ready_at_its_first_look(rig: Rig, running: Revision) -> None:
    before = rig.status(running)
    assert rig.reopen().status()[running.id] == before


def test_a_revision_is_reported_as_soon_as_it_is_started_and_has_an_address_of_its_own(
    rig: Rig, running: Revision
) -> None:
    other = rig.revision(2)
    rig.target.start(other)
    status, first = rig.status(other), rig.status(running)
    assert status is not None
    assert first is not None
    assert status.state is RevisionState.STARTING
    assert status.reason
    assert status.addresses != first.addresses
    rig.target.stop(other.id)
    rig.awaited(other, None)


def test_one_that_cannot_start_has_failed_and_says_why(rig: Rig) -> None:
    revision = rig.revision(3, RevisionSettings(environment=BROKEN))
    rig.prepare(revision)
    rig.target.start(revision)
    status = awaited_failure(rig, revision)
    assert status.reason
    assert status.restarts == 0
    rig.target.stop(revision.id)
    rig.awaited(revision, None)


def test_one_that_ends_by_itself_has_failed_until_it_is_started_again(rig: Rig) -> None:
    revision = rig.revision(4)
    before = rig.ready(revision)
    rig.kill(revision)
    assert awaited_failure(rig, revision).reason
    after = rig.ready(revision)
    assert after.restarts == 1
    assert (after.started, after.addresses) == (before.started, before.addresses)
    rig.target.stop(revision.id)
    stopping = rig.status(revision)
    assert stopping is not None
    assert stopping.state is RevisionState.STOPPING
    with pytest.raises(TargetError) as refused:
        rig.target.start(revision)
    assert refused.value.retryable
    rig.target.stop(revision.id)
    rig.awaited(revision, None)
    assert rig.target.logs(revision.id)


def test_too_little_memory_is_a_failure_of_that_revision_only(rig: Rig, running: Revision) -> None:
    revision = rig.revision(5, RevisionSettings(memory_mb=16))
    rig.target.start(revision)
    assert awaited_failure(rig, revision).reason
    assert rig.awaited(running, RevisionState.READY)
    rig.target.stop(revision.id)
    rig.awaited(revision, None)


def test_a_revision_whose_image_is_not_there_may_be_started_once_it_is_built_again(rig: Rig) -> None:
    revision = replace(rig.revision(7), image=MISSING)
    with pytest.raises(TargetError, match=MISSING) as refused:
        rig.target.start(revision)
    assert refused.value.retryable
    assert revision.id not in rig.target.status()


def test_settings_make_another_revision(rig: Rig) -> None:
    one = rig.revision(6)
    assert rig.revision(6, replace(one.settings, workers=2)).id != one.id


def test_a_platform_that_does_not_answer_can_be_asked_again() -> None:
    rig = fake_rig()
    target = rig.target
    assert isinstance(target, FakeTarget)
    target.broken = True
    for ask in (
        target.status,
        lambda: target.start(rig.revision(1)),
        lambda: target.stop("x"),
        lambda: target.logs("x"),
    ):
        with pytest.raises(TargetError) as refused:
            ask()
        assert refused.value.retryable


def processes_of(revision: Revision) -> list[psutil.Process]:
    """The leaders of the revision's process groups; the writer of its prediction log is none of its servers."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = process.environ().get("REVISION") == revision.id and "serving.runtime" in process.cmdline()
            if ours and os.getsid(process.pid) == process.pid:
                found.append(process)
        except (psutil.Error, ProcessLookupError):
            continue
    return found


def awaited_failure(rig: Rig, revision: Revision) -> RevisionStatus:
    deadline = time.monotonic() + START_SECONDS
    while True:
        status = rig.status(revision)
        assert status is not None
        if status.state is RevisionState.FAILED:
            return status
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
