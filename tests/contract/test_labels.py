"""Labels of answers that came through a real Envoy: found by the id that the answer carried, counted once, and kept."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from monitoring.access_log import AccessLogBlocks
from monitoring.blocks import Scale
from monitoring.label_policy import LabelMode, LabelPolicy
from monitoring.labels import REQUESTS, EvidenceSource, Kept, Label, Labelled
from monitoring.log_file import LogFile
from serving.gateway import Gateway
from tests.contract.test_access_log import FOLDING, READING, serve
from tests.fakes.blocks import FakeBlocks
from tests.fixtures.gateway import Upstream, until

WAITS = LabelPolicy(LabelMode.GATE, wait_seconds=3600.0)


def asked(gateway: Gateway, count: int, mode: str = "") -> dict[str, str]:
    """The server that answered, by request id."""
    url = f"{gateway.url}/models/churn/invocations"
    with httpx.Client(timeout=10.0, trust_env=False) as client:
        answers = [client.post(url, json={}, headers={"mode": mode}) for _ in range(count)]
    return {answer.headers["x-request-id"]: answer.json().get("server", "") for answer in answers}


def reader(gateway: Gateway, home: Path, clock: Callable[[], float] = time.time) -> AccessLogBlocks:
    log = gateway.files.access_log
    return AccessLogBlocks([LogFile(log, gateway.reopen_log)], home, folding=FOLDING, reading=READING, clock=clock)


def settled(source: AccessLogBlocks) -> int:
    return sum(block.stable.requests + block.candidate.requests for block in source.blocks("ro"))


def test_labels_find_their_answers(own_gateway: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path) -> None:
    own_gateway.ensure()
    source = reader(own_gateway, tmp_path)
    source.prepare("ro", "churn", Scale(), WAITS)
    serve(own_gateway, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    # given answers of 0.5 by both, and some requests that fail on both
    answers = asked(own_gateway, REQUESTS + 20)
    asked(own_gateway, 10, "500")
    stable = [key for key, server in answers.items() if server == "one-v1"]
    candidate = [key for key in answers if key not in stable]
    # when every answer turns out to be wrong by the candidate's and right by the stable one's label, one label twice
    told = [Label(key, 0, 0.5) for key in stable] + [Label(key, 0, 0.75) for key in candidate]
    early = source.keep_labels(told[:50])
    until(lambda: settled(source) == 130, 30.0)
    late = source.keep_labels(told)
    assert (early.new + late.new, late.repeated) == (120, 50)
    # then about the first hundred are told, as their blocks ended, and the rest waits for the rest of its block
    (block,) = until(lambda: source.labelled("ro"), 30.0)
    assert REQUESTS <= block.stable.answers + block.candidate.answers <= len(answers)
    assert block.stable == Labelled(block.stable.answers, block.stable.answers, 0.0)
    assert block.candidate == Labelled(block.candidate.answers, block.candidate.answers, block.candidate.answers)
    # and whoever reads on finds the same, and goes on where it was
    again = reader(own_gateway, tmp_path)
    assert again.labelled("ro") == (block,)
    assert again.labelled("ro", block.id) == ()
    more = asked(own_gateway, REQUESTS)
    again.keep_labels([Label(key, 0, 0.5) for key in more])
    until(lambda: [block.id for block in again.labelled("ro")] == [1, 2], 30.0)
    assert source.counters()["unlabelled"] == 0


def test_what_is_not_labelled_is_waited_for_so_long(
    own_gateway: Gateway, upstreams: tuple[Upstream, Upstream], tmp_path: Path
) -> None:
    own_gateway.ensure()
    ahead = [0.0]
    source = reader(own_gateway, tmp_path, lambda: time.time() + ahead[0])
    source.prepare("ro", "churn", Scale(), WAITS)
    serve(own_gateway, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    asked(own_gateway, REQUESTS)
    until(lambda: settled(source) == REQUESTS, 30.0)
    assert source.labelled("ro") == ()
    ahead[0] = WAITS.wait_seconds + 1.0
    (block,) = until(lambda: source.labelled("ro"), 30.0)
    assert (block.stable.labelled, block.candidate.labelled) == (0, 0)
    assert block.stable.answers + block.candidate.answers == REQUESTS


def fake(gateway: Gateway, upstreams: tuple[Upstream, Upstream], home: Path) -> EvidenceSource:
    source = FakeBlocks()
    source.prepare("ro", "churn", Scale(), WAITS)
    source.add_labelled("ro", Labelled(60, 60, 0.0), Labelled(40, 40, 0.0))
    source.keep_labels([Label("known", 0, 1.0)])
    return source


def real(gateway: Gateway, upstreams: tuple[Upstream, Upstream], home: Path) -> EvidenceSource:
    gateway.ensure()
    source = reader(gateway, home)
    source.prepare("ro", "churn", Scale(), WAITS)
    serve(gateway, upstreams[0].address, upstreams[1].address, 50, "ro/0")
    source.keep_labels([Label(key, 0, 0.5) for key in asked(gateway, REQUESTS)])
    source.keep_labels([Label("known", 0, 1.0)])
    return source


@pytest.mark.parametrize("make", [fake, real])
def test_a_source_of_labels(
    make: Callable[[Gateway, tuple[Upstream, Upstream], Path], EvidenceSource],
    own_gateway: Gateway,
    upstreams: tuple[Upstream, Upstream],
    tmp_path: Path,
) -> None:
    source = make(own_gateway, upstreams, tmp_path)
    (block,) = until(lambda: source.labelled("ro"), 30.0)
    assert (block.id, block.stable.answers + block.candidate.answers) == (1, REQUESTS)
    assert source.labelled("ro", 1) == source.labelled("another") == ()
    assert source.keep_labels([Label("known", 0, 2.0), Label("known", 1, 2.0), Label("new", 0, loss=0.5)]) == Kept(
        2, 1, 0
    )
    source.forget("ro")
    assert source.labelled("ro") == ()
