"""The access log of a real Envoy becomes blocks in which every request counts once, in the right arm."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from benchmarks.gateway import request_lines
from monitoring.access_log import COUNTERS, AccessLogBlocks, ReadingPolicy
from monitoring.block_store import BlockStore, OutrunError, Progress
from monitoring.blocks import ArmCount, BlockError, BlockSource, Scale, Seen
from monitoring.filling import Folding
from monitoring.log_counters import LogCounters
from monitoring.log_file import LogFile
from monitoring.ruler import KEPT, LEAST
from monitoring.traffic import Recent
from serving.envoy_process import local_gateway
from serving.envoy_router import router_at
from serving.gateway import Gateway
from serving.revision import Address, Weights
from serving.router import Route
from tests.fakes.blocks import FakeBlocks
from tests.fixtures.gateway import Upstream, free_port, until

ROOT = Path(__file__).parents[2]
FOLDING = Folding(requests=10, least_seconds=0.0, seconds=0.2, most_seconds=0.5, late_seconds=1.5, timeout_seconds=10.0)
READING = ReadingPolicy(patience_seconds=0.5, rest_seconds=0.0, known_seconds=0.1)


@pytest.fixture
def running(own_gateway: Gateway) -> Gateway:
    own_gateway.ensure()
    return own_gateway


@pytest.fixture
def refused() -> Iterator[Address]:
    """A port that refuses connections: bound, and not listening."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield Address(*taken.getsockname())


def reader(gateway: Gateway, home: Path, reading: ReadingPolicy = READING) -> AccessLogBlocks:
    return AccessLogBlocks(
        [LogFile(gateway.files.access_log, gateway.reopen_log)], home, folding=FOLDING, reading=reading
    )


def serve(gateway: Gateway, stable: Address, candidate: Address, weight: int, step: str, shield_bytes: int = 0) -> None:
    router = router_at(gateway.files.home, gateway.settings)
    shares = {name: share for name, share in (("v1", 100 - weight), ("v2", weight)) if share}
    route = Route("churn", Weights(shares), {"v1": (stable,), "v2": (candidate,)}, step, "v2", shield_bytes)
    router.set_weights(route)
    until(lambda: router.get_weights().get("churn") == route)


def ask(gateway: Gateway, times: int = 1, mode: str = "", timeout: float = 10.0) -> list[int]:
    """Status per request, 0 where there was none."""
    url, codes = f"{gateway.url}/models/churn/invocations", []
    with httpx.Client(timeout=timeout, trust_env=False) as client:
        for _ in range(times):
            try:
                codes.append(client.post(url, json={}, headers={"mode": mode}).status_code)
            except httpx.TransportError:
                codes.append(0)
    return codes


def totals(source: BlockSource, rollout: str) -> tuple[ArmCount, ArmCount]:
    """Requests and errors of both arms over all settled blocks."""
    blocks = source.blocks(rollout, 0)
    assert [block.id for block in blocks] == list(range(1, len(blocks) + 1))
    arms = ([block.stable for block in blocks], [block.candidate for block in blocks])
    stable, candidate = (ArmCount(sum(a.requests for a in arm), sum(a.errors for a in arm)) for arm in arms)
    return stable, candidate


def settles(source: BlockSource, rollout: str, stable: tuple[int, int], candidate: tuple[int, int]) -> None:
    wanted = (ArmCount(*stable), ArmCount(*candidate))
    until(lambda: sum(arm.requests for arm in totals(source, rollout)) >= sum(arm.requests for arm in wanted))
    assert totals(source, rollout) == wanted


def settles_entities(source: AccessLogBlocks, units: int, familiar: int) -> None:
    until(lambda: sum(arm.requests for arm in totals(source, "ro")) == units)
    until(lambda: (source.blocks("ro"), source.counters()["familiar"])[1] == familiar)
    assert sum(arm.requests for arm in totals(source, "ro")) == units


def test_every_way_a_request_can_end_counts_once_in_its_arm(
    running: Gateway, upstreams: tuple[Upstream, Upstream], refused: Address, tmp_path: Path
) -> None:
    stable, candidate = (upstream.address for upstream in upstreams)
    serve(running, stable, candidate, 0, "ro/0")
    ask(running, 7)
    serve(running, stable, candidate, 100, "ro/1")
    assert ask(running, 5) == [200] * 5
    assert ask(running, 2, "500") == [500] * 2
    assert ask(running, 2, "reset") == [503] * 2
    assert ask(running, 1, "half") == [0]
    assert ask(running, 1, "hang") == [504]
    assert ask(running, 2, "hang", timeout=0.1) == [0, 0], "clients that leave at once are no evidence"
    assert ask(running, 1, "hang", timeout=1.0) == [0], "one that waited long is"
    serve(running, stable, refused, 100, "ro/2")
    assert ask(running, 3) == [503] * 3
    settles(reader(running, tmp_path), "ro", stable=(7, 0), candidate=(15, 10))
    assert {block.step for block in reader(running, tmp_path).blocks("ro", 0)} == {0, 1, 2}


def test_both_arms_of_a_split_share_blocks(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    ask(running, 300)
    source = reader(running, tmp_path)
    until(lambda: sum(arm.requests for arm in totals(source, "ro")) == 300)
    both = [block for block in source.blocks("ro", 0) if block.stable.requests and block.candidate.requests]
    assert len(both) > 10
    assert all(block.stable.errors == block.candidate.errors == 0 for block in both)


def test_of_an_entity_its_first_request_counts_also_after_a_crash(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    url = f"{running.url}/models/churn/invocations"
    names = [f"entity-{number}@example.org" for number in range(20)]
    with httpx.Client(trust_env=False) as client:
        for times in range(3):
            for name in names:
                assert client.post(url, json={}, headers={"x-entity-id": name}).status_code == 200
            source = reader(running, tmp_path)
            settles_entities(source, 20, 20 * times)
    assert all(arm.requests for arm in totals(source, "ro"))
    assert any(block.familiar for block in source.blocks("ro"))
    kept = (tmp_path / "blocks.sqlite3").read_bytes()
    assert b"example.org" not in kept
    source.forget("ro")
    assert reader(running, tmp_path).blocks("ro") == ()


def test_only_scoring_requests_count(running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 100, "ro/0")
    for path in ("models/churn/ping", "models/churn/version", "v2/models/churn/ready", "models/nobody/invocations"):
        httpx.get(f"{running.url}/{path}", trust_env=False)
    httpx.post(f"{running.url}/v2/models/churn/infer", json={}, trust_env=False)
    ask(running, 4)
    settles(reader(running, tmp_path), "ro", stable=(0, 0), candidate=(5, 0))


def test_a_reader_that_is_killed_at_any_moment_goes_on(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    small = ReadingPolicy(rest_seconds=0.0, chunk_bytes=2000)
    for _ in range(6):
        ask(running, 40)
        reader(running, tmp_path, small).pump()
    source = reader(running, tmp_path)
    until(lambda: sum(arm.requests for arm in totals(source, "ro")) == 240)
    assert reader(running, tmp_path).blocks("ro", 0) == source.blocks("ro", 0)
    assert source.blocks("ro", 3) == source.blocks("ro", 0)[3:]


READ_ON = """
import sys
from pathlib import Path
from monitoring.access_log import COUNTERS, AccessLogBlocks, ReadingPolicy
from monitoring.log_file import LogFile
log = LogFile(Path(sys.argv[1]), print)
source = AccessLogBlocks([log], Path(sys.argv[2]), reading=ReadingPolicy(0.5, 0.0, chunk_bytes=3000))
print("reading", flush=True)
while True:
    source.pump()
"""


def test_kill_nine_in_mid_reading_loses_and_doubles_nothing(tmp_path: Path) -> None:
    log = tmp_path / "access.log"
    written, begun = 0, time.time() - 60
    for kill in range(6):
        with log.open("a") as file:
            file.writelines(request_lines(number, begun + number / 100) for number in range(written, written + 500))
        written += 500
        command = [sys.executable, "-c", READ_ON, str(log), str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"reading\n"
            with suppress(subprocess.TimeoutExpired):
                process.wait(0.02 * kill)
            process.kill()
    source = AccessLogBlocks([LogFile(log, lambda: None)], tmp_path, reading=READING)
    assert totals(source, "rollout") == (ArmCount(2700, 0), ArmCount(300, 0))


def test_two_readers_of_one_log_count_nothing_twice(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    first, second = reader(running, tmp_path), reader(running, tmp_path)
    for source in (first, second, first, second):
        ask(running, 20)
        source.pump()
    until(lambda: sum(arm.requests for arm in totals(first, "ro")) == 80)
    assert totals(second, "ro") == totals(first, "ro")


def test_a_log_that_is_begun_anew_loses_nothing(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    source = reader(running, tmp_path, ReadingPolicy(rest_seconds=0.0, rotate_bytes=20_000))
    sizes = []
    for _ in range(10):
        ask(running, 40)
        source.pump()
        sizes.append(running.files.access_log.stat().st_size if running.files.access_log.exists() else 0)
    until(lambda: sum(arm.requests for arm in totals(source, "ro")) == 400)
    assert max(sizes) < 80_000, "the log is bounded"


def test_what_was_under_way_when_envoy_died_is_no_evidence(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 100, "ro/0")
    ask(running, 3)
    source = reader(running, tmp_path)
    with socket.create_connection((running.settings.host, running.settings.port)) as client:
        client.sendall(b"POST /models/churn/invocations HTTP/1.1\r\nhost: x\r\nmode: hang\r\ncontent-length: 0\r\n\r\n")
        until(lambda: running.files.access_log.read_text().count("UpstreamPoolReady") == 4)
        pid = json.loads(running.files.record.read_text())["pid"]
        os.kill(pid, signal.SIGKILL)
        assert client.recv(100) == b""
    until(lambda: running.files.access_log.read_text().count("GatewayStart") == 2)
    running.ensure()
    ask(running, 2)
    settles(source, "ro", stable=(0, 0), candidate=(5, 0))


def test_garbled_lines_are_counted_and_skipped(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 100, "ro/0")
    ask(running, 2)
    until(lambda: running.files.access_log.read_text().count("UpstreamEnd") == 2)
    copy = tmp_path / "copy.log"
    lines = running.files.access_log.read_bytes().splitlines(keepends=True)
    copy.write_bytes(
        b"".join([b"{not json}\n", b'{"cut": \n', b"[1]\n", *lines, *lines, *reversed(lines), b'{"type":'])
    )
    source = AccessLogBlocks([LogFile(copy, lambda: None)], tmp_path, folding=FOLDING, reading=READING)
    settles(source, "ro", stable=(0, 0), candidate=(2, 0))
    counted = source.counters()
    assert {name: counted[name] for name in ("garbled", "cut", "repeated", "disordered")} == {
        "garbled": 1,
        "cut": 2,
        "repeated": 4,
        "disordered": 4,
    }


def test_what_was_seen_before_is_the_ruler_of_a_rollout(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 0, "")
    ask(running, LEAST)
    source = reader(running, tmp_path)
    until(lambda: running.files.access_log.read_text().count("UpstreamEnd") == LEAST)
    source.prepare("ro", "churn", Scale())
    source.prepare("ro", "churn", Scale(9.0, 9.0))
    serve(running, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    ask(running, 20)
    ask(running, 4, "500")
    source = reader(running, tmp_path)
    until(lambda: sum(arm.requests for arm in totals(source, "ro")) == 24)
    blocks = source.blocks("ro")
    assert sum(sum(arm.ranks) for block in blocks for arm in block.latency or ()) == 24
    assert [len(arm) for block in blocks for arm in block.predictions or ()] == [2] * 2 * len(blocks)
    assert sum(sum(arm) for block in blocks for arm in block.predictions or ()) == sum(
        arm.requests - arm.errors for block in blocks for arm in (block.stable, block.candidate)
    )
    losses = [arm for block in blocks for arm in block.losses or ()]
    assert (sum(arm.requests for arm in losses), sum(arm.total for arm in losses)) == (20, 5.0)


def test_several_envoys_feed_one_rollout(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    settings = replace(running.settings, port=free_port(), admin_port=free_port())
    second = local_gateway(tmp_path / "second", settings)
    second.ensure()
    try:
        for gateway in (running, second):
            serve(gateway, upstreams[0].address, upstreams[1].address, 50, "ro/0")

        def both() -> AccessLogBlocks:
            logs = [LogFile(each.files.access_log, each.reopen_log) for each in (running, second)]
            return AccessLogBlocks(logs, tmp_path, folding=FOLDING, reading=READING)

        for gateway in (running, second, running, second):
            ask(gateway, 60)
            both().pump()
        source = both()
        until(lambda: sum(arm.requests for arm in totals(source, "ro")) == 240)
        assert {block.step for block in source.blocks("ro")} == {0}
        assert source.counters()["lines"] == 2 * 240 + 2
    finally:
        second.stop(drain_seconds=0.0)


class Written:
    """A log of Envoy's form, whose clock stands still until it is asked to go on, and a reader of it."""

    def __init__(self, home: Path, others: Sequence[Path] = ()) -> None:
        self.home = home
        self.home.mkdir(exist_ok=True)
        self.log = home / "access.log"
        self.now = 1_700_000_000.0
        self.requests = 0
        self._others = others
        self.source = self.again()

    def again(self) -> AccessLogBlocks:
        """A reader that begins where the last one ended, as after a crash."""
        logs = [LogFile(self.log, self._reopen), *(LogFile(path, lambda: None) for path in self._others)]
        self.source = AccessLogBlocks(logs, self.home, reading=READING, clock=lambda: self.now)
        return self.source

    def write(self, requests: int, log: Path | None = None) -> bytes:
        """So many requests within a second, and what the log gained."""
        numbers = range(self.requests, self.requests + requests)
        text = "".join(request_lines(n, self.now + (n - self.requests) / requests) for n in numbers).encode()
        self.requests += requests
        self.now += 1.0
        self.append(text, log)
        return text

    def append(self, text: bytes, log: Path | None = None) -> None:
        with (log or self.log).open("ab") as file:
            file.write(text)

    def settled(self) -> int:
        """Requests in blocks after all waiting."""
        self.now += 100.0
        return sum(arm.requests for arm in totals(self.source, "rollout"))

    def _reopen(self) -> None:
        self.log.touch()


def test_a_log_that_is_truncated_is_read_from_its_beginning(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.write(100)
    written.source.pump()
    os.truncate(written.log, 0)
    written.write(10)
    written.source.pump()
    os.truncate(written.log, 0)
    written.write(300)
    assert written.settled() == 410
    assert written.source.counters()["truncated"] == 2, "also where it has grown beyond what was read"


def test_a_log_that_vanishes_is_followed_by_the_next_one(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.write(50)
    written.source.pump()
    written.log.rename(tmp_path / "elsewhere")
    written.write(50)
    assert written.settled() == 100
    assert written.source.counters()["replaced"] == 1


def test_a_log_that_cannot_be_read_is_read_later(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.write(50)
    text = written.log.read_bytes()
    written.log.unlink()
    written.log.mkdir()
    with pytest.raises(BlockError, match="cannot be read"):
        written.source.pump()
    written.log.rmdir()
    written.log.write_bytes(text)
    assert written.settled() == 50
    assert written.source.counters()["unread"] == 1


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file of this process may grow beyond `limit` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_on_a_full_disk_nothing_is_half_done(tmp_path: Path) -> None:
    written = Written(tmp_path)
    written.write(100)
    written.now += 10.0
    before = written.source.blocks("rollout")
    assert sum(block.stable.requests for block in before) > 50
    written.write(2000)
    written.now += 10.0
    with full_disk((tmp_path / "blocks.sqlite3").stat().st_size):
        for _ in range(2):
            with pytest.raises(BlockError, match="cannot be kept"):
                written.source.pump()
    assert written.source.blocks("rollout")[: len(before)] == before
    assert written.settled() == 2100
    assert written.source.counters()["unsaved"] == 2
    assert written.again().blocks("rollout") == written.source.blocks("rollout")


@pytest.mark.parametrize("restart", [False, True])
def test_lines_that_come_again_count_once(tmp_path: Path, restart: bool) -> None:
    written = Written(tmp_path)
    text = written.write(100)
    written.now += 10.0
    assert sum(block.stable.requests + block.candidate.requests for block in written.source.blocks("rollout")) == 100
    if restart:
        written.again()
    written.append(text)
    assert written.settled() == 100
    assert written.settled() == 100
    written.append(text)
    assert written.settled() == 100
    counted = written.source.counters()
    assert (counted["repeated"], counted["stale"]) == (200, 200)


def test_a_line_cut_by_a_crash_of_envoy_costs_one_line(tmp_path: Path) -> None:
    written = Written(tmp_path)
    text = written.write(20)
    written.log.write_bytes(text[:-50])
    written.source.pump()
    written.append(b'\n{"type": "GatewayStart", "start": %.1f}\n' % written.now)
    written.write(20)
    assert written.settled() == 39, "the last request ended with the gateway, and nobody knows how"
    assert written.source.counters()["cut"] == 1


def test_bursts_before_a_rollout_are_said_by_its_first_block(tmp_path: Path) -> None:
    written, calm = Written(tmp_path), Written(tmp_path / "calm")
    for second in range(400):
        for one, failing in ((written, second % 50 < 2), (calm, second % 50 < 0)):
            text = "".join(request_lines(second * 20 + n, one.now + n / 20) for n in range(1, 10)).encode()
            text = text.replace(b'"step": "rollout/0"', b'"step": null')
            one.append(text.replace(b'"code": 200', b'"code": 500') if failing else text)
            one.now += 1.0
    for one in (written, calm):
        one.source.pump()
        one.source.prepare("rollout", "churn", Scale())
    (said,) = written.source.blocks("rollout")
    assert (said.id, said.stable, said.candidate) == (1, ArmCount(), ArmCount())
    assert said.bursts is not None
    assert said.bursts > 3
    assert calm.source.blocks("rollout") == ()
    written.again().prepare("rollout", "churn", Scale())
    assert written.source.blocks("rollout") == (said,), "said once"
    written.requests = 20_000
    written.write(50)
    assert written.settled() == 50
    assert [block.id for block in written.source.blocks("rollout")][:2] == [1, 2]


def test_what_was_put_right_is_told_to_prometheus(tmp_path: Path) -> None:
    written, registry = Written(tmp_path), CollectorRegistry()
    LogCounters(written.source.counters, registry)
    text = written.write(50)
    written.append(b"{nonsense}\n" + text)
    assert written.settled() == 50
    told = {name: registry.get_sample_value(f"promote_log_{name}_total") for name in COUNTERS}
    assert (told["garbled"], told["repeated"], told["disordered"], told["cut"]) == (1, 50, 50, 0)
    assert told["lines"] == 200
    page = generate_latest(registry).decode()
    assert all(f"# HELP promote_log_{name}_total {words}" in page for name, words in COUNTERS.items())


def test_the_guide_has_every_counter() -> None:
    guide = (ROOT / "docs" / "canary.md").read_text()
    assert all(f"| `{name}` | {words} |" in guide for name, words in COUNTERS.items())


def test_who_was_away_finds_the_same_blocks(tmp_path: Path) -> None:
    (tmp_path / "away").mkdir()
    present, away = Written(tmp_path), Written(tmp_path / "away")
    for written in (present, away):
        written.source.pump()
        for _ in range(40):
            written.write(50)
            if written is present:
                written.source.pump()
        assert written.settled() == 2000
    assert away.source.blocks("rollout") == present.source.blocks("rollout")
    assert [written.source.counters()["away"] for written in (present, away)] == [1, 1]


def test_histories_in_the_file_are_bounded_and_keep_the_last(tmp_path: Path) -> None:
    store = BlockStore(tmp_path / "blocks.sqlite3")
    for serial in range(4):
        seen = [Seen(float(3000 * serial + number), (0.5, "a", None, True), 12.5, True) for number in range(3000)]
        store.save(serial, Progress({}, history={("churn", "v1"): seen}))
    parts = [part for _, _, part in store.load().history]
    assert [len(part) for part in parts] == [KEPT, 3000]
    assert parts[0][-1] == Seen(8999.0, (0.5, "a", None, True), 12.5, error=True)
    store.save(4, Progress({}, superfluous=[("churn", "v1")]))
    assert store.load().history == []
    with pytest.raises(OutrunError):
        store.save(4, Progress({}))


def test_the_last_revisions_of_a_model_are_remembered() -> None:
    recent = Recent(patience_ms=500.0)
    for number in range(5):
        recent.remember("churn", f"v{number}", [Seen(1.0)])
    recent.remember("other", "v0", [Seen(1.0)])
    recent.remember("churn", "v0", [Seen(1.0)])
    assert recent.superfluous() == [("churn", "v2"), ("churn", "v1")]


def test_several_logs_share_one_ruler_and_one_numbering(tmp_path: Path) -> None:
    other = tmp_path / "other.log"
    written = Written(tmp_path, [other])
    for number in range(60):
        written.write(20, other if number % 3 else None)
        written.source.pump()
        if number % 10 == 0:
            written.again()
    assert written.settled() == 1200
    blocks = written.source.blocks("rollout")
    scored = sum(sum(arm.ranks) for block in blocks for arm in block.latency or ())
    assert 700 < scored < 1000, "from when one log had told of enough requests of the stable revision"


def test_the_rate_is_that_of_scoring_requests(
    running: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    source = reader(running, tmp_path)
    assert source.rate("churn") is None
    serve(running, upstreams[0].address, upstreams[1].address, 0, "")
    ask(running, 30)
    assert until(lambda: source.rate("churn") or 0.0) > 1
    assert reader(running, tmp_path).rate("churn") is not None, "known after a restart too"
    assert source.rate("nobody") is None


def fake(gateway: Gateway, upstreams: tuple[Upstream, Upstream], home: Path) -> BlockSource:
    source = FakeBlocks()
    for _ in range(3):
        source.add("ro", 0, ArmCount(8, 0), ArmCount(2, 0))
    return source


def real(gateway: Gateway, upstreams: tuple[Upstream, Upstream], home: Path) -> BlockSource:
    gateway.ensure()
    serve(gateway, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    ask(gateway, 100)
    return reader(gateway, home)


@pytest.mark.parametrize("make", [fake, real])
def test_a_source_forgets_a_rollout_for_good(
    make: Callable[[Gateway, tuple[Upstream, Upstream], Path], BlockSource],
    own_gateway: Gateway,
    upstreams: tuple[Upstream, Upstream],
    tmp_path: Path,
) -> None:
    source = make(own_gateway, upstreams, tmp_path)
    blocks = until(lambda: found if len(found := source.blocks("ro", 0)) >= 3 else ())
    assert [block.id for block in blocks] == list(range(1, len(blocks) + 1))
    assert source.blocks("ro", 1)[: len(blocks) - 1] == blocks[1:]
    assert source.blocks("another", 0) == ()
    source.forget("ro")
    source.forget("ro")
    assert source.blocks("ro", 0) == ()


@pytest.mark.parametrize("how", ["refuses", "answers 500"])
def test_what_a_shielded_candidate_fails_on_is_its_failure_and_nobody_notices(
    running: Gateway, tmp_path: Path, upstreams: tuple[Upstream, Upstream], refused: Address, how: str
) -> None:
    source = reader(running, tmp_path)
    stable, candidate = upstreams[0].address, refused if how == "refuses" else upstreams[1].address
    serve(running, stable, candidate, 50, "ro/0", shield_bytes=100_000)
    mode = "" if how == "refuses" else "500 on one-v2"
    assert ask(running, 60, mode) == [200] * 60
    until(lambda: sum(arm.requests for arm in totals(source, "ro")) == 60)
    by_stable, by_candidate = totals(source, "ro")
    assert by_stable.errors == 0
    assert by_candidate.errors == by_candidate.requests > 0
    assert until(lambda: source.rate("churn")) is not None
    assert source.counters()["shielded"] == by_candidate.errors


def test_what_no_server_has_seen_is_tried_at_another_replica(
    running: Gateway, upstreams: tuple[Upstream, Upstream], refused: Address
) -> None:
    router = router_at(running.files.home, running.settings)
    route = Route("churn", Weights({"v1": 100}), {"v1": (upstreams[0].address, refused)})
    router.set_weights(route)
    until(lambda: router.get_weights().get("churn") == route)
    upstreams[0].heard.clear()
    assert set(ask(running, 40)) == {200}
    assert len(upstreams[0].heard) == 40


@pytest.mark.parametrize("asked", [{}, {"x-envoy-retry-on": "5xx", "x-envoy-max-retries": "9"}], ids=["", "asked for"])
def test_what_fails_on_the_stable_revision_is_not_tried_again_whoever_asks_for_it(
    running: Gateway, upstreams: tuple[Upstream, Upstream], asked: dict[str, str]
) -> None:
    stable, candidate = (upstream.address for upstream in upstreams)
    serve(running, stable, candidate, 50, "ro/0", shield_bytes=100_000)
    for upstream in upstreams:
        upstream.heard.clear()
    url, headers = f"{running.url}/models/churn/invocations", {"mode": "500 on one-v1", **asked}
    codes = Counter(httpx.post(url, json={}, headers=headers).status_code for _ in range(40))
    heard = [len(upstream.heard) for upstream in upstreams]
    assert codes == {500: heard[0], 200: heard[1]}
    assert sum(heard) == 40


def test_a_request_that_is_too_large_is_not_shielded(running: Gateway, upstreams: tuple[Upstream, Upstream]) -> None:
    serve(running, upstreams[0].address, upstreams[1].address, 50, "ro/0", shield_bytes=1000)
    url = f"{running.url}/models/churn/invocations"
    with httpx.Client(timeout=10.0, trust_env=False) as client:
        large = [client.post(url, content=b"x" * 50_000, headers={"mode": "500 on one-v2"}) for _ in range(40)]
    assert {answer.status_code for answer in large} == {200, 500}
    assert {answer.json()["server"] for answer in large if answer.status_code == 500} == {"one-v2"}
