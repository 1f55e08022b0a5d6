"""The shadow stage: copies first, as tables of what follows from saved and seen; and how its pairs are made."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from datetime import timedelta
from io import StringIO

import pytest
from rich.console import Console

from monitoring.blocks import Arm
from monitoring.filling import Folding, Record
from monitoring.log_entry import Entry
from monitoring.ruler import Prediction
from monitoring.shadow_blocks import Answer, Paired, Row, ShadowBlock
from monitoring.shadow_evidence import ShadowEvidence
from monitoring.shadow_pairs import Pairing
from monitoring.shadow_policy import ShadowMode, ShadowPolicy
from monitoring.shadow_reading import Shadows, answer_of
from monitoring.shadow_rows import rows
from pipelines.advance import advance
from pipelines.cli_views import rollout_view
from pipelines.interruptions import deadline
from pipelines.live import Live, upkeep
from pipelines.reconcile import SetWeights, reconcile
from pipelines.rollout import Goal, Phase, Rollout, RolloutPolicy, Seen
from pipelines.shadowing import ahead
from pipelines.status import rollout_status
from serving.revision import RevisionState, Weights
from serving.router import Route
from tests.unit.test_rollout import (
    ADDRESS,
    CANDIDATE,
    LATER,
    NOW,
    PASSED,
    POLICY,
    STABLE,
    intent,
    rollout,
    route,
    seen,
    status,
)

BEFORE = replace(POLICY, shadow=ShadowPolicy(ShadowMode.BEFORE, requests=20, max_seconds=300.0))
INSTEAD = replace(POLICY, shadow=ShadowPolicy(ShadowMode.INSTEAD, requests=20, max_seconds=300.0))
COPYING = Route("churn", Weights.all_to(STABLE), {**ADDRESS}, "r/shadow", candidate=CANDIDATE.id, shadow=CANDIDATE.id)
ENDED = Route("churn", Weights.all_to(STABLE), {STABLE.id: ADDRESS[STABLE.id]}, "r/shadowed")


def shadowing(policy: RolloutPolicy = BEFORE, **changes: object) -> Rollout:
    stage = rollout(Phase.SHADOWING, policy=policy, steered=True, shadow=ShadowEvidence.start(policy.analysis))
    return replace(stage, **changes)  # type: ignore[arg-type]


def copied(pairs: int = 0, *, bad: bool = False, first: int = 1, in_force: Route = COPYING, **changes: object) -> Seen:
    pair = Paired(Answer(error=False, refused=False, latency_ms=9.0), Answer(bad, refused=False, latency_ms=9.0))
    blocks = (ShadowBlock(first, "r", (pair,) * pairs),) if pairs else ()
    world = seen(routes={"churn": in_force}, pairs=blocks)
    return replace(world, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("mode", "canary_seconds", "then"),
    [
        (ShadowMode.OFF, 1e6, Phase.PROGRESSING),
        (ShadowMode.BEFORE, None, Phase.SHADOWING),
        (ShadowMode.INSTEAD, None, Phase.SHADOWING),
        (ShadowMode.AUTO, None, Phase.PROGRESSING),
        (ShadowMode.AUTO, 3599.0, Phase.PROGRESSING),
        (ShadowMode.AUTO, 3601.0, Phase.SHADOWING),
    ],
)
def test_copies_come_first_where_the_policy_says_so(
    mode: ShadowMode, canary_seconds: float | None, then: Phase
) -> None:
    proving = rollout(Phase.PROVING, policy=replace(POLICY, shadow=ShadowPolicy(mode)))
    after = advance(proving, seen(gates=PASSED, canary_seconds=canary_seconds), NOW)
    assert (after.phase, after.steered) == (then, True)
    assert (after.shadow is not None) == (then is Phase.SHADOWING)
    assert (after.evidence is not None) == (then is Phase.PROGRESSING)
    assert after.weight == (0 if then is Phase.SHADOWING else 5)


@pytest.mark.parametrize(
    "changes", [{"stable": None}, {"intent": intent(Goal.RESTORE)}, {"intent": intent(Goal.READY)}], ids=str
)
def test_nothing_is_copied_where_nothing_is_compared(changes: dict[str, object]) -> None:
    proving = rollout(Phase.PROVING, policy=BEFORE, **changes)
    assert advance(proving, seen(gates=PASSED), NOW).phase in (Phase.PROMOTING, Phase.SUCCEEDED)


def test_all_traffic_stays_and_the_candidate_gets_copies() -> None:
    asked = [action for action in reconcile(shadowing(), seen()) if isinstance(action, SetWeights)]
    assert asked == [SetWeights(COPYING)]
    assert not [action for action in reconcile(shadowing(), copied()) if isinstance(action, SetWeights)]


def test_a_candidate_that_is_not_ready_gets_no_copies() -> None:
    starting = {STABLE.id: status(STABLE), CANDIDATE.id: status(CANDIDATE, RevisionState.STARTING)}
    assert not [a for a in reconcile(shadowing(), seen(revisions=starting)) if isinstance(a, SetWeights)]


def test_a_worse_candidate_never_gets_a_request() -> None:
    after = advance(shadowing(), copied(30, bad=True), NOW)
    assert after.phase is Phase.ROLLING_BACK
    assert after.reason.startswith("Worse on copies of requests: of ")
    (back,) = [action for action in reconcile(after, copied()) if isinstance(action, SetWeights)]
    assert (back.route.weights, back.route.shadow, back.route.step) == (COPYING.weights, None, "r/back")
    assert advance(after, copied(), NOW).phase is Phase.ROLLING_BACK, "copies are still sent"
    assert advance(after, seen(0, "r/back"), NOW).phase is Phase.FAILED


def test_the_canary_begins_once_copies_are_seen_to_have_ended() -> None:
    stage = advance(shadowing(), copied(19), NOW)
    assert (stage.phase, stage.unshadowing) == (Phase.SHADOWING, False)
    over = advance(stage, copied(1, first=2), NOW)
    assert (over.phase, over.unshadowing) == (Phase.SHADOWING, True)
    assert [action for action in reconcile(over, copied()) if isinstance(action, SetWeights)] == [SetWeights(ENDED)]
    assert advance(over, copied(), NOW).phase is Phase.SHADOWING
    begun = advance(over, copied(in_force=ENDED), LATER)
    assert (begun.phase, begun.step, begun.unshadowing, begun.entered) == (Phase.PROGRESSING, 0, False, LATER)
    assert begun.evidence is not None
    assert begun.shadow is not None
    (asked,) = [action for action in reconcile(begun, copied(in_force=ENDED)) if isinstance(action, SetWeights)]
    assert (asked.route.weights, asked.route.shadow) == (route(5).weights, None)


def test_too_few_requests_end_the_stage_by_time() -> None:
    stage = shadowing()
    assert not advance(stage, copied(3), NOW + timedelta(seconds=299)).unshadowing
    over = advance(stage, copied(3), NOW + timedelta(seconds=300))
    assert over.unshadowing
    assert over.reason.startswith("Nothing decided on copies of requests: of 3 requests")


def test_a_gateway_that_does_not_follow_ends_the_rollout() -> None:
    stage = shadowing(unshadowing=True)
    late = NOW + timedelta(seconds=deadline(stage) + 1)
    after = advance(stage, copied(), late)
    assert (after.phase, after.reason[:21]) == (Phase.ROLLING_BACK, "shadowing took longer")


@pytest.mark.parametrize(("pairs", "then"), [(1500, Phase.BAKING), (100, Phase.PROGRESSING)], ids=["proved", "not"])
def test_what_stands_instead_of_the_canary_needs_a_proof(pairs: int, then: Phase) -> None:
    stage = advance(shadowing(INSTEAD), copied(pairs), LATER)
    assert stage.unshadowing == (then is Phase.BAKING), "it waits for the proof, not for the requests"
    over = advance(stage, copied(), NOW + timedelta(seconds=300))
    begun = advance(over, copied(in_force=ENDED), NOW + timedelta(seconds=301))
    assert begun.phase is then
    assert begun.decided == (then is Phase.BAKING)
    assert begun.evidence is not None


def test_what_stands_instead_of_the_canary_and_does_not_bake_is_promoted() -> None:
    unbaked = replace(INSTEAD, bake_seconds=0.0)
    stage = advance(shadowing(unbaked), copied(1500), LATER)
    assert advance(stage, copied(in_force=ENDED), LATER).phase is Phase.PROMOTING


def test_a_paused_stage_goes_on_copying_and_a_bad_candidate_does_not_wait() -> None:
    paused = advance(shadowing(), copied(asked=(intent(Goal.PAUSE),)), NOW)
    assert (paused.phase, paused.resume, paused.tag) == (Phase.PAUSED, Phase.SHADOWING, "r/shadow")
    assert not [action for action in reconcile(paused, copied()) if isinstance(action, SetWeights)]
    assert advance(paused, copied(30, bad=True), NOW).phase is Phase.ROLLING_BACK
    resumed = advance(paused, copied(asked=(intent(Goal.RESUME),)), LATER)
    assert (resumed.phase, resumed.entered) == (Phase.SHADOWING, LATER)


@pytest.mark.parametrize(
    "changes",
    [
        {"asked": (intent(Goal.ABORT),)},
        {"asked": (intent(version=8),)},
        {"holders": frozenset({6})},
        {"revisions": {STABLE.id: status(STABLE)}},
    ],
    ids=["aborted", "a newer version", "taken out", "dead"],
)
def test_what_ends_a_rollout_ends_the_stage(changes: dict[str, object]) -> None:
    assert advance(shadowing(), replace(copied(), **changes), NOW).phase is Phase.ROLLING_BACK  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("policy", "canary_seconds", "said"),
    [
        (ShadowPolicy(), 60.0, ""),
        (ShadowPolicy(), 7200.0, "First copies of about 500 requests, for 30 min at most. "),
        (ShadowPolicy(ShadowMode.BEFORE, requests=20), None, "First copies of about 20 requests, for 30 min at most. "),
        (
            ShadowPolicy(ShadowMode.INSTEAD),
            None,
            "Copies of requests, for 30 min at most, and where they prove too little, a canary. ",
        ),
    ],
)
def test_a_plan_tells_of_copies(policy: ShadowPolicy, canary_seconds: float | None, said: str) -> None:
    assert ahead(policy, canary_seconds) == said


def test_the_status_tells_what_copies_told() -> None:
    told = rollout_status(advance(shadowing(), copied(3, bad=True), NOW)).shadow
    assert told is not None
    assert (told.requests, told.uncompared, told.verdict, told.enough) == (3, 0, "more", 0.0)
    assert told.worse > 0
    assert rollout_status(rollout(Phase.PROGRESSING)).shadow is None


def test_the_terminal_shows_answers_by_what_the_stable_version_decided() -> None:
    good = Answer(error=False, refused=False, latency_ms=9.0)
    pairs = tuple(Paired(good, good, (Row("[churns]", changed, 0.25),)) for changed in (True, False))
    stage = advance(shadowing(), replace(copied(), pairs=(ShadowBlock(1, "r", pairs),)), NOW)
    console = Console(width=120, record=True, file=StringIO())
    console.print(rollout_view(asdict(rollout_status(stage))))
    shown = console.export_text()
    assert re.search(r"\[churns\] +2 +50\.0% +\+0\.25", shown)
    assert "50.0% of the decisions are other ones" in shown


def test_whoever_gets_copies_is_not_stopped() -> None:
    live = Live("churn", intent().channel, STABLE, NOW)
    assert not upkeep("churn", live, (), copied())[1:]
    stops = upkeep("churn", live, (), seen())
    assert [action for action in stops if getattr(action, "revision_id", "") == CANDIDATE.id]


# How pairs are made.

FOLDING = Folding(late_seconds=2.0, timeout_seconds=30.0)


def half(key: str, arm: Arm, at: float, done: float | None = None, **more: object) -> Record:
    return Record(key, "r", 0, arm, at, done, **more)  # type: ignore[arg-type]


def both(key: str, at: float, *, stable: float = 0.01, candidate: float = 0.01) -> list[Record]:
    return [half(key, Arm.STABLE, at, at + stable), half(key, Arm.CANDIDATE, at, at + candidate)]


def pairing(*records: Record, most: int = 2000) -> Pairing:
    made = Pairing("r", FOLDING, most)
    for record in records:
        made.add(record)
    return made


def told(made: Pairing, now: float) -> tuple[int, int]:
    block = made.advance(now)
    return (len(block.pairs), block.missing) if block else (0, 0)


def test_pairs_are_told_in_order_of_assignment() -> None:
    made = pairing(half("slow", Arm.STABLE, 1.0, 1.1), half("slow", Arm.CANDIDATE, 1.0), *both("quick", 2.0))
    assert told(made, 10.0) == (0, 0)
    made.add(half("slow", Arm.CANDIDATE, 1.0, 20.0))
    block = made.advance(20.5)
    assert block is not None
    assert [pair.candidate.latency_ms for pair in block.pairs] == [19_000.0, pytest.approx(10.0)]


def test_a_copy_that_never_ends_is_an_error_in_the_end() -> None:
    made = pairing(half("a", Arm.STABLE, 1.0, 1.1), half("a", Arm.CANDIDATE, 1.0))
    assert told(made, 30.9) == (0, 0)
    block = made.advance(31.0)
    assert block is not None
    assert [(pair.stable.error, pair.candidate.error) for pair in block.pairs] == [(False, True)]


def test_what_was_not_copied_is_no_pair() -> None:
    made = pairing(half("a", Arm.STABLE, 1.0, 1.1), half("b", Arm.STABLE, 1.0), half("c", Arm.CANDIDATE, 1.0, 1.1))
    assert told(made, 2.9) == (0, 0)
    assert told(made, 3.0) == (0, 3)
    assert made.counts == {"uncopied": 3}


def test_a_client_that_left_makes_no_pair() -> None:
    left = half("a", Arm.STABLE, 1.0, 1.1, abandoned=True)
    made = pairing(left, half("a", Arm.CANDIDATE, 1.0, 9.0, error=True))
    assert told(made, 10.0) == (0, 1)


def test_a_gateway_that_died_makes_no_pairs_of_what_was_under_way() -> None:
    made = pairing(half("a", Arm.STABLE, 1.0, 1.1), half("a", Arm.CANDIDATE, 1.0), *both("b", 1.0))
    made.abandon(2.0)
    assert told(made, 5.0) == (1, 1)


def test_records_that_come_again_count_once() -> None:
    made = pairing(*both("a", 1.0), *both("a", 1.0))
    assert told(made, 5.0) == (1, 0)
    for record in both("a", 1.0):
        made.add(record)
    assert told(made, 50.0) == (0, 0)
    assert made.counts["overdue"] == 2


def test_what_is_waited_for_is_bounded() -> None:
    halves = ((half(str(n), Arm.STABLE, float(n)), half(str(n), Arm.STABLE, float(n), n + 0.1)) for n in range(1, 8))
    made = pairing(*(record for both_lines in halves for record in both_lines), most=5)
    assert made.counts == {"unfollowed": 2}
    assert told(made, 100.0) == (0, 5)
    assert told(pairing(*both("later", 200.0)), 300.0) == (1, 0)


def test_a_reader_that_starts_again_goes_on_where_it_was() -> None:
    records = [*both("a", 1.0), half("b", Arm.STABLE, 2.0, 2.1, prediction=(0.25,)), half("b", Arm.CANDIDATE, 2.0)]
    whole, restored = pairing(*records), Pairing.restore(pairing(*records).state(), FOLDING)
    for made in (whole, restored):
        made.add(half("b", Arm.CANDIDATE, 2.0, 2.5, prediction=(0.75,)))
    assert whole.advance(9.0) == restored.advance(9.0)
    assert restored.state() == whole.state()


LINE = Entry(
    "UpstreamEnd", 1.0, 5, "id", step="r/shadow", cluster="v1", code=200, began=1, sent=1, answered=1, took=5000
)


@pytest.mark.parametrize(
    ("changes", "error", "abandoned", "refused"),
    [
        ({}, False, False, False),
        ({"code": 500}, True, False, False),
        ({"code": 422}, False, False, True),
        ({"code": 0, "flags": "UF", "answered": None, "began": None}, True, False, False),
        ({"code": 0, "flags": "UO", "answered": None, "began": None}, False, True, False),
        ({"code": 0, "answered": None, "took": None, "ms": 29_998}, True, False, False),
        ({"code": 0, "answered": None, "took": None, "ms": 20_000}, False, True, False),
        ({"code": 0, "answered": None, "took": None, "sent": None, "ms": 30_000}, False, True, False),
    ],
    ids=["answered", "failed", "refused", "no connection", "not sent", "time-out", "client left", "client sent slowly"],
)
def test_what_a_line_says_of_an_answer(changes: dict[str, object], error: bool, abandoned: bool, refused: bool) -> None:
    entry = Entry(**{name: getattr(LINE, name) for name in LINE.__struct_fields__} | changes)
    found = answer_of(entry, Arm.CANDIDATE, 30_000.0)
    assert (found.error, found.abandoned, found.refused) == (error, abandoned, refused)
    assert (found.rollout, found.request_id, found.assigned) == ("r", "id", 1.0)


def test_blocks_of_several_logs_are_numbered_together() -> None:
    shadows = Shadows(30_000.0, FOLDING)
    for log, key in enumerate(("a", "b")):
        entry = Entry("UpstreamEnd", 1.0, 5, key, code=200, began=1, sent=1, answered=1, took=5000)
        for mark in ({"step": "r/shadow"}, {"copy": "r/shadow"}):
            shadows.add(log, Entry(**{name: getattr(entry, name) for name in entry.__struct_fields__} | mark), ())
    for log in (0, 1):
        shadows.advance(log, 9.0)
    assert [(block.id, len(block.pairs)) for block in shadows.take_new()] == [(1, 1), (2, 1)]


@pytest.mark.parametrize(
    ("stable", "candidate", "expected"),
    [
        (None, (1.0,), ()),
        ((0.4,), (0.45,), (Row("false", False, 0.05),)),
        ((0.4,), (0.6,), (Row("false", True, 0.2),)),
        (("yes",), ("no",), (Row("yes", True, None),)),
        ((True,), (True,), (Row("true", False, None),)),
        ((3.0,), (7.0,), (Row("3", True, 4.0),)),
        ((2.5,), (2.75,), (Row("", None, 0.25),)),
        ((0.4, "x"), (0.4,), (Row("false", True, None), Row("x", True, None))),
        ((None,), (0.7,), (Row("null", True, None),)),
        ((float("inf"),), (1.5,), (Row("", None, None),)),
    ],
)
def test_rows_are_compared(stable: Prediction | None, candidate: Prediction, expected: tuple[Row, ...]) -> None:
    found = rows(stable, candidate)
    assert [(row.segment, row.changed) for row in found] == [(row.segment, row.changed) for row in expected]
    assert [row.difference for row in found] == [
        None if row.difference is None else pytest.approx(row.difference) for row in expected
    ]
