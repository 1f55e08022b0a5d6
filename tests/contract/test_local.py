"""What is particular to revisions that are processes of this machine."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest

from serving.local import LocalTarget
from serving.local_image import LocalImage
from serving.revision import Revision, RevisionSettings, RevisionState, RevisionStatus
from serving.runtime.model_files import FILE, digest, listed, loaded
from serving.target import TargetError
from tests.contract.test_target import processes_of
from tests.fixtures.revisions import START_SECONDS, LocalInstallation, end_revisions

SLOW = {"dataframe_records": [{"mood": "sleep 60", "value": 1.0}]}


@pytest.fixture(scope="module")
def local(local_installation: LocalInstallation) -> Iterator[LocalInstallation]:
    yield local_installation
    end_revisions(local_installation.home)


@pytest.fixture
def target(local: LocalInstallation, monkeypatch: pytest.MonkeyPatch) -> LocalTarget:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    monkeypatch.setenv("PYTHONPATH", "/nowhere")
    return LocalTarget(local.home, local.log_url)


def eventually(condition: Callable[[], object], seconds: float = START_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def ready(target: LocalTarget, revision: Revision) -> RevisionStatus:
    target.start(revision)
    assert eventually(lambda: target.status()[revision.id].ready), target.status()[revision.id]
    return target.status()[revision.id]


def test_a_revision_has_its_limits_its_own_environment_and_survives_hanging(
    local: LocalInstallation, target: LocalTarget
) -> None:
    settings = RevisionSettings(memory_mb=4000, cpus=0.5, drain_seconds=5, environment=(("TEAM", "growth"),))
    revision = local.revision("moody", 20, settings)
    ready(target, revision)
    (server,) = processes_of(revision)
    assert server.rlimit(psutil.RLIMIT_DATA) == (4000 * 1024 * 1024,) * 2
    assert len(server.cpu_affinity()) == math.ceil(0.5)
    variables = server.environ()
    assert variables["TEAM"] == "growth"
    assert "MLFLOW_TRACKING_TOKEN" not in variables
    assert "/nowhere" not in variables["PYTHONPATH"]

    server.send_signal(signal.SIGSTOP)
    assert eventually(lambda: target.status()[revision.id].state is RevisionState.STARTING, 30)
    looks = 5
    hung = time.monotonic()
    for _ in range(looks):
        target.status()
    assert (time.monotonic() - hung) / looks < 5
    server.send_signal(signal.SIGCONT)
    assert eventually(lambda: target.status()[revision.id].ready, 30)
    target.stop(revision.id)
    assert eventually(lambda: not target.status().get(revision.id))


def test_a_port_that_was_taken_meanwhile_is_replaced(local: LocalInstallation, target: LocalTarget) -> None:
    revision = local.revision("moody", 21, RevisionSettings(drain_seconds=5))
    target.start(revision)
    port = target.status()[revision.id].addresses[0].port
    (server,) = processes_of(revision)
    os.kill(server.pid, signal.SIGKILL)
    assert eventually(lambda: target.status()[revision.id].state is RevisionState.FAILED)
    assert "SIGKILL" in target.status()[revision.id].reason
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        status = ready(target, revision)
    assert status.addresses[0].port != port
    target.stop(revision.id)
    assert eventually(lambda: not target.status().get(revision.id))


def test_what_does_not_end_in_its_drain_time_is_killed(local: LocalInstallation, target: LocalTarget) -> None:
    revision = local.revision("moody", 22, RevisionSettings(drain_seconds=1))
    address = ready(target, revision).addresses[0]
    with ThreadPoolExecutor(1) as pool:
        slow = pool.submit(httpx.post, f"http://{address}/invocations", json=SLOW, timeout=30)
        assert not eventually(slow.done, 0.5)
        target.stop(revision.id)
        assert target.status()[revision.id].state is RevisionState.STOPPING
        assert eventually(lambda: not target.status().get(revision.id), 20)
        assert isinstance(slow.exception(), httpx.HTTPError) or slow.result().status_code >= 500
    assert processes_of(revision) == []
    with socket.socket() as free:
        free.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        free.bind((address.host, address.port))
    assert not (local.home / "revisions" / revision.id).exists()


_STOPS = """
import os, sys
from pathlib import Path
from serving.local import LocalTarget
LocalTarget(Path(sys.argv[1]), "").stop(sys.argv[2])
os._exit(0)
"""


def test_a_stop_is_carried_on_by_the_next_controller(local: LocalInstallation, target: LocalTarget) -> None:
    revision = local.revision("moody", 23, RevisionSettings(drain_seconds=1))
    target.start(revision)
    (server,) = processes_of(revision)
    server.send_signal(signal.SIGSTOP)
    subprocess.run([sys.executable, "-W", "ignore", "-c", _STOPS, str(local.home), revision.id], check=True)
    following = LocalTarget(local.home, local.log_url)
    assert following.status()[revision.id].state is RevisionState.STOPPING
    assert eventually(lambda: not following.status().get(revision.id), 30)
    assert processes_of(revision) == []


def test_a_start_that_was_cut_off_before_anything_ran_can_be_repeated(local: LocalInstallation) -> None:
    revision = local.revision("moody", 24)
    folder = local.home / "revisions" / revision.id
    folder.mkdir(parents=True)
    target = LocalTarget(local.home, local.log_url)
    assert not folder.exists()
    assert revision.id not in target.status()


def altered(home: Path, local: LocalInstallation, revision: Revision, file: str) -> LocalTarget:
    """A target on an installation of its own, in whose image of `revision` one file is another."""
    image = home / "images" / revision.image
    shutil.copytree(local.home / "images" / revision.image, image)
    (home / "environments").symlink_to((local.home / "environments").resolve())
    assert LocalImage.find(home, revision.image) is not None
    (image / file).write_bytes((image / file).read_bytes() + b" ")
    return LocalTarget(home, "")


@pytest.mark.parametrize(
    ("file", "part"),
    [
        ("model/MLmodel", "model"),
        ("plan/plan.json", "plan"),
        ("plan/files.json", "plan"),
        ("server/serving/runtime/__main__.py", "server"),
    ],
)
def test_an_image_that_was_changed_is_not_started(
    local: LocalInstallation, tmp_path: Path, file: str, part: str
) -> None:
    revision = local.revision("churn", 25)
    built = json.loads((local.home / "images" / revision.image / "image.json").read_text())
    target = altered(tmp_path, local, revision, file)
    with pytest.raises(TargetError, match="its image is not as it was built") as refused:
        target.start(revision)
    assert re.search(rf"its {part} has SHA-256 [0-9a-f]{{64}}, not {built[part]}$", str(refused.value))
    assert not refused.value.retryable
    assert target.status() == {}


def test_the_record_of_an_image_vouches_for_itself(local: LocalInstallation, tmp_path: Path) -> None:
    revision = local.revision("churn", 26)
    target = altered(tmp_path, local, revision, "model/MLmodel")
    image = LocalImage.find(tmp_path, revision.image)
    assert image is not None
    record = tmp_path / "images" / revision.image / "image.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"model": digest(listed(image.model))}))
    with pytest.raises(TargetError, match=rf"its record has SHA-256 [0-9a-f]{{64}}, not {revision.image}$"):
        target.start(revision)
    record.write_text("{}")
    with pytest.raises(TargetError, match="is not on this machine"):
        target.start(revision)


def test_what_a_model_writes_when_it_is_run_is_no_part_of_its_image(
    local: LocalInstallation, target: LocalTarget
) -> None:
    """It is Python that is imported, and none of it leaves bytecode beside the files that were approved."""
    revision = local.revision("moody", 27, RevisionSettings(drain_seconds=1))
    image = LocalImage.find(local.home, revision.image)
    assert image is not None
    ready(target, revision)
    assert loaded((image.plan / FILE).read_text()) == listed(image.model)
    assert image.changed == ""
    target.stop(revision.id)
