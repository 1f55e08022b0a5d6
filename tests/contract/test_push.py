"""Images that go to a registry: known by its digest from then on, and one clear error where it does not do."""

from __future__ import annotations

import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.docker_engine import Engine
from serving.docker_image import DockerImages, ImageNames
from serving.engine_errors import EngineError
from serving.image import BuildState, ImageRequest, ImageStatus, server_digest
from serving.image_context import Context, Entry
from serving.local_image import LocalImages
from serving.revision import Revision, RevisionSettings, RevisionState
from serving.target import TargetError
from tests.fixtures.engines import ENGINES, EngineInstallation
from tests.fixtures.gateway import until
from tests.fixtures.registries import PASSWORD, closed_registry, open_registry, write_login
from tests.fixtures.revisions import FolderRegistry

SMALL = Context("scratch", {"a": Entry(b"1")})
PUSH_SECONDS = 500.0


@pytest.fixture(params=ENGINES, scope="module")
def there(request: pytest.FixtureRequest) -> EngineInstallation:
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    return installation


class BuildsNothing(Engine):
    """An engine that has all else."""

    def build(self, context: Context, tag: str, tell: object) -> str:
        raise EngineError(f"{tag} was to be built", retryable=False)


def builder_of(there: EngineInstallation, engine: Engine, names: ImageNames) -> Builds:
    images = LocalImages(there.home, FolderRegistry(there.models))
    return Builds(there.home, DockerImages(there.home, images, engine, names))


def built(builder: Builds, version: int) -> ImageStatus:
    request = ImageRequest(ModelVersion("churn", version), "registry", server_digest())
    builder.build(request)
    until(lambda: builder.find(request).state is not BuildState.BUILDING, PUSH_SECONDS)
    return builder.find(request)


@pytest.fixture
def names(there: EngineInstallation) -> Iterator[ImageNames]:
    """Below the open registry; the packages, which take longest to build, are there under their other name."""
    names = ImageNames(f"{open_registry()}/{there.network}")
    there.image("churn")
    for tag in there.engine.images(there.network):
        if "/packages:" in tag:
            there.engine.api.tag(tag, f"{names.repository}/packages", tag.rpartition(":")[2])
    yield names
    forget(there, names)


def forget(there: EngineInstallation, names: ImageNames) -> None:
    for tag in there.engine.images(names.repository):
        there.engine.remove_image(tag)


@pytest.mark.timeout(900)
@pytest.mark.nightly
def test_an_image_that_was_sent_is_found_by_its_digest_and_started_from_there(
    there: EngineInstallation, names: ImageNames
) -> None:
    builder = builder_of(there, there.engine, names)
    sent = built(builder, 31)
    builder.close()
    assert sent.state is BuildState.READY, sent
    pinned = str(sent.image)
    assert re.fullmatch(rf"{names.repository}/churn@sha256:[0-9a-f]{{64}}", pinned)
    forget(there, names)
    there.engine.remove_image(pinned)
    assert there.engine.image(pinned) is None
    shutil.rmtree(there.home / "builds")
    engine = BuildsNothing(there.engine.url, there.network)
    fresh = builder_of(there, engine, names)
    assert built(fresh, 31).image == pinned
    fresh.close()
    engine.close()
    forget(there, names)
    there.engine.remove_image(pinned)
    target = there.target()
    revision = Revision(ModelVersion("churn", 31), pinned, RevisionSettings(drain_seconds=1.0))
    target.start(revision)
    until(lambda: target.status()[revision.id].state is RevisionState.READY, 200)
    target.stop(revision.id)
    until(lambda: not target.status(), 60)
    there.engine.remove_image(pinned)


def test_a_digest_that_the_registry_does_not_have_is_refused_for_good(there: EngineInstallation) -> None:
    image = f"{open_registry()}/{there.network}/churn@sha256:{'0' * 64}"
    revision = Revision(ModelVersion("churn", 32), image, RevisionSettings())
    with pytest.raises(TargetError) as refused:
        there.target().start(revision)
    assert not refused.value.retryable
    assert image in str(refused.value)
    assert revision.id in str(refused.value)
    assert revision.id.startswith("churn")
    assert not there.target().status()


def test_a_push_needs_the_login_of_dockers_configuration(
    there: EngineInstallation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if there.engine.podman:
        pytest.skip("Podman speaks to a registry without TLS only where its own configuration names it")
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with closed_registry(tmp_path) as host:
        tag = f"{host}/tests/small:{uuid.uuid4().hex[:8]}"
        there.engine.build(SMALL, tag, print)
        for wrong in (None, "another"):
            if wrong:
                write_login(tmp_path, host, wrong)
            with pytest.raises(EngineError) as refused:
                there.engine.push(tag)
            assert not refused.value.retryable
            assert f"cannot push {tag}" in str(refused.value)
            assert f"docker login {host}" in str(refused.value)
            assert "another" not in str(refused.value)
        write_login(tmp_path, host, PASSWORD)
        pinned = f"{tag.rpartition(':')[0]}@{there.engine.push(tag)}"
        there.engine.remove_image(tag)
        assert there.engine.pull(pinned)
        there.engine.remove_image(pinned)
        (tmp_path / "config.json").unlink()
        with pytest.raises(EngineError, match="docker login"):
            there.engine.pull(pinned)


def test_a_registry_that_does_not_answer_may_do_so_later(there: EngineInstallation, tmp_path: Path) -> None:
    with closed_registry(tmp_path) as host:
        tag = f"{host}/tests/small:{uuid.uuid4().hex[:8]}"
    there.engine.build(SMALL, tag, print)
    with pytest.raises(EngineError, match=tag) as refused:
        there.engine.push(tag)
    assert refused.value.retryable
    there.engine.remove_image(tag)
