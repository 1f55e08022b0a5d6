"""Images that an engine made: of what they consist, what is shared, and what is said where one cannot be had."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.docker_image import DockerImages, ImageNames
from serving.docker_stock import EngineShelf
from serving.engine_errors import EngineError
from serving.image import BuildState, ImageRequest, ImageStatus, server_digest
from serving.image_context import HOME, Context, Entry
from serving.local_image import LocalImage, LocalImages
from serving.stock import Kind, Stock
from tests.fixtures.engines import ENGINES, EngineInstallation
from tests.fixtures.gateway import until
from tests.fixtures.revisions import FolderRegistry

pytestmark = pytest.mark.timeout(900)
"""The first image of all takes minutes on a busy machine."""
REGISTRY = os.environ.get("TESTBED_REGISTRY", "127.0.0.1:5000")


@pytest.fixture(params=ENGINES, scope="module")
def there(request: pytest.FixtureRequest) -> EngineInstallation:
    installation: EngineInstallation = request.getfixturevalue(f"{request.param}_installation")
    return installation


@pytest.fixture
def builder_for(there: EngineInstallation) -> Iterator[Any]:
    """Makes builders with other names or models on the same home."""
    made: list[Builds] = []

    def make(names: ImageNames, **models: Path) -> Builds:
        made.append(there.builder_for(names, models))
        return made[-1]

    yield make
    for builder in made:
        builder.close()


def built(builder: Builds, model: str, version: int = 1, source: str = "elsewhere") -> ImageStatus:
    request = ImageRequest(ModelVersion(model, version), source, server_digest())
    builder.build(request)
    deadline = time.monotonic() + 600
    while (status := builder.find(request)).state is BuildState.BUILDING:
        assert time.monotonic() < deadline, status
        time.sleep(0.05)
    return status


def config_of(there: EngineInstallation, image: str) -> dict[str, Any]:
    config: dict[str, Any] = there.engine.api.inspect_image(image)["Config"]
    return config


def layers_of(there: EngineInstallation, image: str) -> tuple[str, ...]:
    """Digests of the image's layers, the lowest first."""
    return tuple(there.engine.api.inspect_image(image)["RootFS"]["Layers"])


def said(there: EngineInstallation, image: str, code: str, *arguments: str) -> str:
    """The line that Python prints in a container of the image; Podman's log may come after the container's end."""
    api = there.engine.api
    asked = api.create_container(image, entrypoint=[f"{HOME}/bin/python"], command=["-c", code, *arguments])["Id"]
    try:
        api.start(asked)
        api.wait(asked)
        until(lambda: there.engine.logs(asked, 100), 20)
        return "\n".join(there.engine.logs(asked, 100))
    finally:
        there.engine.remove(asked)


def test_another_version_with_the_same_requirements_shares_all_but_its_own_layer(
    there: EngineInstallation, builder_for: Any, churn_model: Path, tmp_path: Path
) -> None:
    changed = Path(shutil.copytree(churn_model, tmp_path / "changed"))
    (changed / "note.txt").write_text("other weights")
    builder = builder_for(there.names, churn=churn_model, changed=changed)
    first, second = built(builder, "churn"), built(builder, "changed")
    one, other = (layers_of(there, str(status.image)) for status in (first, second))
    tags = [tag for tag in there.engine.images(there.names.repository) if "/packages:" in tag]
    (packages,) = {layers for layers in (layers_of(there, tag) for tag in tags) if one[: len(layers)] == layers}
    assert other[: len(packages)] == packages
    assert one[-1] != other[-1]
    assert len(one) == len(other)


def test_the_same_version_is_not_built_twice(there: EngineInstallation, builder_for: Any, churn_model: Path) -> None:
    builder = builder_for(there.names, churn=churn_model)
    first = built(builder, "churn", 5)
    before = there.engine.images(there.names.repository)
    shutil.rmtree(there.home / "builds")
    assert built(builder, "churn", 5).image == first.image
    assert there.engine.images(there.names.repository) == before


def test_two_builds_without_any_cache_give_the_same_layers(there: EngineInstallation, churn_model: Path) -> None:
    image = there.image("churn")
    tag = next(tag for tag, known in there.engine.images(there.names.repository).items() if known == image)
    before = layers_of(there, image)
    there.engine.api.remove_image(tag, force=True)
    shutil.rmtree(there.home / "builds")
    assert layers_of(there, there.image("churn")) == before


def probe_of(there: EngineInstallation, image: str) -> list[str]:
    """How a container of the image is asked for its health; of the image itself Podman does not tell it."""
    container = there.engine.api.create_container(image)["Id"]
    try:
        return list(there.engine.api.inspect_container(container)["Config"]["Healthcheck"]["Test"])
    finally:
        there.engine.api.remove_container(container)


def test_it_runs_as_nobody_and_says_what_it_is(there: EngineInstallation) -> None:
    image = there.image("churn")
    config = config_of(there, image)
    assert config["User"] == "65532:65532"
    assert config["StopSignal"] == "SIGTERM"
    assert config["Entrypoint"][0] == f"{HOME}/bin/python"
    labels = config["Labels"]
    assert (labels["promote.model"], labels["promote.version"]) == ("churn", "1")
    assert len(labels["promote.lock"]) == 64
    assert LocalImage.find(there.home, labels["promote.folder"]) is not None
    assert "org.opencontainers.image.revision" not in labels, "nobody knows where its code stands"
    assert probe_of(there, image)[0] == "CMD"


def test_it_names_the_commit_of_its_code_where_its_run_does(there: EngineInstallation, churn_model: Path) -> None:
    images = LocalImages(there.home, FolderRegistry({"churn": churn_model}))
    maker = DockerImages(there.home, images, there.engine, there.names, commits=lambda _: "5f0c2d1")
    builder = Builds(there.home, maker)
    image = str(built(builder, "churn", 11).image)
    builder.close()
    assert config_of(there, image)["Labels"]["org.opencontainers.image.revision"] == "5f0c2d1"


def test_a_removed_image_is_built_again_and_what_it_stands_on_is_known(there: EngineInstallation) -> None:
    image = there.image("churn")
    stock = Stock(there.home, EngineShelf(there.engine, there.names.repository))
    stored = {one.name: one for one in stock.stored()}
    below = [stored[name] for name in stored[image].stands_on if name in stored]
    assert [one.kind for one in below] == [Kind.PACKAGES]
    assert ModelVersion("churn", 1) in stored[image].versions
    assert 0 < stored[image].size < below[0].size
    (removal,) = stock.remove(lambda _: [image])
    assert removal.trouble == ""
    assert there.engine.image(image) is None
    assert there.image("churn") == there.image("churn")
    assert below[0].name in {one.name for one in stock.stored()}


def test_it_holds_what_serves_and_no_more(there: EngineInstallation) -> None:
    code = "import importlib.util as u, sys; print(' '.join(n for n in sys.argv[1:] if u.find_spec(n)))"
    wanted, unwanted = (
        ["sklearn", "mlflow.pyfunc", "onnxruntime"],
        ["flask", "skl2onnx", "onnx", "serving.image"],
    )
    assert said(there, there.image("churn"), code, *wanted, *unwanted).split() == wanted


def test_a_base_that_cannot_be_had_says_which_settings_would_do(
    there: EngineInstallation, builder_for: Any, churn_model: Path
) -> None:
    names = ImageNames(there.engine.installation, base=f"{REGISTRY}/no-such-python:{{python}}-slim")
    failed = built(builder_for(names, churn=churn_model), "churn", 9, "another base")
    assert failed.state is BuildState.FAILED
    assert f"{REGISTRY}/no-such-python:3." in failed.detail
    assert "base_image" in failed.detail
    assert "sklearn" in failed.detail


@pytest.fixture
def registry(there: EngineInstallation) -> str:
    """Name below which images of this engine are in a registry on this machine."""
    try:
        httpx.get(f"http://{REGISTRY}/v2/", timeout=5.0)
    except httpx.HTTPError as error:
        pytest.skip(f"no image registry at {REGISTRY} (TESTBED_REGISTRY may say where it is): {error}")
    return f"{REGISTRY}/{there.engine.installation}"


def test_a_registry_gives_the_digest_by_which_an_image_is_known_from_then_on(
    there: EngineInstallation, registry: str
) -> None:
    tag = f"{registry}/small:1"
    built_here = there.engine.build(Context("scratch", {"a": Entry(b"1")}), tag, print)
    pinned = f"{registry}/small@{there.engine.push(tag)}"
    there.engine.remove_image(tag)
    assert there.engine.image(tag) is None
    assert there.engine.pull(pinned) == there.engine.image(pinned) == built_here
    there.engine.remove_image(pinned)


def test_an_image_that_no_registry_has_is_one_clear_error(there: EngineInstallation) -> None:
    with pytest.raises(EngineError, match="no-such-image"):
        there.engine.pull(f"{REGISTRY}/no-such-image@sha256:{'0' * 64}")
