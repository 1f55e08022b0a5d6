"""Logged requests come before clients: a version that cannot answer them never meets one."""

from __future__ import annotations

import json
from pathlib import Path

from serving import prediction_log
from tests.e2e.canary_kinds import payload
from tests.e2e.loop import Loop, failed, until
from tests.e2e.test_shadow import phases


def logged(loop: Loop, model: str, version: int, mode: str = "live") -> int:
    return len(prediction_log.read(str(loop.home / "predictions"), model, version=version, mode=mode))


def test_a_version_that_takes_other_types_never_meets_a_client(loop: Loop) -> None:
    # given a live version that was asked for fractions
    model = "replay-story"
    first = loop.register(model)
    loop.transition(model, first, "Production")
    loop.await_state(model, first, "succeeded")
    with loop.traffic(model, payload=payload) as results:
        until(lambda: logged(loop, model, first) >= 100, 60, "requests are in the log")
        # when a version enters that takes whole numbers only, which its example is
        trap = loop.register(model, example=1)
        loop.transition(model, trap, "Production")
        # then it is refused by name and value of the column, and nobody noticed
        loop.await_state(model, trap, "failed")
    assert failed(results) == {}
    tags = loop.tags(model, trap)
    assert tags["promote.reason"].startswith("gate replay: it refused ")
    assert 'column "x", row 0: expected a whole number, got 0.' in tags["promote.reason"]
    assert "progressing" not in phases(loop, model, trap)
    assert logged(loop, model, trap) == 0
    kept = loop.client.download_artifacts(loop.run_id(model, trap), tags["promote.evidence"])
    gate = next(gate for gate in json.loads(Path(kept).read_text())["gates"] if gate["name"] == "replay")
    assert not gate["passed"]
    assert all(isinstance(one["inputs"]["x"][0], float) for one in gate["data"]["failed"])

    # when a version enters that takes them, which asks for more requests than it was given so far
    with loop.traffic(model, payload=payload) as results:
        good = loop.register(model)
        loop.transition(model, good, "Production")
        # then it has answered the logged ones before it goes live through the canary
        loop.await_state(model, good, "succeeded")
    assert failed(results) == {}
    assert loop.served(model) == str(good)
    until(lambda: logged(loop, model, good, "replay") >= 100, 30, "what was replayed is logged as such")
