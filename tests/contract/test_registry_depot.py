"""Images that are made with nothing but a registry: what an engine makes of the same context, and one clear error."""

from __future__ import annotations

import json
import tarfile
import uuid
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest

from serving.docker_engine import Engine
from serving.engine_errors import EngineError
from serving.image_context import (
    CACHE,
    HOME,
    MANIFEST,
    MANIFEST_BYTES,
    Context,
    Entry,
    Running,
    gateway_context,
    model_context,
    packages_context,
)
from serving.registry_depot import RegistryDepot
from tests.fixtures.engines import url_of
from tests.fixtures.registries import PASSWORD, closed_registry, open_registry, write_login

pytestmark = pytest.mark.docker

BASE = "python:3.11-slim"
SMALL = Context("scratch", {"a": Entry(b"1")})
INDEX = "application/vnd.oci.image.index.v1+json"
OF_A_CONTAINER = ("/dev", "/etc/host", "/etc/mtab", "/etc/resolv.conf", "/proc", "/sys", "/.dockerenv")


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = Engine(url_of("docker"), f"depot-{uuid.uuid4().hex[:8]}")
    yield engine
    engine.purge(f"{open_registry()}/{engine.installation}")
    engine.close()


@pytest.fixture(scope="module")
def below(engine: Engine) -> str:
    """Name of a repository of these tests in the open registry."""
    return f"{open_registry()}/{engine.installation}"


@pytest.fixture(scope="module")
def base(engine: Engine, below: str) -> str:
    """A base image in the registry."""
    engine.api.tag(BASE, f"{below}/python", "3.11-slim")
    engine.push(f"{below}/python:3.11-slim")
    return f"{below}/python:3.11-slim"


@pytest.fixture
def depot() -> RegistryDepot:
    return RegistryDepot()


def files_of(engine: Engine, image: str) -> dict[str, tuple[bytes, int, str, int]]:
    """Kind, mode, target of a link and size of all that is in an image, by its path."""
    container = engine.api.create_container(image, command=["/nothing"])["Id"]
    try:
        exported = BytesIO(b"".join(engine.api.export(container)))
    finally:
        engine.api.remove_container(container)
    with tarfile.open(fileobj=exported) as tar:
        found = {f"/{one.name}": (one.type, one.mode, one.linkname, one.size) for one in tar}
    return {path: told for path, told in found.items() if not path.startswith(OF_A_CONTAINER)}


def config_of(engine: Engine, image: str) -> dict[str, Any]:
    """What an image says of itself, without what only the engine adds."""
    told = engine.api.inspect_image(image)["Config"]
    return {key: value for key, value in told.items() if value and key not in {"Image", "Hostname"}}


def folder(place: Path, **files: str) -> Path:
    place.mkdir(parents=True)
    for name, content in files.items():
        (place / name).write_text(content)
    return place


def test_it_makes_what_an_engine_makes(
    engine: Engine, depot: RegistryDepot, below: str, base: str, tmp_path: Path
) -> None:
    packages = folder(tmp_path / "packages", module="a = 1")
    (packages / "link").symlink_to("module")
    model, plan = folder(tmp_path / "model", MLmodel="flavors: {}"), folder(tmp_path / "plan", plan="{}")
    lower = packages_context(base, "3.11", packages)
    sent = depot.build(lower, f"{below}/packages:sent", print)
    assert depot.image(f"{below}/packages:sent") == sent
    engine.build(lower, f"{below}/packages:built", print)
    labels = {"promote.model": "churn"}
    upper = model_context(f"{below}/packages:sent", model, plan, labels)
    pinned = f"{below}/churn@{depot.build(upper, f'{below}/churn:sent', print)}"
    assert depot.holds(pinned)
    assert depot.labels(pinned) == labels
    assert engine.labels(pinned) == labels  # of an image that the engine does not have yet
    built = engine.build(model_context(f"{below}/packages:built", model, plan, labels), f"{below}/churn:built", print)
    assert config_of(engine, pinned) == config_of(engine, built)
    assert files_of(engine, pinned) == files_of(engine, built)
    assert f"{HOME}/model/MLmodel" in files_of(engine, pinned)
    engine.remove_image(pinned)


def test_the_image_of_a_model_that_is_fetched_is_what_an_engine_makes(
    engine: Engine, depot: RegistryDepot, below: str, tmp_path: Path
) -> None:
    instead, plan = folder(tmp_path / "instead", manifest="{}"), folder(tmp_path / "plan", plan="{}")
    context = model_context("scratch", instead, plan, {MANIFEST: "0a1b", MANIFEST_BYTES: "7"}, fetched=True)
    pinned = f"{below}/large@{depot.build(context, f'{below}/large:sent', print)}"
    engine.pull(pinned)
    built = engine.build(context, f"{below}/large:built", print)
    assert files_of(engine, pinned) == files_of(engine, built)
    kind, mode, *_ = files_of(engine, pinned)[CACHE]
    assert (kind, mode & 0o777) == (tarfile.DIRTYPE, 0o777)
    assert depot.labels(pinned) == engine.labels(built) == {MANIFEST: "0a1b", MANIFEST_BYTES: "7"}
    engine.remove_image(pinned)


def test_an_image_on_nothing_and_the_one_of_a_program(
    engine: Engine, depot: RegistryDepot, below: str, base: str, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"#!/bin/sh\n")
    for name, context in {"nothing": SMALL, "program": gateway_context(base, program)}.items():
        pinned = f"{below}/{name}@{depot.build(context, f'{below}/{name}:sent', print)}"
        engine.pull(pinned)
        built = engine.build(context, f"{below}/{name}:built", print)
        assert files_of(engine, pinned) == files_of(engine, built)
        if context is not SMALL:  # where there is no base, an engine says where programs would be
            assert config_of(engine, pinned) == config_of(engine, built)
        engine.remove_image(pinned)


def test_the_same_context_is_the_same_image_and_nothing_is_sent_twice(depot: RegistryDepot, below: str) -> None:
    said: list[str] = []
    first = depot.build(SMALL, f"{below}/same:1", said.append)
    assert depot.build(SMALL, f"{below}/same:2", said.append) == first
    assert depot.push(f"{below}/same:2") == first
    assert said[0] == "writing layer 1 of 1"


def test_what_is_not_there_is_not_there(depot: RegistryDepot, below: str) -> None:
    assert depot.image(f"{below}/never:1") is None
    assert not depot.holds(f"{below}/never@sha256:{'0' * 64}")
    with pytest.raises(EngineError, match=f"cannot pull {below}/never:1: .*unknown") as refused:
        depot.build(Context(f"{below}/never:1", {}), f"{below}/upon:1", print)
    assert not refused.value.retryable
    assert depot.image(f"{below}/upon:1") is None


def test_of_an_image_for_several_machines_the_one_for_this_machine_is_taken(depot: RegistryDepot, below: str) -> None:
    digest = depot.build(SMALL, f"{below}/several:own", print)
    host, _, path = f"{below}/several".partition("/")
    size = len(httpx.get(f"http://{host}/v2/{path}/manifests/{digest}", headers={"accept": "*/*"}).content)
    for tag, architecture in {"index": depot.architecture, "other": "s390x"}.items():
        kind = {"os": "linux", "architecture": architecture}
        one = {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": size}
        index = {"schemaVersion": 2, "mediaType": INDEX, "manifests": [{**one, "platform": kind}]}
        url = f"http://{host}/v2/{path}/manifests/{tag}"
        httpx.put(url, content=json.dumps(index), headers={"content-type": INDEX}).raise_for_status()
    assert depot.pull(f"{below}/several:index") == digest
    with pytest.raises(EngineError, match=f"not made for Linux on {depot.architecture}"):
        depot.pull(f"{below}/several:other")


def test_what_takes_a_program_to_install_is_refused(depot: RegistryDepot, below: str, base: str) -> None:
    context = Context(base, {}, system=("libgomp1",), running=Running(("/a",)))
    with pytest.raises(EngineError, match=r"libgomp1 .*base_images") as refused:
        depot.build(context, f"{below}/system:1", print)
    assert not refused.value.retryable


def test_no_password_is_sent_in_the_clear(
    depot: RegistryDepot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path))
    with closed_registry(tmp_path) as host:
        write_login(tmp_path, host, PASSWORD)
        with pytest.raises(EngineError, match=f"{host} wants a login, which is not sent without TLS") as refused:
            depot.image(f"{host}/tests/small:1")
        assert not refused.value.retryable
    with pytest.raises(EngineError, match=host) as silent:
        depot.image(f"{host}/tests/small:1")
    assert silent.value.retryable


def test_a_registry_may_be_elsewhere_than_its_name_says(below: str) -> None:
    host, _, path = below.partition("/")
    elsewhere = RegistryDepot({"registry.example.org": f"http://{host}"})
    digest = elsewhere.build(SMALL, f"registry.example.org/{path}/named:1", print)
    assert RegistryDepot().image(f"{below}/named:1") == digest
