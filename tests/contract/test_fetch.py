"""A model that is not in the image: the server fetches it when it starts, whatever happens on the way."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from serving.runtime import manifest
from serving.runtime.fetch_parts import PART
from serving.runtime.manifest import of_folder, sha256
from serving.runtime.plan import Column, Plan
from tests.fixtures.artifacts import ArtifactServer, artifacts, enlarged
from tests.fixtures.gateway import free_port, until
from tests.fixtures.scoring import planned

SECONDS = 60.0
"""How long anything here may take on a busy machine."""
MB = 1_000_000
SIZE = 150 * MB
"""Three parts."""
SOME = 16 * MB
"""More than what is on its way when a connection is cut."""
SETTLED = 0.5
"""When nothing has come for so many seconds, no more is on its way."""
WEIGHTS = "data/weights.bin"
BODY = json.dumps({"dataframe_records": [{"mood": "fine", "value": 3.0}]})


@dataclass(frozen=True, slots=True)
class Server:
    """One that may not be ready yet."""

    process: subprocess.Popen[bytes]
    port: int
    log: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def warned(self, part: str) -> bool:
        return any(line["level"] == "warning" and part in line["message"] for line in self.lines)

    def ask(self, path: str) -> httpx.Response:
        return httpx.get(f"http://127.0.0.1:{self.port}{path}", timeout=SECONDS)

    def score(self, body: str) -> httpx.Response:
        url, kind = f"http://127.0.0.1:{self.port}/invocations", {"content-type": "application/json"}
        return httpx.post(url, content=body, headers=kind, timeout=SECONDS)

    def detail(self) -> str:
        """Empty where it does not answer yet."""
        try:
            return str(self.ask("/health").json()["detail"])
        except httpx.TransportError:
            return ""

    def ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        try:
            return self.ask("/ping").status_code == 200
        except httpx.TransportError:
            return False

    def failed(self) -> str:
        """Why it ended by itself."""
        assert self.process.wait(SECONDS) == 1, self.log.read_text()
        (line,) = [line["message"] for line in self.lines if line["level"] == "error"]
        assert line.startswith("the server cannot start: ")
        return str(line)


@dataclass(frozen=True, slots=True)
class Fetching:
    """The process of a server that fetches, alone."""

    process: subprocess.Popen[bytes]
    log: Path

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]

    def doing(self) -> str:
        """The last that it said of that."""
        return str(next((line["doing"] for line in reversed(self.lines) if "doing" in line), ""))

    def warned(self, part: str) -> bool:
        return any(part in line.get("warning", "") for line in self.lines)

    def fetched(self) -> bool:
        assert self.process.wait(SECONDS) == 0, self.log.read_text()
        return "folder" in self.lines[-1]

    def failed(self) -> str:
        """Why it gave up."""
        assert self.process.wait(SECONDS) == 1
        return str(self.lines[-1]["error"])


@dataclass(slots=True)
class Host:
    """A machine with a cache, an image without the model, and a store that has it."""

    folder: Path
    source: Path
    store: ArtifactServer
    plan: Path
    cache: Path
    started: list[Server | Fetching] = field(default_factory=list)

    @property
    def image(self) -> Path:
        return self.folder / "image"

    @property
    def model(self) -> Path:
        """Where the model is once it is there."""
        listed = manifest.read(self.image)
        assert listed is not None
        return self.cache / listed.digest

    def build(self) -> None:
        of_folder(self.source, self.store.url).write(self.image)

    def start(self, *options: str, **environment: str) -> Server:
        port, log = free_port(), self.folder / f"server-{len(self.started)}.log"
        where = ["--model", str(self.image), "--plan", str(self.plan), "--port", str(port)]
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.runtime", *where, *options],
                env={**os.environ, "LINGER": "0.05", "MODEL_CACHE": str(self.cache), **environment},
                stderr=output,
                process_group=0,
            )
        self.started.append(server := Server(process, port, log))
        return server

    def fetch(self, tries: int = 10) -> Fetching:
        """Only the part of a server that fetches."""
        log = self.folder / f"fetching-{len(self.started)}.log"
        about = (str(self.image), str(self.cache), str(tries))
        with log.open("wb") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "serving.runtime.fetch_worker", *about],
                stdin=subprocess.PIPE,
                stdout=output,
                process_group=0,
            )
        self.started.append(fetching := Fetching(process, log))
        return fetching

    def whole(self) -> bool:
        """Whether what is in the cache is the model."""
        return of_folder(self.model, self.store.url) == manifest.read(self.image)

    def end(self) -> None:
        for server in self.started:
            if server.process.poll() is None:
                os.killpg(server.process.pid, signal.SIGKILL)
                server.process.wait()
            if server.process.stdin is not None:
                server.process.stdin.close()


@contextmanager
def a_host(folder: Path, model: Path, size: int, plan: Path) -> Iterator[Host]:
    source = enlarged(model, folder / "source", size)
    with artifacts(source) as store:
        host = Host(folder, source, store, plan, folder / "cache")
        host.build()
        try:
            yield host
        finally:
            host.end()


@pytest.fixture
def host(churn_model: Path, tmp_path: Path) -> Iterator[Host]:
    with a_host(tmp_path, churn_model, SIZE, planned(churn_model)) as host:
        yield host


@pytest.fixture
def small_cache(host: Host) -> Iterator[Path]:
    """A file system of 200 MB for the cache."""
    host.cache.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(host.cache)], capture_output=True)
    if mounted.returncode:
        pytest.skip("a small file system can only be mounted by root")
    yield host.cache
    host.end()
    assert until(lambda: subprocess.run(["umount", str(host.cache)]).returncode == 0)


def held(host: Host, size: int) -> None:
    """Wait until as much is sent as may be, and has had time to arrive."""
    assert until(lambda: host.store.sent >= size, SECONDS)
    journal = next((host.cache / f"{host.model.name}.part" / "held").rglob("weights.bin"))
    assert until(lambda: time.time() - journal.stat().st_mtime > SETTLED, SECONDS)


def written(weights: Path, size: int) -> list[bytes]:
    """All of a large file that is no hole: a piece at each megabyte."""
    with weights.open("rb") as file:
        return [os.pread(file.fileno(), 1024, at) for at in range(0, size, 1 << 20)]


def fill(path: Path) -> None:
    """Write to a file until there is no room."""
    with path.open("wb", buffering=0) as file, suppress(OSError):
        while True:
            file.write(bytes(MB))


@pytest.mark.nightly
def test_two_gigabytes_whose_connections_are_cut_are_fetched_once_for_two_servers(
    churn_model: Path, tmp_path: Path
) -> None:
    size = 2000 * MB
    with a_host(tmp_path, churn_model, size, planned(churn_model)) as host:
        host.store.cut_at = size // 2
        servers = [host.start(), host.start()]
        shown = until(lambda: {detail for server in servers if " % of 2.0 GB" in (detail := server.detail())}, SECONDS)
        assert {detail.split(":")[0] for detail in shown} & {"fetching the model", "another server fetches the model"}
        assert all(until(server.ready, SECONDS) for server in servers)
        assert not host.store.cut_at  # they were cut
        assert host.store.sent < size + PART
        assert any(server.warned("broke off") for server in servers)
        assert written(host.model / WEIGHTS, size) == written(host.source / WEIGHTS, size)
        assert [path.name for path in host.cache.iterdir() if path.suffix != ".lock"] == [host.model.name]


def test_a_server_says_how_far_it_is_until_it_serves_what_it_fetched(moody_model: Path, tmp_path: Path) -> None:
    plan = tmp_path / "plan"
    Plan("python_function", True, (Column("mood", "string"), Column("value", "double"))).write(plan)
    with a_host(tmp_path, moody_model, SIZE, plan) as host:
        _says_how_far_it_is(host)


def _says_how_far_it_is(host: Host) -> None:
    host.store.hold_at = SIZE // 2
    server = host.start()
    held(host, SIZE // 2)
    assert until(lambda: re.fullmatch(r"fetching the model: (49|5\d) % of 150\.0 MB", server.detail()), SECONDS)
    told = server.ask("/health")
    assert (told.status_code, told.json()["status"]) == (503, "starting")
    assert told.json()["fetched"] in range(49, 60)
    assert server.ask("/health/live").status_code == 200
    assert server.ask("/v2/health/ready").status_code == server.ask("/ping").status_code == 503
    refused = server.score(BODY)
    assert (refused.status_code, refused.json()["message"]) == (503, server.detail())
    lines = until(lambda: [line for line in server.lines if "megabytes_per_second" in line], SECONDS)
    assert lines[-1]["percent"] in range(49, 60)
    host.store.release()
    assert until(server.ready, SECONDS)
    assert server.ask("/health").json()["detail"] == ""
    assert server.score(BODY).json() == {"predictions": [3.0]}
    assert host.whole()
    server.process.terminate()
    assert server.process.wait(SECONDS) == 0


def test_several_front_processes_fetch_once(churn_model: Path, tmp_path: Path) -> None:
    with a_host(tmp_path, churn_model, 5 * MB, planned(churn_model)) as host:
        host.store.hold_at = 1
        server = host.start(WORKERS="2", PARITY_SHARE="0")
        assert until(lambda: server.detail().startswith("fetching the model: "), SECONDS)
        assert len(psutil.Process(server.process.pid).children()) == 1
        host.store.release()
        assert until(server.ready, SECONDS)
        assert len(psutil.Process(server.process.pid).children()) == 2
        assert [request["path"] for request in host.store.heard].count(f"/{WEIGHTS}") == 1
        server.process.terminate()
        assert server.process.wait(SECONDS) == 0


def test_a_source_without_ranges_is_read_in_one_go_and_again_after_a_cut(host: Host) -> None:
    host.store.ranges, host.store.cut_at = False, SIZE // 2
    fetching = host.fetch()
    assert fetching.fetched()
    assert fetching.warned("asked again in 0.5 s")
    assert host.store.sent > SIZE * 1.4
    assert [request["path"] for request in host.store.heard].count(f"/{WEIGHTS}") == 2
    assert host.whole()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_one_that_ends_in_the_middle_keeps_what_it_has_for_the_next(host: Host, number: signal.Signals) -> None:
    host.store.hold_at = SIZE // 2
    first = host.start()
    held(host, SIZE // 2)
    (fetching,) = psutil.Process(first.process.pid).children()
    began = time.monotonic()
    if number is signal.SIGTERM:
        os.killpg(first.process.pid, number)
    else:
        first.process.kill()
    assert first.process.wait(SECONDS) == (0 if number is signal.SIGTERM else -number)
    assert time.monotonic() - began < 15
    assert until(lambda: not fetching.is_running() or fetching.status() == psutil.STATUS_ZOMBIE)
    assert not host.model.exists()
    host.store.release()
    assert host.fetch().fetched()
    assert host.store.sent < SIZE + SOME
    assert host.whole()


def test_one_that_waits_goes_on_where_the_one_that_fetched_was_killed(host: Host) -> None:
    host.store.hold_at = SIZE // 2
    first = host.fetch()
    held(host, SIZE // 2)
    second = host.fetch()
    assert until(lambda: second.doing() == "another server fetches the model", SECONDS)
    first.process.kill()
    first.process.wait()
    host.store.release()
    assert second.fetched()
    assert host.store.sent < SIZE + SOME
    assert host.whole()


def test_where_there_is_too_little_room_nothing_is_fetched(host: Host, small_cache: Path) -> None:
    (small_cache / "another").write_bytes(bytes(100 * MB))
    reason = host.start().failed()
    free = shutil.disk_usage(small_cache).free
    listed = manifest.read(host.image)
    assert listed is not None
    assert f"the cache {small_cache} is full: {listed.size} bytes are wanted for the model" in reason
    assert f"{free // MB}" in reason.rsplit(",", 1)[1]
    assert host.store.heard == []


def test_a_disk_that_fills_in_the_middle_is_said_and_what_is_there_is_kept(host: Host, small_cache: Path) -> None:
    host.store.hold_at = SIZE // 2
    server = host.start()
    held(host, SIZE // 2)
    another = small_cache / "another"
    fill(another)
    host.store.release()
    reason = server.failed()
    assert f"the cache {small_cache} is full: " in reason
    assert reason.endswith(" bytes are wanted for the model, 0 are free")
    assert not host.model.exists()
    another.unlink()
    assert host.fetch().fetched()
    assert host.store.sent < SIZE + SOME
    assert host.whole()


def test_a_file_with_a_wrong_checksum_is_fetched_anew_once(host: Host) -> None:
    listed = sha256(host.source / WEIGHTS)
    with (host.source / WEIGHTS).open("r+b") as weights:
        weights.write(b"other")
    reason = host.start(FETCH_TRIES="1").failed()
    assert f"{WEIGHTS} has the sha256 {sha256(host.source / WEIGHTS)}, and {listed} is listed" in reason
    assert 2 * SIZE <= host.store.sent < 2 * SIZE + SOME
    assert not host.model.exists()
    host.build()
    host.store.spoils = 1
    fetching = host.fetch()
    assert fetching.fetched()
    assert fetching.warned("it is fetched anew")
    assert host.whole()


def test_what_was_damaged_in_the_cache_is_fetched_anew_and_nothing_else(host: Host) -> None:
    assert host.fetch().fetched()
    host.store.heard.clear()
    with (host.model / WEIGHTS).open("r+b") as weights:
        weights.write(b"other")
    (host.model / "MLmodel").write_text("")
    fetching = host.fetch()
    assert fetching.fetched()
    assert fetching.warned(f"{WEIGHTS} in the cache is not what the manifest lists")
    assert {request["path"] for request in host.store.heard} == {f"/{WEIGHTS}", "/MLmodel"}
    assert host.whole()


def test_a_source_that_does_not_answer_is_asked_again_and_one_that_says_no_is_not(host: Host) -> None:
    host.store.refuses = 503
    fetching = host.fetch(tries=2)
    assert f"cannot be fetched from {host.store.url}: " in (reason := fetching.failed())
    assert reason.endswith(": answered with 503 Service Unavailable")
    assert fetching.warned("asked again in 0.5 s")
    host.store.refuses = 403
    fetching = host.fetch()
    assert fetching.failed().endswith(": answered with 403 Forbidden")
    assert not fetching.warned("asked again")


def test_a_manifest_without_a_cache_is_said(host: Host) -> None:
    assert "MODEL_CACHE names no folder" in host.start(MODEL_CACHE="").failed()
