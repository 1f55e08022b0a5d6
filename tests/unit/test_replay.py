"""Replayed requests: the right verdict for every kind of candidate, and clear words for wrong events."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import Arm
from monitoring.ramp import RampPolicy
from monitoring.replay import Decision, Replay, main
from monitoring.replay_event import Event, EventError
from monitoring.replay_policy import ReplayPolicy, ReplayPolicyError, read_replay_policy

QUICK = ReplayPolicy(AnalysisPolicy(margin_points=0.02), RampPolicy(step_min_seconds=1.0, bake_seconds=30.0))


def traffic(
    count: int,
    weight: float,
    *,
    seed: int = 1,
    start: float = 0.0,
    fails: tuple[float, float] = (0.01, 0.01),
    slower: float = 1.0,
    predicts: tuple[float, float] = (0.0, 1.0),
    refuses: float = 0.0,
) -> list[dict[str, Any]]:
    """Events at a hundred requests a second; of pairs, the second is the candidate's."""
    dice, events, t = random.Random(seed), [], start
    for number in range(count):
        t += dice.expovariate(100.0)
        candidate = dice.random() < weight / 100
        latency = dice.lognormvariate(3.0, 0.4) * (slower if candidate else 1.0)
        status = 500 if dice.random() < fails[candidate] else 400 if candidate and dice.random() < refuses else 200
        low, high = predicts if candidate else (0.0, 1.0)
        events.append(
            {
                "id": f"{seed}-{number}",
                "unit": f"{seed}-{number}",
                "arm": "candidate" if candidate else "stable",
                "weight": weight,
                "t": t,
                "done": t + latency / 1000,
                "status": status,
                "latency_ms": latency,
                "prediction": low + (high - low) * dice.random(),
            }
        )
    return events


def canary(weight: float, count: int = 20_000, **how: Any) -> list[dict[str, Any]]:
    """Some traffic before it, then the canary."""
    before = traffic(2_500, 0, seed=2)
    return [*before, *traffic(count, weight, start=before[-1]["t"], **how)]


def decided(events: Iterable[dict[str, Any]], policy: ReplayPolicy = QUICK) -> list[Decision]:
    replay = Replay(policy)
    return [*replay.feed(event(given) for given in events), *replay.end()]


def event(given: dict[str, Any]) -> Event:
    return Event(**{**given, "arm": Arm(given["arm"])})


@pytest.mark.parametrize(
    ("how", "verdict", "blamed"),
    [
        ({}, "pass", ""),
        ({"slower": 0.7, "fails": (0.05, 0.01)}, "pass", ""),
        ({"fails": (0.01, 1.0)}, "fail", "error rate above"),
        ({"fails": (0.01, 0.05)}, "fail", "error rate above"),
        ({"refuses": 0.05}, "fail", "share of refused requests above"),
        ({"slower": 1.5}, "fail", "slower than the stable revision"),
        ({"predicts": (0.5, 0.5)}, "fail", "predictions are different ones"),
        ({"predicts": (0.3, 1.0)}, "fail", "predictions are different ones"),
    ],
    ids=["equal", "better", "dead", "five times the errors", "refuses", "slow", "constant", "shifted"],
)
def test_every_kind_of_candidate_gets_its_verdict(how: dict[str, Any], verdict: str, blamed: str) -> None:
    last = decided(canary(20, **how))[-1]
    assert last["verdict"] == verdict, last["reason"]
    assert blamed in last["reason"]
    assert last["weight"] == {"pass": 100, "fail": 0}[verdict]


LOSSES = ReplayPolicy(replace(QUICK.analysis, weight_errors=0.2, weight_loss=0.1), QUICK.ramp)


@pytest.mark.parametrize(("worse", "verdict"), [(0.0, "pass"), (0.15, "fail")])
def test_a_loss_that_answers_tell_is_compared_where_the_policy_asks(worse: float, verdict: str) -> None:
    """Mean losses of 0.2 and so much more, of answers that are alike else."""
    dice = random.Random(7)
    events = [
        {**one, "loss": min(1.0, dice.random() * 0.4 + worse * (one["arm"] == "candidate"))} for one in canary(20)
    ]
    last = decided(events, LOSSES)[-1]
    assert last["verdict"] == verdict, last["reason"]
    assert ("mean loss above the stable one" in last["reason"]) is bool(worse)
    assert last["metrics"]["loss"]["stable"]["bad"] / last["metrics"]["loss"]["stable"]["n"] == pytest.approx(0.2, 0.1)
    assert "loss" not in decided(events[:4_000])[-1]["metrics"], "the policy does not ask"


def test_a_candidate_that_tells_no_loss_is_not_proved_good_enough() -> None:
    events = [{**one, "loss": 0.2 if one["arm"] == "stable" else None} for one in canary(20, count=6_000)]
    last = decided(events, LOSSES)[-1]
    assert last["verdict"] == "more"
    assert "mean loss below" in last["reason"]


def test_a_decision_has_every_number() -> None:
    last = decided(canary(20, count=3_000))[-1]
    assert set(last) == {"t", "verdict", "weight", "reason", "metrics", "alarms"}
    assert set(last["metrics"]) == {"errors", "refusals", "latency", "predictions"}
    errors = last["metrics"]["errors"]
    assert set(errors) == {"log_e_worse", "log_e_ok", "stable", "candidate", "margin95"}
    assert errors["stable"]["n"] + errors["candidate"]["n"] == 3_000
    assert last["t"] == pytest.approx(max(e["done"] for e in canary(20, count=3_000)))


def test_the_weight_climbs_step_by_step_and_bakes() -> None:
    """A caller that follows the weight, as a data plane would."""
    replay, weights, t = Replay(QUICK), [], 0.0
    for number in range(400):
        events = traffic(100, replay.weight, seed=number + 10, start=t)
        replay.feed(map(event, events))
        t = events[-1]["t"]
        weights.append(replay.weight)
    assert list(dict.fromkeys(weights)) == [5, 20, 50, 95, 100]
    assert replay.end()[-1]["verdict"] == "pass"


def test_a_candidate_that_dies_in_the_bake_is_taken_back() -> None:
    good = canary(50, count=12_000)
    bad = traffic(500, 95, seed=3, start=good[-1]["t"] + 0.1, fails=(0.01, 1.0))
    said = decided([*good, *bad], ReplayPolicy(QUICK.analysis, RampPolicy(step_min_seconds=1.0, bake_seconds=600.0)))
    assert [decision["weight"] for decision in said] == [5, 20, 50, 95, 0, 0]
    assert said[-1]["verdict"] == "fail"


def test_a_candidate_that_hangs_is_found_before_any_time_out() -> None:
    events = canary(20, count=400)
    for hanging in events:
        if hanging["arm"] == "candidate":
            hanging |= {"done": None, "status": None, "latency_ms": None}
    replay = Replay(QUICK)
    said = replay.feed(map(event, events))
    assert said[-1]["verdict"] == "fail"
    assert "slower" in said[-1]["reason"]
    began = next(e["t"] for e in events if e["weight"])
    assert said[-1]["t"] - began < 3.0


@pytest.mark.parametrize("status", ["timeout", "reset"])
def test_requests_without_an_answer_are_errors(status: str) -> None:
    events = canary(20, count=500)
    for broken in events:
        if broken["arm"] == "candidate":
            broken |= {"status": status, "done": None, "latency_ms": 3.0}
    last = decided(events)[-1]
    assert (last["verdict"], "error rate above" in last["reason"]) == ("fail", True)


def test_only_the_first_request_of_a_unit_counts() -> None:
    """One customer who fails on everything is one failure."""
    events = canary(20, count=3_000, fails=(0.0, 0.0))
    for one in events:
        if one["arm"] == "candidate":
            one |= {"unit": "the same", "status": 500}
    last = decided(events)[-1]
    assert last["metrics"]["errors"]["candidate"] == {"n": 1, "bad": 1.0}
    assert last["verdict"] == "more"


def test_a_split_that_is_not_what_was_asked_is_an_alarm_and_no_failure() -> None:
    events = canary(20, count=6_000)
    for told in events:
        told["weight"] = 10 if told["weight"] else 0
    last = decided(events, ReplayPolicy(QUICK.analysis, RampPolicy(steps=(10, 100))))[-1]
    assert last["verdict"] == "more"
    assert "instead of 10 %" in last["alarms"][0]


def test_the_same_events_give_the_same_bits_however_they_are_fed() -> None:
    events = canary(20, count=3_000)
    whole, parts = Replay(QUICK), Replay(QUICK)
    at_once = whole.feed(map(event, events))
    one_by_one = [decision for given in events for decision in parts.feed([event(given)])]
    assert json.dumps(at_once) == json.dumps(one_by_one)
    assert parts.evidence == whole.evidence


def test_from_file_to_file(tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text("model: churn\nrollout: {steps: [20, 100], step_min: 1s, bake: 0}\n")
    text = "\n".join(json.dumps(given) for given in canary(20, count=2_000, fails=(0.01, 0.5)))
    (tmp_path / "events.jsonl").write_text(text)
    command = [sys.executable, "-m", "monitoring.replay", "--policy", "policy.yaml", "events.jsonl"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["verdict"] for line in lines] == ["more", "fail", "fail"]
    assert done.stderr == ""


GOOD = {"id": "1", "arm": "stable", "t": 1.0, "weight": 5, "done": 1.1, "status": 200}


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 1: Input data was truncated"),
        ('{"arm": "stable", "t": 1}', "missing required field `id`"),
        (json.dumps({**GOOD, "arm": "other"}), "Invalid enum value 'other' - at `$.arm`"),
        (json.dumps({**GOOD, "wieght": 5}), "unknown field `wieght`"),
        (json.dumps({**GOOD, "done": 0.5}), "event 1 (1): done: must not be before t, 1, but is 0.5"),
        (json.dumps({**GOOD, "weight": 101}), "weight: must be a percentage from 0 to 100, not 101"),
        (json.dumps({**GOOD, "status": "lost"}), "status: must be an HTTP status, timeout or reset, not 'lost'"),
        (json.dumps({**GOOD, "status": 42}), "status: must be an HTTP status from 100 to 599, not 42"),
        (json.dumps({**GOOD, "latency_ms": -1}), "latency_ms: must be 0 or more, not -1"),
        (json.dumps({**GOOD, "prediction": {}}), "prediction: must be a number, a string, or a list of them, not dict"),
        (json.dumps(GOOD) + "\n" + json.dumps({**GOOD, "t": 0.5}), "event 2 (1): t: must not be before"),
    ],
)
def test_wrong_events_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    (tmp_path / "events.jsonl").write_text(line)
    assert main([str(tmp_path / "events.jsonl")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("analysis: {alpha_rolback: 0.1}", "analysis.alpha_rolback: is not known; did you mean 'alpha_rollback'?"),
        ("analysis: {alpha_rollback: 2}", "analysis.alpha_rollback: must be less than 1, not 2"),
        ("analysis: {weight_errors: 0.9}", "analysis.weight_errors: and the other weights must sum to 1"),
        ("rollout: {steps: [50, 20, 100]}", "rollout.steps: must rise from at least 1 to 100, not [50, 20, 100]"),
        ("rollout: {bake: soon}", "rollout.bake: must be seconds or a duration"),
        ("rollout: 5", "rollout: must be keys and values"),
        ("- 5", "must hold keys and values"),
    ],
)
def test_wrong_policies_are_told_by_their_keys(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "policy.yaml").write_text(text)
    with pytest.raises(ReplayPolicyError) as refused:
        read_replay_policy(tmp_path / "policy.yaml")
    assert str(refused.value).startswith("policy.yaml: ")
    assert said in str(refused.value)


def test_events_must_be_in_order() -> None:
    replay = Replay()
    replay.feed([event(GOOD)])
    with pytest.raises(EventError, match="must not be before"):
        replay.feed([event({**GOOD, "t": 0.0, "done": 0.1})])
