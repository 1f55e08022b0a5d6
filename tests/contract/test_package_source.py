"""Packages from a private index or a folder: found, and its password nowhere but there."""

from __future__ import annotations

import gzip
import os
import shutil
import ssl
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.docker_image import DockerImages
from serving.environment import Environments
from serving.image import BuildState, ImageError, ImageRequest, ImageStatus, server_digest
from serving.local_image import LocalImages
from serving.needs import read_needs
from serving.package_source import PackageSource
from serving.runtime.requirements import STORES
from tests.fixtures.engines import ENGINES, EngineInstallation
from tests.fixtures.gateway import until
from tests.fixtures.package_index import PACKAGE, PASSWORD, REQUIREMENT, PackageIndex, package_index, write_wheel
from tests.fixtures.revisions import FolderRegistry

BUILD_SECONDS = 800.0


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PackageIndex]:
    default = os.environ.get("SSL_CERT_FILE") or ssl.get_default_verify_paths().cafile or ""
    with package_index(tmp_path_factory.mktemp("index"), Path(default)) as index:
        yield index


@pytest.fixture
def wordy(churn_model: Path, tmp_path: Path) -> Path:
    """A model that needs the home-made package."""
    model = Path(shutil.copytree(churn_model, tmp_path / "wordy"))
    with (model / "requirements.txt").open("a") as file:
        file.write(f"\n{REQUIREMENT}\n")
    return model


def refused(model: Path, home: Path, source: PackageSource) -> ImageError:
    with pytest.raises(ImageError) as error:
        Environments(home, source).provide(model, lambda _: None, native=True)
    return error.value


def holding(folder: Path, secret: bytes) -> list[Path]:
    files = (file for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
    return [file for file in files if secret in file.read_bytes()]


def test_a_package_of_a_private_index_is_locked_and_installed(wordy: Path, index: PackageIndex, tmp_path: Path) -> None:
    home = tmp_path / "home"
    source = PackageSource(extra_indexes=(index.url(),), ca=index.ca)
    made = Environments(home, source).provide(wordy, lambda _: None, native=True)
    assert made.lock.holds(PACKAGE)
    (module,) = made.serving.parent.parent.glob("lib/*/site-packages/homemade_words.py")
    assert "homemade" in module.read_text()
    assert PASSWORD not in repr(source)
    assert holding(home, PASSWORD.encode()) == []
    assert holding(home, b"127.0.0.1:%d" % index.port) == []


def test_a_package_of_a_folder_is_locked_and_installed(wordy: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels")
    source = PackageSource(wheels=tmp_path / "wheels")
    assert Environments(tmp_path / "home", source).provide(wordy, lambda _: None, native=True).lock.holds(PACKAGE)


def test_what_writes_to_the_store_of_the_log_is_locked_with_every_model(churn_model: Path, tmp_path: Path) -> None:
    needs = read_needs(churn_model)
    with_it, without = (
        Environments(tmp_path, PackageSource(served=served)).resolve(needs, churn_model)
        for served in ((STORES["s3"],), ())
    )
    assert (with_it.holds("s3fs"), without.holds("s3fs")) == (True, False)


def test_a_wrong_password_names_the_setting_and_is_not_told(wordy: Path, index: PackageIndex, tmp_path: Path) -> None:
    error = refused(wordy, tmp_path / "home", PackageSource(extra_indexes=(index.url("wrong-se%2Fcret"),), ca=index.ca))
    assert not error.retryable
    assert "401" in str(error)
    assert "package_index or package_extra_indexes" in str(error)
    assert "wrong-se" not in str(error)


def test_an_index_that_nobody_vouches_for_names_the_setting(wordy: Path, index: PackageIndex, tmp_path: Path) -> None:
    error = refused(wordy, tmp_path / "home", PackageSource(extra_indexes=(index.url(),)))
    assert not error.retryable
    assert "package_ca" in str(error)
    assert PASSWORD not in str(error)


def test_requirements_that_cannot_be_together_are_explained_by_the_resolver(wordy: Path, tmp_path: Path) -> None:
    write_wheel(tmp_path / "wheels", "numpy<1")
    error = refused(wordy, tmp_path / "home", PackageSource(wheels=tmp_path / "wheels"))
    assert not error.retryable
    assert f"{PACKAGE} depend on numpy<1" in str(error)
    assert "requirements are unsatisfiable" in " ".join(str(error).split())


@pytest.fixture(params=ENGINES)
def there(request: pytest.FixtureRequest) -> EngineInstallation:
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    return installation


def found_in(exported: IO[bytes], secret: bytes) -> list[str]:
    """Names of what an engine exports, layers, configuration and history, that have the secret in them."""
    found = []
    with tarfile.open(fileobj=exported) as archive:
        for member in archive:
            file = archive.extractfile(member) if member.isfile() else None
            if file is not None:
                packed = file.peek(2)[:2] == b"\x1f\x8b"  # type: ignore[attr-defined]
                content: IO[bytes] = gzip.GzipFile(fileobj=file) if packed else file  # type: ignore[assignment]
                rest = b""
                while chunk := content.read(2**22):
                    if secret in rest + chunk:
                        found.append(member.name)
                    rest = chunk[-len(secret) :]
    return found


def built(builder: Builds, request: ImageRequest) -> ImageStatus:
    builder.build(request)
    until(lambda: builder.find(request).state is not BuildState.BUILDING, BUILD_SECONDS)
    return builder.find(request)


@pytest.mark.timeout(900)
@pytest.mark.nightly
def test_no_byte_of_an_image_holds_the_password_of_an_index(
    there: EngineInstallation, wordy: Path, index: PackageIndex, tmp_path: Path
) -> None:
    source = PackageSource(extra_indexes=(index.url(),), ca=index.ca)
    home = tmp_path / "home"
    images = LocalImages(home, FolderRegistry({"wordy": wordy}), packages=source, native=True)
    builder = Builds(home, DockerImages(home, images, there.engine, there.names))
    request = ImageRequest(ModelVersion("wordy", 1), "a private index", server_digest())
    status = built(builder, request)
    assert status.image, status
    documents = [builder.document(document.digest) for document in status.documents]
    builder.close()
    with tempfile.TemporaryFile() as exported:
        for chunk in there.engine.api.get_image(status.image):
            exported.write(chunk)
        for secret in (PASSWORD.encode(), b"127.0.0.1:%d" % index.port):
            exported.seek(0)
            assert found_in(exported, secret) == []
            assert not any(secret in document for document in documents)
        exported.seek(0)
        assert found_in(exported, b"homemade"), "the search finds what is there"
    assert holding(home, PASSWORD.encode()) == []
