"""What every image builder owes, and what the one for this machine says and keeps."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import pytest

from registry_hooks.model_version import ModelVersion
from registry_hooks.reference import Sample
from registry_hooks.registry import RegistryError
from serving.environment import Environments, Interpreters
from serving.image import BuildState, ImageBuilder, ImageError, ImageRequest, ImageStatus, digest_of, server_digest
from serving.local_image import LocalImage, LocalImageBuilder
from serving.workshop import workshop
from tests.fakes.image import FakeImageBuilder
from tests.fixtures.revisions import FolderRegistry, with_kept_environments

BUILD_SECONDS = 280.0


def request_for(model: str, version: int = 1) -> ImageRequest:
    return ImageRequest(ModelVersion(model, version), f"models:/{model}/{version}", server_digest())


def finished(builder: ImageBuilder, request: ImageRequest) -> ImageStatus:
    deadline = time.monotonic() + BUILD_SECONDS
    while (status := builder.find(request)).state is BuildState.BUILDING:
        assert time.monotonic() < deadline, status
        time.sleep(0.02)
    return status


def built(builder: ImageBuilder, request: ImageRequest) -> ImageStatus:
    builder.build(request)
    return finished(builder, request)


@pytest.fixture
def empty_home(tmp_path: Path) -> Path:
    """A new home without images."""
    return with_kept_environments(tmp_path / "home")


@dataclass
class Rig:
    """A builder that can build ``good`` and not ``bad``, until that is put right."""

    builder: ImageBuilder
    reopen: Callable[[], ImageBuilder]
    put_right: Callable[[], None]


@pytest.fixture(params=["fake", "local"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    if request.param == "fake":
        fake = FakeImageBuilder(ready_after=2)
        fake.fails[ModelVersion("bad", 1)] = "fastapi==0.50.0 cannot be"
        yield Rig(fake, lambda: fake, fake.fails.clear)
        return
    home, churn = request.getfixturevalue("builder_home"), request.getfixturevalue("churn_model")
    models = home.parent / "models"
    for name in ("good", "bad"):
        shutil.copytree(churn, models / name)
    require(models / "bad", "fastapi==0.50.0")
    open_: list[LocalImageBuilder] = []

    def reopen() -> LocalImageBuilder:
        open_.append(local_builder(home, {name: models / name for name in ("good", "bad")}))
        return open_[-1]

    yield Rig(reopen(), reopen, lambda: shutil.copy(churn / "requirements.txt", models / "bad" / "requirements.txt"))
    for builder in open_:
        builder.close()


def local_builder(home: Path, models: dict[str, Path]) -> LocalImageBuilder:
    return LocalImageBuilder(home, FolderRegistry(models))


def require(model: Path, *lines: str) -> None:
    (model / "requirements.txt").write_text("\n".join(lines))


def test_what_was_never_asked_for_is_missing(rig: Rig) -> None:
    assert rig.builder.find(request_for("good")).state is BuildState.MISSING


def test_a_build_is_under_way_then_ready_and_is_found_by_another_controller(rig: Rig) -> None:
    request = request_for("good")
    rig.builder.build(request)
    status = rig.builder.find(request)
    assert status.state is BuildState.BUILDING
    assert status.detail
    ready = finished(rig.builder, request)
    assert ready.state is BuildState.READY
    assert ready.image
    assert ready.lock
    rig.builder.build(request)
    assert rig.builder.find(request) == rig.reopen().find(request) == ready


def test_what_an_image_is_made_of_is_written_down_and_can_be_read_by_another_controller(rig: Rig) -> None:
    ready = built(rig.builder, request_for("good"))
    assert {document.name for document in ready.documents} == {"lock.txt", "provenance.json", "sbom.json"}
    for document in ready.documents:
        content = rig.reopen().document(document.digest)
        assert content
        assert hashlib.sha256(content).hexdigest() == document.digest
    with pytest.raises(ImageError, match="is lost") as lost:
        rig.builder.document("0" * 64)
    assert not lost.value.retryable


def test_what_cannot_be_built_says_why_until_it_is_asked_for_again(rig: Rig) -> None:
    request = request_for("bad")
    failed = built(rig.builder, request)
    assert failed.state is BuildState.FAILED
    assert "fastapi==0.50.0" in failed.detail
    assert rig.reopen().find(request) == failed
    rig.put_right()
    assert built(rig.builder, request).state is BuildState.READY


def test_a_builder_that_does_not_answer_can_be_asked_again() -> None:
    fake = FakeImageBuilder()
    fake.broken = True
    request = request_for("good")
    asks: list[Callable[[], object]] = [
        lambda: fake.find(request),
        lambda: fake.build(request),
        lambda: fake.document("0" * 64),
    ]
    for ask in asks:
        with pytest.raises(ImageError) as refused:
            ask()
        assert refused.value.retryable


def test_a_fake_build_is_lost_with_its_controller() -> None:
    fake = FakeImageBuilder(ready_after=9)
    fake.build(request_for("good"))
    fake.lose()
    assert fake.find(request_for("good")).state is BuildState.MISSING


def test_versions_with_the_same_requirements_share_their_environment(builder_home: Path, churn_model: Path) -> None:
    changed = shutil.copytree(churn_model, builder_home.parent / "changed")
    (changed / "note.txt").write_text("another model")
    builder = local_builder(builder_home, {"churn": churn_model, "changed": changed})
    first = built(builder, request_for("churn"))
    second = built(builder, request_for("changed"))
    assert first.lock == second.lock
    assert first.image != second.image
    same = built(builder, request_for("churn", 2))
    assert same.image == first.image
    images = [LocalImage.find(builder_home, str(status.image)) for status in (first, second)]
    assert images[0]
    assert images[1]
    assert images[0].python == images[1].python
    assert (images[0].server / "serving" / "runtime" / "__main__.py").exists()
    assert (images[0].plan / "plan.json").exists()
    builder.close()


def test_of_builds_with_the_same_lock_one_installs_and_the_other_waits(tmp_path: Path, churn_model: Path) -> None:
    builder = local_builder(tmp_path, {"churn": churn_model})
    requests = [request_for("churn", 1), request_for("churn", 2)]
    for request in requests:
        builder.build(request)
    assert {finished(builder, request).state for request in requests} == {BuildState.READY}
    assert len(list((tmp_path / "environments").iterdir())) == 2, "one that serves, and one that compiles"
    assert len(list((tmp_path / "locks").iterdir())) == 2
    builder.close()


@pytest.mark.parametrize(
    ("file", "content", "words"),
    [
        ("python_env.yaml", "python: 3.99.1\n", "needs Python 3.99, which this machine does not have"),
        ("MLmodel", "flavors: {}\n", "not a model that MLflow can serve"),
        ("MLmodel", "a: [", "not a model that MLflow can serve"),
        ("requirements.txt", "there is no such requirement\n", "requirement"),
    ],
)
def test_models_that_cannot_be_served_fail_with_what_is_wrong(
    builder_home: Path, churn_model: Path, file: str, content: str, words: str
) -> None:
    model = shutil.copytree(churn_model, builder_home.parent / "model")
    (model / file).write_text(content)
    builder = local_builder(builder_home, {"churn": model})
    failed = built(builder, request_for("churn"))
    assert failed.state is BuildState.FAILED
    assert words in failed.detail
    builder.close()


class Unsteady:
    """A registry whose first downloads fail."""

    def __init__(self, model: Path, failures: int, *, retryable: bool) -> None:
        self.model, self.failures, self.retryable = model, failures, retryable
        self.asked = threading.Event()

    def download(self, version: ModelVersion, destination: Path) -> Path:
        self.asked.set()
        self.failures -= 1
        if self.failures >= 0:
            raise RegistryError("the registry is away", retryable=self.retryable)
        return Path(shutil.copytree(self.model, destination))


def test_a_registry_that_is_away_for_a_moment_is_asked_again(builder_home: Path, churn_model: Path) -> None:
    builder = LocalImageBuilder(builder_home, Unsteady(churn_model, 1, retryable=True))
    assert built(builder, request_for("churn")).state is BuildState.READY
    builder.close()


def test_a_registry_that_does_not_have_the_version_is_not_asked_again(builder_home: Path, churn_model: Path) -> None:
    builder = LocalImageBuilder(builder_home, Unsteady(churn_model, 1, retryable=False))
    failed = built(builder, request_for("churn"))
    assert (failed.state, failed.detail) == (BuildState.FAILED, "the registry is away")
    builder.close()


def test_closing_ends_a_build_that_waits_and_leaves_it_missing(builder_home: Path, churn_model: Path) -> None:
    registry = Unsteady(churn_model, 9, retryable=True)
    builder = LocalImageBuilder(builder_home, registry)
    builder.build(request_for("churn"))
    assert registry.asked.wait(20)
    began = time.monotonic()
    builder.close()
    assert time.monotonic() - began < 20
    assert builder.find(request_for("churn")).state is BuildState.MISSING


_HANGS = """
import sys, time
from pathlib import Path
from serving.local_image import LocalImageBuilder
from tests.contract.test_image import request_for

class Hangs:
    def download(self, version, destination):
        destination.mkdir(parents=True)
        (destination / "MLmodel").write_text("half a")
        print("downloading", flush=True)
        time.sleep(600)

LocalImageBuilder(Path(sys.argv[1]), Hangs()).build(request_for("churn"))
"""


def test_a_build_interrupted_by_a_kill_is_missing_and_can_be_made(builder_home: Path, churn_model: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _HANGS, str(builder_home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as controller:
        assert controller.stdout is not None
        assert controller.stdout.readline().strip() == "downloading"
        controller.send_signal(signal.SIGKILL)
    builder = local_builder(builder_home, {"churn": churn_model})
    assert builder.find(request_for("churn")).state is BuildState.MISSING
    assert not list((builder_home / "building").iterdir())
    assert built(builder, request_for("churn")).state is BuildState.READY
    assert not list((builder_home / "building").iterdir())
    builder.close()


def test_an_image_whose_environment_is_gone_is_missing(builder_home: Path, churn_model: Path) -> None:
    builder = local_builder(builder_home, {"churn": churn_model})
    ready = built(builder, request_for("churn"))
    (builder_home / "environments").unlink()
    assert builder.find(request_for("churn")).state is BuildState.MISSING
    assert LocalImage.find(builder_home, str(ready.image)) is None
    builder.close()


def test_an_image_that_is_not_whole_is_missing_and_is_made_again(empty_home: Path, churn_model: Path) -> None:
    builder = LocalImageBuilder(empty_home, FolderRegistry({"churn": churn_model}), native=True)
    ready = built(builder, request_for("churn"))
    (empty_home / "images" / str(ready.image) / "image.json").write_text("{}")
    assert builder.find(request_for("churn")).state is BuildState.MISSING
    assert built(builder, request_for("churn")).image == ready.image
    assert LocalImage.find(empty_home, str(ready.image)) is not None
    builder.close()


class CompilesBy:
    """A `Provider` of real environments, in which compiling is what a shell script does."""

    def __init__(self, home: Path, script: str) -> None:
        self._real = Environments(home)
        self._python = home / "compiles"
        self._python.write_text(f"#!/bin/sh\n{script}\n")
        self._python.chmod(0o755)

    def provide(self, model: Path, tell: Callable[[str], None], *, native: bool) -> Interpreters:
        return replace(self._real.provide(model, tell, native=True), compiling=self._python, why="")

    def close(self) -> None:
        self._real.close()


def compiled_by(home: Path, model: Path, script: str, seconds: float = 60.0) -> LocalImageBuilder:
    provider = CompilesBy(home, script)
    return LocalImageBuilder(home, FolderRegistry({"churn": model}), provider=provider, compile_seconds=seconds)


@pytest.mark.parametrize(
    ("script", "seconds", "words"),
    [
        ("kill -SEGV $$", 60.0, "ended by SIGSEGV"),
        ("sleep 60 & sleep 60", 0.3, "longer than 0.3 s"),
        ("echo first; echo it is broken >&2; exit 1", 60.0, "it is broken"),
    ],
)
def test_a_model_whose_compiling_ends_badly_is_served_as_it_is(
    empty_home: Path, churn_model: Path, script: str, seconds: float, words: str
) -> None:
    builder = compiled_by(empty_home, churn_model, script, seconds)
    ready = built(builder, request_for("churn"))
    assert (ready.state, ready.proof and ready.proof.compiled) == (BuildState.READY, False)
    assert ready.detail == f"native: {ready.proof and ready.proof.why}"
    assert ready.detail.startswith("native: compiling failed: ")
    assert words in ready.detail
    builder.close()


class FixedSamples:
    """Implements `Samples`: the same for every version."""

    def __init__(self, sample: Sample) -> None:
        self._sample = sample

    def take(self, version: ModelVersion, model: Path) -> Sample:
        return self._sample

    def close(self) -> None:
        pass


CUSTOMERS = Sample("data set customers", ("tenure", "charges", "left"), ((3, 80.5, 1), (30, 20, 0), ("?", 1, 0)))


@pytest.mark.parametrize(
    ("sample", "logged", "told"),
    [
        (CUSTOMERS, 2, '2 rows of data set customers; not fitting: 1, the first by column "tenure": expected'),
        (Sample("data set customers", ("tenure",), ((3,),)), None, "is not used: it has no column charges"),
        (Sample("its source is gone"), None, "no data set: its source is gone"),
    ],
    ids=["read", "other columns", "gone"],
)
def test_rows_that_a_version_has_met_are_part_of_its_proof(
    empty_home: Path, churn_model: Path, sample: Sample, logged: int | None, told: str
) -> None:
    builder = LocalImageBuilder(empty_home, FolderRegistry({"churn": churn_model}), samples=FixedSamples(sample))
    ready = built(builder, request_for("churn"))
    assert ready.proof
    assert ready.proof.compiled
    assert told in ready.proof.data
    (proof,) = (empty_home / "images").glob("*/plan/proof.json")
    assert json.loads(proof.read_text())["rows"].get("logged") == logged
    builder.close()


def test_a_model_that_compiling_cannot_use_fails_with_its_last_words(empty_home: Path, churn_model: Path) -> None:
    builder = compiled_by(empty_home, churn_model, "echo; echo the model is no good >&2; exit 3")
    failed = built(builder, request_for("churn"))
    assert (failed.state, failed.detail) == (BuildState.FAILED, "the model is no good")
    builder.close()


def test_a_model_that_cannot_be_loaded_is_not_built(builder_home: Path, churn_model: Path) -> None:
    broken = shutil.copytree(churn_model, builder_home.parent / "broken")
    (broken / "model.skops").write_bytes(b"no model")
    builder = local_builder(builder_home, {"churn": broken})
    failed = built(builder, request_for("churn"))
    assert failed.state is BuildState.FAILED
    assert "load" in failed.detail
    builder.close()


def test_closing_ends_a_model_that_is_being_compiled(empty_home: Path, churn_model: Path) -> None:
    pids = empty_home / "pids"
    builder = compiled_by(empty_home, churn_model, f"sleep 600 & echo $! > {pids}; wait")
    builder.build(request_for("churn"))
    deadline = time.monotonic() + 60
    while not (pids.exists() and pids.read_text()):
        assert time.monotonic() < deadline, builder.find(request_for("churn"))
        time.sleep(0.02)
    began = time.monotonic()
    builder.close()
    assert time.monotonic() - began < 20
    assert builder.find(request_for("churn")).state is BuildState.MISSING
    assert gone(int(pids.read_text())), "what the model started runs on"


def gone(pid: int) -> bool:
    deadline = time.monotonic() + 5
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_what_is_known_of_a_model_is_kept_with_its_image(builder_home: Path, churn_model: Path) -> None:
    builder = local_builder(builder_home, {"churn": churn_model})
    ready = built(builder, request_for("churn"))
    image = LocalImage.find(builder_home, str(ready.image))
    assert image is not None
    assert ready.proof == image.proof
    told = {document.name: builder.document(document.digest) for document in ready.documents}
    assert json.loads(told["provenance.json"])["subject"] == [{"name": "churn", "digest": {"sha256": ready.image}}]
    assert told["lock.txt"] == (image.model.parent / "lock.txt").read_bytes()
    parts = {part["bom-ref"]: part for part in json.loads(told["sbom.json"])["components"]}
    assert parts["model"]["hashes"] == [{"alg": "SHA-256", "content": digest_of(image.model)}]
    assert sum("purl" in part for part in parts.values()) == told["lock.txt"].count(b"==")
    assert ready.proof.signature
    assert ready.proof.warning == ""
    assert local_builder(builder_home, {}).find(request_for("churn")) == ready
    builder.close()


def test_a_model_without_signature_is_built_with_a_warning(builder_home: Path, bare_model: Path) -> None:
    builder = local_builder(builder_home, {"bare": bare_model})
    ready = built(builder, request_for("bare"))
    assert ready.proof is not None
    assert not ready.proof.compiled
    assert "no signature" in ready.proof.warning
    builder.close()


def test_two_processes_may_build_below_one_home(builder_home: Path, churn_model: Path) -> None:
    registry = Unsteady(churn_model, 9, retryable=True)
    at_work = LocalImageBuilder(builder_home, registry)
    at_work.build(request_for("churn", 9))
    assert registry.asked.wait(20)
    with workshop(builder_home / "building") as folder:
        local_builder(builder_home, {}).close()
        assert folder.exists(), "somebody's work was swept away"
    at_work.close()
