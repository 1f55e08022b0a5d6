"""An engine whose disk is full: a Docker Engine of the test's own on a small file system in memory."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import pytest

from registry_hooks.model_version import ModelVersion
from serving.builds import Builds
from serving.docker_engine import Engine
from serving.engine_errors import EngineError
from serving.environment import Lock
from serving.image import BuildState, ImageError, ImageRequest, ImageStatus, Proof
from serving.image_context import Context, Entry
from serving.made import Made
from tests.fixtures.gateway import until

ROOM, MORE_ROOM = "20m", "200m"
IMAGE_BYTES = 30_000_000

pytestmark = [
    pytest.mark.docker,
    pytest.mark.nightly,
    pytest.mark.skipif(os.getuid() != 0 or not shutil.which("dockerd"), reason="starts dockerd, which takes root"),
]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "data"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={ROOM}", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small(disk: Path, tmp_path: Path) -> Iterator[Engine]:
    socket = tmp_path / "d.sock"
    folders = ("--data-root", str(disk), "--exec-root", str(tmp_path / "exec"), "--pidfile", str(tmp_path / "pid"))
    apart = ("unshare", "--net", "dockerd", "--iptables=false", "--ip-forward=false")  # with no network but its own
    said = tmp_path / "dockerd.log"
    with said.open("wb") as log:
        process = subprocess.Popen([*apart, *folders, "-H", f"unix://{socket}"], stdout=log, stderr=log)
    try:
        until(lambda: "API listen" in said.read_text(), 180)
        with closing(Engine(f"unix://{socket}", "full")) as engine:
            yield engine
    finally:
        process.terminate()
        process.wait(60)


class OneBigFile:
    """`Maker` of an image that is a file without a hole."""

    def __init__(self, engine: Engine, folder: Path) -> None:
        self._engine = engine
        self._file = folder / "weights"
        self._file.write_bytes(os.urandom(IMAGE_BYTES))

    def make(self, request: ImageRequest, folder: Path, tell: Callable[[str], None]) -> Made:
        context = Context("scratch", {"weights": Entry(self._file)})
        try:
            image = self._engine.build(context, "full/big:1", tell)
        except EngineError as error:
            raise ImageError(str(error), retryable=error.retryable) from error
        return Made(image, "0" * 64, "", "0" * 64, Lock("3.11", ""), Proof(False, "nothing compiles it"))

    def holds(self, image: str) -> bool:
        return self._engine.image(image) is not None

    def close(self) -> None:
        """Nothing is under way in it."""


def built(builder: Builds, request: ImageRequest) -> ImageStatus:
    builder.build(request)
    until(lambda: builder.find(request).state is not BuildState.BUILDING, 120)
    return builder.find(request)


def test_a_full_disk_is_said_leaves_nothing_behind_and_is_no_hindrance_later(
    small: Engine, disk: Path, tmp_path: Path
) -> None:
    request = ImageRequest(ModelVersion("big", 1), "elsewhere", "server")
    with closing(Builds(tmp_path / "home", OneBigFile(small, tmp_path))) as builder:
        failed = built(builder, request)
        assert failed.state is BuildState.FAILED
        assert "no space left on device" in failed.detail
        assert small.api.images(all=True) == []
        assert small.containers() == []
        subprocess.run(["mount", "-o", f"remount,size={MORE_ROOM}", str(disk)], check=True)
        assert built(builder, request).state is BuildState.READY
