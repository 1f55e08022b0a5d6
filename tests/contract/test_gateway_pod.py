"""What runs beside Envoy in its pod: tables come in compressed, and the access log goes out, whoever's turn it is."""

from __future__ import annotations

import gzip
import http.client
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest

from monitoring.access_log import AccessLogBlocks
from monitoring.blocks import BlockError, Scale
from monitoring.remote_log import Ask, RemoteLogs
from serving.envoy import Config
from serving.envoy_admin import EnvoyAdmin
from serving.envoy_control import KEY_HEADER
from serving.envoy_process import local_gateway
from serving.envoy_router import EnvoyRouter
from serving.envoy_tables import FileTables
from serving.gateway import Gateway, GatewayFiles
from serving.gateway_pod import PACKED
from serving.revision import Weights
from serving.router import Route, RouterError
from tests.contract.test_access_log import FOLDING, READING, ask, totals
from tests.fixtures.gateway import Upstream, free_port, until

KEY = "the key of this test"


class Mounted:
    """`Tables` as a kubelet mounts a ConfigMap: a link to a folder that is replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self._content: dict[str, Config] = {}
        self._inner = FileTables(GatewayFiles(folder / "lock"))
        self.alone = self._inner.alone
        self._mount()

    def read(self, name: str) -> Config | None:
        return self._content.get(name)

    def write(self, name: str, table: Config) -> None:
        self._content[name] = table
        self._mount()

    def last_words(self) -> str:
        return "nothing"

    def _mount(self) -> None:
        version = self.folder / f"..{len(list(self.folder.iterdir()))}"
        version.mkdir()
        for name, table in self._content.items():
            (version / f"{name}{PACKED}").write_bytes(gzip.compress(json.dumps(table).encode()))
            link = self.folder / f"{name}{PACKED}"
            if not link.is_symlink():
                link.symlink_to(f"..data/{name}{PACKED}")
        fresh = self.folder / "..fresh"
        fresh.symlink_to(version.name)
        fresh.replace(self.folder / "..data")


@dataclass(frozen=True)
class Pod:
    """An Envoy, and beside it what its pod would have."""

    gateway: Gateway
    port: int
    beside: subprocess.Popen[bytes]

    def ask(self, method: str, path: str, key: str = KEY) -> tuple[int, Mapping[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=10)
        try:
            connection.request(method, path, headers={KEY_HEADER: key})
            answer = connection.getresponse()
            return answer.status, {name.lower(): value for name, value in answer.getheaders()}, answer.read()
        except http.client.HTTPException as error:
            raise OSError(str(error)) from error
        finally:
            connection.close()

    @property
    def admin(self) -> EnvoyAdmin:
        def ask(method: str, path: str) -> tuple[int, bytes]:
            status, _, body = self.ask(method, f"/admin{path}")
            return status, body

        return EnvoyAdmin(f"port {self.port}", ask)


@contextmanager
def pod(home: Path, packed: Path, like: Gateway) -> Iterator[Pod]:
    gateway = local_gateway(home, replace(like.settings, port=free_port(), admin_port=free_port()))
    gateway.ensure()
    port = free_port()
    options = ("--packed", packed, "--tables", gateway.files.tables, "--log", gateway.files.access_log)
    ports = ("--port", str(port), "--admin-port", str(gateway.settings.admin_port))
    command = [sys.executable, "-m", "serving.gateway_pod", "serve", *map(str, options), *ports]
    beside = subprocess.Popen(command, env={**os.environ, "GATEWAY_KEY": KEY})
    try:
        made = Pod(gateway, port, beside)
        until(lambda: answers(made))
        yield made
    finally:
        beside.kill()
        beside.wait()
        gateway.stop(drain_seconds=0.0)


def answers(pod: Pod) -> bool:
    try:
        return pod.ask("GET", "/admin/ready")[0] == 200
    except OSError:
        return False


@pytest.fixture
def mounted(tmp_path: Path) -> Mounted:
    return Mounted(tmp_path / "packed")


@pytest.fixture
def pods(own_gateway: Gateway, mounted: Mounted, tmp_path: Path) -> Iterator[tuple[Pod, Pod]]:
    with ExitStack() as running:
        yield tuple(running.enter_context(pod(tmp_path / name, mounted.folder, own_gateway)) for name in ("one", "two"))  # type: ignore[misc]


def split(upstreams: tuple[Upstream, Upstream], weight: int = 50) -> Route:
    ends = {upstream.name: (upstream.address,) for upstream in upstreams}
    shares = dict(zip(ends, (100 - weight, weight), strict=True))
    return Route("churn", Weights(shares), ends, "ro/0", "one-v2")


def router_over(mounted: Mounted, *pods: Pod) -> EnvoyRouter:
    return EnvoyRouter(mounted, pods[0].gateway.settings, lambda: [each.admin for each in pods])


def test_who_has_another_key_is_told_nothing(pods: tuple[Pod, Pod]) -> None:
    for path in ("/log?file=0&offset=0&most=100", "/admin/config_dump"):
        assert pods[0].ask("GET", path, key="another")[0] == 403
    assert pods[0].ask("GET", "/log?file=0")[0] == 400
    assert pods[0].ask("GET", "/nothing")[0] == 404


def test_statistics_are_for_everybody_and_nothing_else_is(pods: tuple[Pod, Pod]) -> None:
    status, _, body = pods[0].ask("GET", "/metrics", key="")
    assert status == 200
    assert b"envoy_server_live{} 1" in body
    assert pods[0].ask("POST", "/metrics", key="")[0] == 403


def test_a_route_is_in_force_once_every_envoy_has_it(
    pods: tuple[Pod, Pod], mounted: Mounted, upstreams: tuple[Upstream, Upstream]
) -> None:
    router, wanted = router_over(mounted, *pods), split(upstreams)
    router.set_weights(wanted)
    assert router.get_weights() == {"churn": wanted}
    for each in pods:
        assert set(ask(each.gateway, 5)) == {200}
    router.set_weights(split(upstreams, 20))
    assert router.get_weights() == {"churn": split(upstreams, 20)}
    router.remove("churn")
    assert router.get_weights() == {}


def test_an_envoy_that_lags_keeps_a_route_from_being_in_force(
    own_gateway: Gateway, mounted: Mounted, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    lagging = Mounted(tmp_path / "lagging")
    with (
        pod(tmp_path / "one", mounted.folder, own_gateway) as one,
        pod(tmp_path / "two", lagging.folder, one.gateway) as two,
    ):
        for tables, each in ((mounted, one), (lagging, two)):
            router_over(tables, each).set_weights(split(upstreams))
        router_over(mounted, one).set_weights(split(upstreams, 20))
        both = EnvoyRouter(mounted, one.gateway.settings, lambda: [one.admin, two.admin], take_seconds=1.0)
        assert both.get_weights() == {"churn": split(upstreams)}
        with pytest.raises(RouterError, match="has not taken the new") as refused:
            both.set_weights(split(upstreams, 30))
        assert refused.value.retryable


def test_without_an_envoy_nothing_is_in_force_and_the_tables_wait(
    mounted: Mounted, own_gateway: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    router = EnvoyRouter(mounted, own_gateway.settings, list)
    router.set_weights(split(upstreams))
    with pytest.raises(RouterError) as refused:
        router.get_weights()
    assert refused.value.retryable
    with pod(tmp_path / "late", mounted.folder, own_gateway) as late:
        until(lambda: router_over(mounted, late).get_weights() == {"churn": split(upstreams)})


def test_the_logs_of_replicas_that_come_and_go_feed_one_rollout(
    pods: tuple[Pod, Pod], mounted: Mounted, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    one, two = pods
    there: dict[str, Ask] = {"one": one.ask, "two": two.ask}
    router_over(mounted, one, two).set_weights(split(upstreams))

    def source() -> AccessLogBlocks:
        return AccessLogBlocks(RemoteLogs(2, lambda: there).logs, tmp_path, folding=FOLDING, reading=READING)

    for each in (one, two, one):
        ask(each.gateway, 40)
        source().pump()
    until(lambda: sum(arm.requests for arm in totals(source(), "ro")) == 120)
    # a large log is begun anew without a line lost
    small = replace(READING, rotate_bytes=1000)
    reading = AccessLogBlocks(RemoteLogs(2, lambda: there).logs, tmp_path, folding=FOLDING, reading=small)
    for _ in range(3):
        ask(one.gateway, 30)
        reading.pump()
        until(one.gateway.files.access_log.exists)
    until(lambda: sum(arm.requests for arm in totals(reading, "ro")) == 210)
    # a replica that goes is followed by the one that takes its place
    with pod(tmp_path / "three", mounted.folder, two.gateway) as three:
        until(lambda: "churn" in router_over(mounted, three).get_weights())
        del there["two"]
        there["three"] = three.ask
        ask(three.gateway, 40)
        until(lambda: sum(arm.requests for arm in totals(reading, "ro")) == 250)
    assert reading.counters()["replaced"] == 1
    assert reading.counters()["garbled"] == 0
    # and one that cannot be read holds everything up, because nobody knows what it has seen
    with pytest.raises(BlockError) as refused:
        reading.pump()
    assert refused.value.retryable


@pytest.mark.parametrize("minutes", [-5, 5])
def test_a_controller_whose_clock_is_far_off_reads_what_one_with_the_right_time_does(
    pods: tuple[Pod, Pod], mounted: Mounted, upstreams: tuple[Upstream, Upstream], tmp_path: Path, minutes: int
) -> None:
    one, _ = pods
    there: dict[str, Ask] = {}
    logs = RemoteLogs(2, lambda: there).logs  # the second one never follows anybody
    reading = AccessLogBlocks(
        logs, tmp_path, folding=FOLDING, reading=READING, clock=lambda: time.time() + 60 * minutes
    )
    router_over(mounted, one).set_weights(split(upstreams))
    reading.prepare("ro", "churn", Scale())
    there["one"] = one.ask
    for _ in range(3):
        ask(one.gateway, 20)
        reading.pump()
    until(lambda: sum(arm.requests for arm in totals(reading, "ro")) == 60)
    assert reading.rate("churn") is not None
    assert {name: count for name, count in reading.counters().items() if count and name in ("stale", "late")} == {}


def test_the_log_can_be_read_to_its_end_when_a_pod_ends(
    pods: tuple[Pod, Pod], mounted: Mounted, upstreams: tuple[Upstream, Upstream]
) -> None:
    one, _ = pods
    router_over(mounted, one).set_weights(split(upstreams))
    one.beside.terminate()
    ask(one.gateway, 5)
    one.gateway.stop(drain_seconds=0.0)
    status, _, lines = one.ask("GET", "/log?file=0&offset=0&most=1000000")
    assert (status, lines.count(b'"UpstreamEnd"')) == (200, 5)
    assert one.beside.wait(30) == 0


def test_draining_waits_for_requests_in_flight(
    pods: tuple[Pod, Pod], mounted: Mounted, upstreams: tuple[Upstream, Upstream]
) -> None:
    one, _ = pods
    router_over(mounted, one).set_weights(split(upstreams))
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.extend(ask(one.gateway, 1, "hang")))
    asking.start()
    until(lambda: one.admin.stat("http.gateway.downstream_rq_active") == "1")
    ports = ("--admin-port", str(one.gateway.settings.admin_port))
    command = [sys.executable, "-m", "serving.gateway_pod", "drain", "--seconds", "0.1", "--most", "60", *ports]
    with subprocess.Popen(command) as draining:
        with pytest.raises(subprocess.TimeoutExpired):
            draining.wait(1.0)
        assert answers == []
        for upstream in upstreams:
            upstream.release.set()
        assert draining.wait(30) == 0
    asking.join()
    for upstream in upstreams:
        upstream.release.clear()
    assert len(answers) == 1


def test_an_address_that_is_none_is_refused(pods: tuple[Pod, Pod]) -> None:
    with httpx.Client(trust_env=False) as client:
        told = client.post(f"http://127.0.0.1:{pods[0].port}/log?file=a&size=1", headers={KEY_HEADER: KEY})
    assert told.status_code == 400
