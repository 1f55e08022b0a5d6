"""What the answers to logged requests say of a candidate, as tables; and how the engine goes by it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from monitoring.logged_requests import LoggedRequest
from monitoring.replay_gate import ALPHA, Answer, Finding, Outcome, Replayed, conclude
from monitoring.replay_gate_policy import ReplayGatePolicy
from monitoring.ruler import Prediction
from pipelines.advance import advance
from pipelines.evidence import record
from pipelines.rollout import GateResult, Phase
from tests.unit.test_rollout import NOW, rollout, seen

POLICY = ReplayGatePolicy()
AT = datetime(2026, 1, 1, tzinfo=UTC)
TRAP = "column 'visits' of row 0 must be a whole number, not 1.5"


def pair(
    candidate: Outcome = Outcome.ANSWERED,
    stable: Outcome = Outcome.ANSWERED,
    *,
    ms: tuple[float, float] = (10.0, 10.0),
    said: tuple[Prediction, Prediction] = ((1.0,), (1.0,)),
    steady: bool = False,
) -> Replayed:
    """One request; of pairs of values the second is the candidate's."""
    status = {Outcome.ANSWERED: 200, Outcome.REFUSED: 400, Outcome.FAILED: 500}
    words = "" if candidate is Outcome.ANSWERED else TRAP
    first = Answer(stable, ms[0], status[stable], prediction=said[0])
    second = Answer(candidate, ms[1], status[candidate], words, said[1])
    return Replayed("7", AT, {"visits": [1.5]}, first, second, steady)


def concluded(replayed: Sequence[Replayed], policy: ReplayGatePolicy = POLICY) -> Finding:
    return conclude(policy, 2.0, replayed, 1.0)


GOOD = [pair()] * 490
REFUSED, FAILED = pair(Outcome.REFUSED, steady=True), pair(Outcome.FAILED, steady=True)
FLAKY, SPARED = pair(Outcome.FAILED), pair(stable=Outcome.FAILED)
CHANGED = pair(said=((1.0,), (2.0,)))


@pytest.mark.parametrize(
    ("replayed", "policy", "problem"),
    [
        (GOOD, POLICY, ""),
        ([], POLICY, ""),
        ([*GOOD, REFUSED], POLICY, f"it refused 1 of 491 requests that the stable version answers; request 7: {TRAP}"),
        ([*GOOD, FAILED, REFUSED], POLICY, "it failed on or refused 2 of 492 requests"),
        ([*GOOD, FAILED], replace(POLICY, most_failed=1), ""),
        ([*GOOD, FAILED], replace(POLICY, values=False), "status 500"),
        ([*GOOD, *[FLAKY] * 5], POLICY, ""),
        ([*GOOD, *[FLAKY] * 10], POLICY, "10 of 500 requests failed on it now and then"),
        ([*GOOD, *[FLAKY] * 10, *[SPARED] * 8], POLICY, ""),
        ([*GOOD, *[pair(Outcome.REFUSED, Outcome.REFUSED)] * 50], POLICY, ""),
        ([pair(ms=(10.0, 21.0))] * 100, POLICY, ""),
        ([pair(ms=(10.0, 23.0))] * 100, POLICY, "it is slower than tolerated on 100 of 100 requests: 23 ms in"),
        ([pair(ms=(10.0, 13.0))] * 100, replace(POLICY, latency_tolerance=0.0), "slower than tolerated"),
        ([*GOOD, *[CHANGED] * 60], POLICY, ""),
        ([*GOOD, *[CHANGED] * 60], replace(POLICY, most_changed=0.1), "10.9% of the decisions are other ones"),
    ],
)  # fmt: skip
def test_what_follows(replayed: list[Replayed], policy: ReplayGatePolicy, problem: str) -> None:
    found = concluded(replayed, policy)
    assert bool(found.problems) == bool(problem)
    assert problem in "; ".join(found.problems)


def test_what_was_compared_and_what_could_not_be_is_told() -> None:
    left = [pair(Outcome.REFUSED, Outcome.REFUSED)] * 10
    assert concluded([*GOOD, *left]).summary == (
        "490 logged requests, 10 ms in the middle (stable version 10 ms), 0.0% of 490 decisions are other ones; "
        "10 could not be compared, because the stable version did not take them"
    )
    assert concluded(left).summary.startswith("none of 10 logged requests could be sent again")


@pytest.mark.parametrize("values", [True, False])
def test_failed_requests_are_kept_with_their_values_only_where_the_policy_says_so(values: bool) -> None:
    kept = json.dumps(concluded([*GOOD, *[REFUSED] * 9], replace(POLICY, rows=3, values=values)).data)
    assert kept.count('"request_id": "7"') == 3
    assert ("1.5" in kept, TRAP in kept) == (values, values)


@settings(max_examples=20, deadline=None)
@given(st.integers(min_value=1, max_value=150))
def test_equal_versions_fail_by_signs_as_seldom_as_promised(pairs: int) -> None:
    """Exact: of so many pairs that differ, each is against the candidate with one half."""
    blamed = [k for k in range(pairs + 1) if concluded([FLAKY] * k + [SPARED] * (pairs - k)).problems]
    assert sum(comb(pairs, k) for k in blamed) / 2**pairs < ALPHA


def test_a_table_a_table_with_gaps_and_arrays_can_be_asked_for_again() -> None:
    table = LoggedRequest("r", AT, {"a": [1, 2], "b": [None, None]})
    split, filled, arrays = (json.loads(body) for body in table.bodies)
    assert split == {"dataframe_split": {"columns": ["a", "b"], "data": [[1, None], [2, None]]}}
    assert filled == {"dataframe_split": {"columns": ["a"], "data": [[1], [2]]}}
    assert arrays == {"inputs": {"a": [1, 2], "b": [None, None]}}
    assert json.loads(LoggedRequest("r", AT, {"0": [1, 3], "1": [2, 4]}).bodies[2]) == {"inputs": [[1, 2], [3, 4]]}
    assert json.loads(LoggedRequest("r", AT, {"0": [[1, 2]]}).bodies[2]) == {"inputs": [[1, 2]]}


def test_the_engine_waits_and_tells_how_far_it_is_then_goes_by_the_result() -> None:
    proving = rollout(Phase.PROVING)
    waiting = advance(proving, seen(gates=None, gates_progress="50 of 500 logged requests replayed"), NOW)
    assert (waiting.phase, waiting.reason) == (Phase.PROVING, "50 of 500 logged requests replayed")
    data = concluded([REFUSED]).data
    failing = GateResult("replay", passed=False, detail="it refused 1 of 1 requests", data=data)
    back = advance(waiting, seen(gates=(failing,)), NOW)
    assert (back.phase, back.reason) == (Phase.ROLLING_BACK, "gate replay: it refused 1 of 1 requests")
    assert json.loads(record(back))["gates"][-1]["data"]["failed"][0]["inputs"] == {"visits": [1.5]}
