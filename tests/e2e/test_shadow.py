"""A model whose candidates answer copies of requests before they get any: what clients notice is nothing."""

from __future__ import annotations

import json
from pathlib import Path

from tests.e2e.loop import Loop, failed


def phases(loop: Loop, model: str, version: int) -> list[str]:
    """That the version's rollout went through, in order."""
    events = loop.ask(f"/models/{model}/history?limit=1000")["events"]
    told = [event for event in events if event["kind"] == "phase" and event["version"] == version]
    return [event["text"].split(":")[0] for event in sorted(told, key=lambda event: event["at"])]


def test_copies_find_a_bad_candidate_and_let_a_good_one_through(loop: Loop) -> None:
    # given a live version under traffic
    first = loop.register("shadow-story")
    loop.transition("shadow-story", first, "Production")
    loop.await_state("shadow-story", first, "succeeded")
    with loop.traffic("shadow-story") as results:
        # when a version enters that fails on a fifth of its requests
        bad = loop.register("shadow-story", fails=0.2)
        loop.transition("shadow-story", bad, "Production")
        # then it is found out on copies, before any client's request reaches it
        loop.await_state("shadow-story", bad, "failed")
    assert failed(results) == {}
    assert loop.tags("shadow-story", bad)["promote.reason"].startswith("Worse on copies of requests: of ")
    seen = phases(loop, "shadow-story", bad)
    assert "shadowing" in seen
    assert "progressing" not in seen
    assert loop.served("shadow-story") == str(first)

    with loop.traffic("shadow-story") as results:
        # when a good one enters
        good = loop.register("shadow-story")
        loop.transition("shadow-story", good, "Production")
        # then the canary follows the copies, and it goes live
        loop.await_state("shadow-story", good, "succeeded")
    assert failed(results) == {}
    seen = phases(loop, "shadow-story", good)
    assert seen.index("proving") < seen.index("shadowing") < seen.index("progressing") < seen.index("promoting")
    assert loop.served("shadow-story") == str(good)
    tags = loop.tags("shadow-story", good)
    kept = loop.client.download_artifacts(loop.run_id("shadow-story", good), tags["promote.evidence"])
    record = json.loads(Path(kept).read_text())["shadow"]
    assert record["pairs"] >= 60
    assert record["failed"] == {"both": 0, "candidate": 0, "stable": 0}
