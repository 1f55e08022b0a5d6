"""Copies through a real Envoy: both answers are paired by request id, and no client ever notices a copy."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from monitoring.access_log import AccessLogBlocks, ReadingPolicy
from monitoring.filling import Folding
from monitoring.log_file import LogFile
from monitoring.shadow_blocks import Paired, ShadowSource
from serving.envoy import GatewaySettings
from serving.envoy_process import local_gateway
from serving.envoy_router import router_at
from serving.gateway import Gateway
from serving.revision import Address, Weights
from serving.router import Route
from tests.fakes.blocks import FakeBlocks
from tests.fixtures.gateway import Upstream, free_port, until

FOLDING = Folding(late_seconds=1.5, timeout_seconds=6.0)
READING = ReadingPolicy(rest_seconds=0.0, known_seconds=0.1, timeout_seconds=2.0)
COPIES = 4


@pytest.fixture(scope="module")
def shadowed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Takes four copies at a time; requests time out after 2 s."""
    settings = GatewaySettings(port=free_port(), admin_port=free_port(), request_seconds=2.0, copies=COPIES)
    gateway = local_gateway(tmp_path_factory.mktemp("shadowed"), settings)
    gateway.ensure()
    yield gateway
    gateway.stop(drain_seconds=0.0)


@pytest.fixture
def deaf() -> Iterator[Address]:
    """Takes connections and never reads from them."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen(128)
        yield Address(*taken.getsockname())


@pytest.fixture
def refused() -> Iterator[Address]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield Address(*taken.getsockname())


def serve(gateway: Gateway, stable: Address, candidate: Address, rollout: str, *, copies: bool = True) -> None:
    router = router_at(gateway.files.home, gateway.settings)
    ends, step = {"v1": (stable,), "v2": (candidate,)}, f"{rollout}/shadow" if copies else f"{rollout}/shadowed"
    route = Route("churn", Weights({"v1": 100}), ends, step, "v2", shadow="v2" if copies else None)
    router.set_weights(route)
    until(lambda: router.get_weights().get("churn") == route)


def ask(
    gateway: Gateway, mode: str = "", body: bytes = b"{}", headers: Mapping[str, str] | None = None
) -> tuple[int, str, float]:
    """Status, the server that answered, and seconds."""
    began = time.monotonic()
    url = f"{gateway.url}/models/churn/invocations"
    answer = httpx.post(url, content=body, headers={"mode": mode, **(headers or {})}, timeout=10.0, trust_env=False)
    server = answer.json().get("server", "") if answer.status_code in (200, 500) else ""
    return answer.status_code, server, time.monotonic() - began


def reader(gateway: Gateway, home: Path) -> AccessLogBlocks:
    return AccessLogBlocks(
        [LogFile(gateway.files.access_log, gateway.reopen_log)], home, folding=FOLDING, reading=READING
    )


def told(source: ShadowSource, rollout: str) -> tuple[list[Paired], int]:
    """Every pair, and how many requests made none."""
    blocks = source.pairs(rollout)
    assert [block.id for block in blocks] == list(range(1, len(blocks) + 1))
    return [pair for block in blocks for pair in block.pairs], sum(block.missing for block in blocks)


def settled(source: ShadowSource, rollout: str, requests: int) -> tuple[list[Paired], int]:
    def complete() -> bool:
        pairs, missing = told(source, rollout)
        return len(pairs) + missing >= requests

    until(complete, seconds=15.0)
    return told(source, rollout)


def outcomes(pairs: list[Paired]) -> Counter[tuple[bool, bool]]:
    return Counter((pair.stable.error, pair.candidate.error) for pair in pairs)


def test_answers_are_paired_by_request_at_concurrency(
    shadowed: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    stable, candidate = upstreams
    serve(shadowed, stable.address, candidate.address, "pairs")
    modes = ["500 on one-v2"] * 20 + ["500 on one-v1"] * 5 + ["422 on one-v2"] * 3 + [""] * 172
    with ThreadPoolExecutor(COPIES) as pool:
        answers = [*pool.map(lambda mode: ask(shadowed, mode), modes)]
    assert {server for code, server, _ in answers if code == 200} == {"one-v1"}
    assert Counter(code for code, *_ in answers) == {200: 195, 500: 5}
    pairs, missing = settled(reader(shadowed, tmp_path), "pairs", 200)
    assert missing <= 20, "a copy is not sent while too many are on their way"
    found = outcomes(pairs)
    assert found[True, True] == 0
    assert 20 - missing <= found[False, True] <= 20
    assert 5 - missing <= found[True, False] <= 5
    assert sum(pair.candidate.refused for pair in pairs) <= 3
    assert not any(pair.stable.refused for pair in pairs)
    good = [pair for pair in pairs if not (pair.stable.error or pair.candidate.error or pair.candidate.refused)]
    assert {(row.segment, row.changed, row.difference) for pair in good for row in pair.rows} == {("true", False, 0.0)}
    assert all(0 < answer.latency_ms < 2000 for pair in good for answer in (pair.stable, pair.candidate))


def test_a_copy_says_that_it_is_one(shadowed: Gateway, upstreams: tuple[Upstream, Upstream]) -> None:
    serve(shadowed, upstreams[0].address, upstreams[1].address, "marks")
    ask(shadowed, headers={"name": "marked", "x-promote-mode": "replay"})
    until(lambda: any(headers.get("name") == "marked" for headers in upstreams[1].heard))
    copy = next(headers for headers in upstreams[1].heard if headers.get("name") == "marked")
    assert (copy["x-promote-mode"], copy["x-promote-copy"]) == ("shadow", "marks/shadow")
    original = next(headers for headers in upstreams[0].heard if headers.get("name") == "marked")
    assert not [name for name in original if name.startswith("x-promote-")]
    assert original["host"] == copy["host"]


def test_a_hung_candidate_costs_clients_nothing_and_its_copies_do_not_pile_up(
    shadowed: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(shadowed, upstreams[0].address, upstreams[1].address, "hung")
    with ThreadPoolExecutor(8) as pool:
        answers = [*pool.map(lambda _: ask(shadowed, "hang on one-v2"), range(60))]
    assert {(code, server) for code, server, _ in answers} == {(200, "one-v1")}
    assert max(seconds for *_, seconds in answers) < 1.5, "requests to the candidate time out after 2 s"
    pairs, missing = settled(reader(shadowed, tmp_path), "hung", 60)
    assert outcomes(pairs) == {(False, True): len(pairs)}
    assert COPIES <= len(pairs) < 60
    assert missing == 60 - len(pairs)


def test_a_dead_candidate_costs_clients_nothing(
    shadowed: Gateway, upstreams: tuple[Upstream, Upstream], refused: Address, tmp_path: Path
) -> None:
    serve(shadowed, upstreams[0].address, refused, "dead")
    answers = [ask(shadowed) for _ in range(12)]
    assert {(code, server) for code, server, _ in answers} == {(200, "one-v1")}
    pairs, missing = settled(reader(shadowed, tmp_path), "dead", 12)
    assert (outcomes(pairs), missing) == ({(False, True): 12}, 0)


def test_a_candidate_that_does_not_read_does_not_hold_up_a_large_request(
    shadowed: Gateway, upstreams: tuple[Upstream, Upstream], deaf: Address, tmp_path: Path
) -> None:
    serve(shadowed, upstreams[0].address, deaf, "deaf")
    just = shadowed.settings.copied_bytes
    answers = [ask(shadowed, body=b" " * size) for size in (just, just + 1, 30_000_000)]
    assert {(code, server) for code, server, _ in answers} == {(200, "one-v1")}
    assert max(seconds for *_, seconds in answers) < 1.5
    pairs, missing = settled(reader(shadowed, tmp_path), "deaf", 3)
    assert len(pairs) + missing == 3
    assert missing >= 2, "large requests are not copied"


def test_clients_cannot_make_copies_count(
    shadowed: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(shadowed, upstreams[0].address, upstreams[1].address, "forged", copies=False)
    ask(shadowed, headers={"x-promote-copy": "forged/shadow", "x-promote-mode": "shadow"})
    serve(shadowed, upstreams[0].address, upstreams[1].address, "true")
    ask(shadowed)
    source = reader(shadowed, tmp_path)
    settled(source, "true", 1)
    assert source.pairs("forged") == ()


def test_once_the_stage_is_over_nothing_is_copied(shadowed: Gateway, upstreams: tuple[Upstream, Upstream]) -> None:
    serve(shadowed, upstreams[0].address, upstreams[1].address, "over", copies=False)
    ask(shadowed, headers={"name": "alone"})
    serve(shadowed, upstreams[0].address, upstreams[1].address, "again")
    ask(shadowed, headers={"name": "copied"})
    until(lambda: any(headers.get("name") == "copied" for headers in upstreams[1].heard))
    assert not any(headers.get("name") == "alone" for headers in upstreams[1].heard)


def test_a_reader_that_is_killed_at_any_moment_tells_every_pair_once(
    shadowed: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    serve(shadowed, upstreams[0].address, upstreams[1].address, "killed")
    small = ReadingPolicy(rest_seconds=0.0, chunk_bytes=2000, save_seconds=0.0, timeout_seconds=2.0)
    for _ in range(6):
        for _ in range(5):
            ask(shadowed)
        AccessLogBlocks(
            [LogFile(shadowed.files.access_log, lambda: None)], tmp_path, folding=FOLDING, reading=small
        ).pump()
    pairs, missing = settled(reader(shadowed, tmp_path), "killed", 30)
    assert (len(pairs), missing) == (30, 0)
    assert told(reader(shadowed, tmp_path), "killed") == (pairs, missing)
    first, *rest = reader(shadowed, tmp_path).pairs("killed")
    assert reader(shadowed, tmp_path).pairs("killed", first.id) == tuple(rest)


@pytest.fixture(params=["fake", "log"])
def source(
    request: pytest.FixtureRequest, shadowed: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> ShadowSource:
    """Has pairs of the rollout ``one``."""
    if request.param == "fake":
        fake = FakeBlocks()
        fake.add_pairs("one", [])
        return fake
    serve(shadowed, upstreams[0].address, upstreams[1].address, "one")
    ask(shadowed)
    real = reader(shadowed, tmp_path)
    settled(real, "one", 1)
    return real


def test_what_is_forgotten_does_not_come_back(source: ShadowSource) -> None:
    assert len(source.pairs("one")) == 1
    assert source.pairs("one", 1) == source.pairs("two") == ()
    source.forget("one")
    assert source.pairs("one") == ()
