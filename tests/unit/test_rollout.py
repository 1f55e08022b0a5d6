"""The engine's two decisions as tables: what follows from saved and seen, and what is still to be done."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from monitoring.analysis import Evidence
from monitoring.analysis_policy import AnalysisPolicy
from monitoring.blocks import ArmCount, Block
from monitoring.label_policy import LabelMode, LabelPolicy
from monitoring.labels import LabelBlock, Labelled
from pipelines.advance import advance
from pipelines.intents import emptied
from pipelines.interruptions import deadline
from pipelines.live import Live
from pipelines.reconcile import (
    Annotate,
    Assign,
    Build,
    RemoveRoute,
    SetWeights,
    Start,
    expected,
    reconcile,
    registry_actions,
)
from pipelines.rollout import FINAL, GateResult, Goal, Inconclusive, Intent, Origin, Phase, Rollout, RolloutPolicy, Seen
from registry_hooks.model_version import Change, Channel, ModelVersion
from serving.image import BuildState, ImageStatus
from serving.revision import Address, Revision, RevisionState, RevisionStatus, Weights
from serving.router import Route

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(seconds=61)
PRODUCTION, ALIAS = Channel.parse("Production"), Channel.parse("@champion")
STABLE = Revision(ModelVersion("churn", 6), "image-6")
CANDIDATE = Revision(ModelVersion("churn", 7), "image-7")
ADDRESS = {STABLE.id: (Address("127.0.0.1", 1),), CANDIDATE.id: (Address("127.0.0.1", 2),)}
POLICY = RolloutPolicy(steps=(5, 50, 100), shield_bytes=1000, analysis=AnalysisPolicy(require_latency=False))
UNBAKED = replace(POLICY, bake_seconds=0.0)
OPEN = (
    Phase.CHECKING,
    Phase.BUILDING,
    Phase.STARTING,
    Phase.PROVING,
    Phase.PROGRESSING,
    Phase.BAKING,
    Phase.PROMOTING,
)


COMPARING = (Phase.PROGRESSING, Phase.BAKING)


def intent(goal: Goal = Goal.LIVE, version: int | None = 7, channel: Channel = PRODUCTION) -> Intent:
    return Intent("i", goal, channel, "churn", version, Origin.TRANSITION, NOW, actor="ada", came_from="Staging")


def rollout(phase: Phase, **changes: object) -> Rollout:
    late = phase not in (Phase.CHECKING, Phase.BUILDING)
    begun = Rollout(
        id="r",
        intent=intent(),
        policy=POLICY,
        phase=phase,
        begun=NOW,
        entered=NOW,
        stable=STABLE,
        candidate=CANDIDATE if late else None,
        claimed=True,
        step=len(POLICY.steps) if phase is Phase.BAKING else 0,
        steered=phase in (*COMPARING, Phase.PROMOTING, Phase.ROLLING_BACK, Phase.SUCCEEDED),
        evidence=Evidence.start(POLICY.analysis, POLICY.steps) if phase in COMPARING else None,
    )
    return replace(begun, **changes)  # type: ignore[arg-type]


def status(revision: Revision, state: RevisionState = RevisionState.READY, **more: object) -> RevisionStatus:
    return replace(RevisionStatus(revision, state, ADDRESS[revision.id]), **more)  # type: ignore[arg-type]


def route(weight: int, tag: str = "") -> Route:
    weights = Weights.split(STABLE, CANDIDATE, weight)
    ends = {key: ADDRESS[key] for key in weights.shares}
    both = 0 < weight < 100
    return Route("churn", weights, ends, tag, CANDIDATE.id if both else None, POLICY.shield_bytes if both else 0)


def seen(weight: int = 0, tag: str = "", **changes: object) -> Seen:
    world = Seen(
        revisions={r.id: status(r) for r in (STABLE, CANDIDATE)},
        routes={"churn": route(weight, tag)},
        holders=frozenset({6, 7}),
    )
    return replace(world, **changes)  # type: ignore[arg-type]


def blocks(stable: ArmCount, candidate: ArmCount, count: int) -> tuple[Block, ...]:
    return tuple(Block(n, "r", 9, 0.0, 1.0, stable, candidate) for n in range(1, count + 1))


GOOD = blocks(ArmCount(95, 0), ArmCount(20, 0), 200)
BAD = blocks(ArmCount(95, 0), ArmCount(20, 10), 20)
FEW = blocks(ArmCount(50, 0), ArmCount(50, 0), 8)
DOUBTFUL = (*blocks(ArmCount(50, 0), ArmCount(50, 0), 6), Block(7, "r", 9, 0.0, 1.0, ArmCount(50, 0), ArmCount(50, 4)))
OUTAGE = blocks(ArmCount(50, 25), ArmCount(50, 25), 8)
LOADING = status(CANDIDATE, RevisionState.STARTING)
PASSED, FAILED = (GateResult("g", passed=True),), (GateResult("g", passed=False, detail="no"),)


@pytest.mark.parametrize(
    ("before", "world", "then"),
    [
        (rollout(Phase.CHECKING), seen(), Phase.CHECKING),
        (rollout(Phase.CHECKING), seen(gates=PASSED), Phase.BUILDING),
        (rollout(Phase.CHECKING), seen(gates=FAILED), Phase.ROLLING_BACK),
        (rollout(Phase.BUILDING), seen(), Phase.BUILDING),
        (rollout(Phase.BUILDING), seen(image=ImageStatus(BuildState.BUILDING)), Phase.BUILDING),
        (rollout(Phase.BUILDING), seen(image=ImageStatus(BuildState.READY, "image-7")), Phase.STARTING),
        (rollout(Phase.BUILDING), seen(image=ImageStatus(BuildState.FAILED)), Phase.ROLLING_BACK),
        (rollout(Phase.STARTING), seen(), Phase.PROVING),
        (rollout(Phase.STARTING), seen(revisions={}), Phase.STARTING),
        (rollout(Phase.STARTING), seen(revisions=None), Phase.STARTING),
        (rollout(Phase.STARTING), seen(revisions={}, image=ImageStatus(BuildState.MISSING)), Phase.BUILDING),
        (rollout(Phase.STARTING), seen(revisions={}, image=ImageStatus(BuildState.READY, "i")), Phase.STARTING),
        (rollout(Phase.STARTING), seen(revisions=None, image=ImageStatus(BuildState.MISSING)), Phase.STARTING),
        (
            rollout(Phase.STARTING),
            seen(revisions={CANDIDATE.id: LOADING}, image=ImageStatus(BuildState.MISSING)),
            Phase.STARTING,
        ),
        (
            rollout(Phase.STARTING),
            seen(revisions={CANDIDATE.id: status(CANDIDATE, RevisionState.FAILED, restarts=3)}),
            Phase.ROLLING_BACK,
        ),
        (rollout(Phase.PROVING), seen(gates=PASSED), Phase.PROGRESSING),
        (rollout(Phase.PROVING, stable=None), seen(gates=PASSED), Phase.PROMOTING),
        (rollout(Phase.PROVING, intent=intent(Goal.RESTORE)), seen(gates=PASSED), Phase.PROMOTING),
        (rollout(Phase.PROVING, intent=intent(Goal.READY)), seen(gates=PASSED), Phase.SUCCEEDED),
        (rollout(Phase.PROVING), seen(revisions={}), Phase.ROLLING_BACK),
        (rollout(Phase.PROGRESSING), seen(5, "r/0"), Phase.PROGRESSING),
        (rollout(Phase.PROGRESSING), seen(5, "r/0", blocks=BAD), Phase.ROLLING_BACK),
        (rollout(Phase.PROGRESSING, step=1), seen(50, "r/1", blocks=GOOD), Phase.BAKING),
        (rollout(Phase.PROGRESSING, step=1, policy=UNBAKED), seen(50, "r/1", blocks=GOOD), Phase.PROMOTING),
        (rollout(Phase.BAKING), seen(95, "r/3"), Phase.BAKING),
        (rollout(Phase.BAKING), seen(95, "r/3", blocks=BAD), Phase.ROLLING_BACK),
        (rollout(Phase.BAKING), seen(95, "r/3", revisions={CANDIDATE.id: status(CANDIDATE)}), Phase.PROMOTING),
        (rollout(Phase.BAKING), seen(95, "r/3", revisions={STABLE.id: status(STABLE)}), Phase.ROLLING_BACK),
        (rollout(Phase.BAKING), seen(95, "r/3", revisions=None), Phase.BAKING),
        (rollout(Phase.PROGRESSING, step=1), seen(5, "r/0", blocks=GOOD), Phase.PROGRESSING),
        (rollout(Phase.PROMOTING), seen(50, "r/1"), Phase.PROMOTING),
        (rollout(Phase.PROMOTING), seen(100), Phase.SUCCEEDED),
        (rollout(Phase.PROMOTING), seen(100, routes=None), Phase.PROMOTING),
        (rollout(Phase.ROLLING_BACK), seen(5, "r/0"), Phase.ROLLING_BACK),
        (rollout(Phase.ROLLING_BACK), seen(0, "r/0"), Phase.ROLLING_BACK),
        (rollout(Phase.ROLLING_BACK), seen(0, "r/back"), Phase.FAILED),
        (rollout(Phase.ROLLING_BACK, steered=False), seen(), Phase.FAILED),
        (rollout(Phase.ROLLING_BACK, stable=None), seen(routes={}), Phase.FAILED),
    ],
)
def test_each_phase_leads_to_the_next_by_what_is_seen(before: Rollout, world: Seen, then: Phase) -> None:
    assert advance(before, world, LATER).phase is then


@pytest.mark.parametrize("phase", OPEN)
@pytest.mark.parametrize(
    ("world", "reason"),
    [
        (seen(asked=(intent(Goal.ABORT),)), "aborted by ada"),
        (seen(asked=(intent(Goal.RESTORE, 5),)), "superseded by version 5"),
        (seen(asked=(intent(Goal.RETIRE, None),)), "superseded"),
        (seen(asked=(intent(version=6),)), "aborted by ada"),
        (seen(holders=frozenset({6})), "version 7 was taken out of Production"),
        (seen(holders=frozenset({6}), gone=True), "version 7 was deleted from the registry"),
    ],
)
def test_interruptions_take_every_open_phase_back(phase: Phase, world: Seen, reason: str) -> None:
    after = advance(rollout(phase), world, LATER)
    assert (after.phase, after.reason) == (Phase.ROLLING_BACK, reason)


@pytest.mark.parametrize("phase", [phase for phase in OPEN if phase is not Phase.BAKING])
def test_a_newer_version_takes_every_open_phase_back(phase: Phase) -> None:
    after = advance(rollout(phase), seen(asked=(intent(version=8),)), LATER)
    assert (after.phase, after.reason) == (Phase.ROLLING_BACK, "superseded by version 8")


@pytest.mark.parametrize("phase", [p for p in Phase if p not in FINAL and p is not Phase.SHADOWING])
def test_every_phase_that_is_not_final_ends_by_its_deadline(phase: Phase) -> None:
    stuck = rollout(phase, resume=Phase.STARTING if phase is Phase.PAUSED else None)
    nothing = Seen(holders=frozenset({7}))
    over = NOW + timedelta(seconds=deadline(stuck) + 1)
    assert advance(stuck, nothing, over).phase is not phase


def test_a_candidate_that_fetches_its_model_has_its_time_anew_for_every_percent_and_for_nothing_else() -> None:
    began, almost = rollout(Phase.STARTING), timedelta(seconds=POLICY.ready_seconds - 1)

    def at(before: Rollout, now: datetime, percent: int) -> Rollout:
        words = f"fetching the model: {percent} % of 2.1 GB"
        told = status(CANDIDATE, RevisionState.STARTING, reason=words, fetched=percent)
        return advance(before, seen(revisions={STABLE.id: status(STABLE), CANDIDATE.id: told}), now)

    some = at(began, NOW + almost, 1)
    more = at(some, NOW + 2 * almost, 2)
    assert (more.phase, more.fetched, more.entered) == (Phase.STARTING, 2, NOW + 2 * almost)
    again = at(more, NOW + 3 * almost, 1)
    assert (again.phase, again.entered) == (Phase.STARTING, more.entered)
    late = at(again, NOW + 4 * almost, 2)
    assert late.phase is Phase.ROLLING_BACK
    assert late.reason.endswith("fetching the model: 1 % of 2.1 GB")


def test_a_step_lasts_its_time_however_clear_the_evidence() -> None:
    before = rollout(Phase.PROGRESSING)
    world = seen(5, "r/0", blocks=GOOD)
    early = advance(before, world, NOW + timedelta(seconds=59))
    assert (early.step, advance(early, replace(world, blocks=()), LATER).step) == (0, 1)


def test_a_bake_ends_after_its_time_and_not_before() -> None:
    baking = rollout(Phase.BAKING)
    assert (baking.weight, baking.tag) == (95, "r/3")
    over = NOW + timedelta(seconds=POLICY.bake_seconds + 1)
    assert advance(baking, seen(95, "r/3"), over).phase is Phase.PROMOTING
    assert SetWeights(route(95, "r/3")) in reconcile(baking, seen(50, "r/2"))


def test_a_step_without_evidence_pauses_and_goes_on_once_it_comes() -> None:
    hour = NOW + timedelta(seconds=3601)
    paused = advance(rollout(Phase.PROGRESSING), seen(5, "r/0"), hour)
    assert (paused.phase, paused.resume, paused.held) == (Phase.PAUSED, Phase.PROGRESSING, False)
    assert advance(paused, seen(5, "r/0", blocks=GOOD), hour).phase is Phase.PROGRESSING


@pytest.mark.parametrize(
    ("end", "seen_blocks", "then"),
    [
        (Inconclusive.HOLD, FEW, Phase.PAUSED),
        (Inconclusive.ROLLBACK, FEW, Phase.ROLLING_BACK),
        (Inconclusive.PROMOTE, FEW, Phase.BAKING),
        (Inconclusive.PROMOTE, (), Phase.PAUSED),
        (Inconclusive.PROMOTE, DOUBTFUL, Phase.PAUSED),
        (Inconclusive.PROMOTE, OUTAGE, Phase.PAUSED),
        (Inconclusive.ROLLBACK, (), Phase.PAUSED),
        (Inconclusive.ROLLBACK, OUTAGE, Phase.PAUSED),
    ],
    ids=[
        "hold",
        "go back",
        "promote",
        "nothing is known",
        "something speaks against it",
        "an alarm, promote",
        "nothing is known, go back",
        "an alarm, go back",
    ],
)
def test_a_step_that_decides_nothing_ends_as_the_policy_says(
    end: Inconclusive, seen_blocks: tuple[Block, ...], then: Phase
) -> None:
    policy = replace(POLICY, on_inconclusive=end, wide_margin=0.05)
    before = rollout(Phase.PROGRESSING, policy=policy, step=1)
    after = advance(before, seen(50, "r/1", blocks=seen_blocks), NOW + timedelta(seconds=3601))
    assert (after.phase, after.held) == (then, False)
    assert "not enough evidence after 3600 s" in after.reason


GATED = replace(POLICY, labels=LabelPolicy(LabelMode.GATE, deadline_seconds=7200.0))


def gated(step: int = 1, **changes: object) -> Rollout:
    evidence = Evidence.start(GATED.analysis, GATED.steps, labels=LabelMode.GATE)
    return rollout(Phase.PROGRESSING, policy=GATED, step=step, evidence=evidence, **changes)


LABELLED = tuple(LabelBlock(n, "r", Labelled(50, 50, 2.0), Labelled(50, 50, 2.0)) for n in range(1, 100))


def test_labels_open_the_way_to_all_traffic_and_to_no_other_weight() -> None:
    assert advance(gated(step=0), seen(5, "r/0", blocks=GOOD), LATER).step == 1
    waiting = advance(gated(), seen(50, "r/1", blocks=GOOD), LATER)
    assert (waiting.phase, waiting.step) == (Phase.PROGRESSING, 1)
    assert "mean loss by labels" in waiting.reason
    through = advance(waiting, seen(50, "r/1", labelled=LABELLED), LATER)
    assert through.phase is Phase.BAKING
    assert advance(through, seen(95, "r/3", labelled=LABELLED), LATER) == through, "what was taken in changes nothing"


@pytest.mark.parametrize("end", [*Inconclusive])
def test_without_labels_the_last_step_waits_longer_and_is_held_then(end: Inconclusive) -> None:
    begun = gated()
    begun = replace(begun, policy=replace(begun.policy, on_inconclusive=end, wide_margin=0.05))
    waiting = advance(begun, seen(50, "r/1", blocks=GOOD), NOW + timedelta(seconds=7199))
    assert waiting.phase is Phase.PROGRESSING
    late = advance(waiting, seen(50, "r/1"), NOW + timedelta(seconds=7201))
    assert (late.phase, late.held) == (Phase.PAUSED, False)
    early = advance(replace(begun, step=0), seen(5, "r/0"), NOW + timedelta(seconds=3601))
    assert early.phase is Phase.PAUSED, "other steps have their own time"


def test_labels_that_decide_nothing_end_as_the_policy_says() -> None:
    begun = gated()
    begun = replace(begun, policy=replace(begun.policy, on_inconclusive=Inconclusive.ROLLBACK))
    few = advance(begun, seen(50, "r/1", blocks=GOOD, labelled=LABELLED[:2]), NOW + timedelta(seconds=7201))
    assert few.phase is Phase.ROLLING_BACK


def test_a_person_pauses_and_only_a_person_resumes_but_a_bad_candidate_goes_back() -> None:
    held = advance(rollout(Phase.PROGRESSING), seen(5, "r/0", asked=(intent(Goal.PAUSE),)), LATER)
    assert (held.phase, held.held, held.reason) == (Phase.PAUSED, True, "paused by ada")
    assert advance(held, seen(5, "r/0", blocks=GOOD), LATER).phase is Phase.PAUSED
    assert advance(held, seen(5, "r/0", blocks=BAD), LATER).phase is Phase.ROLLING_BACK
    assert advance(held, seen(5, "r/0", asked=(intent(Goal.RESUME),)), LATER).phase is Phase.PROGRESSING


def test_what_a_bad_candidate_says_of_itself_is_in_the_reason() -> None:
    known = {r.id: status(r, reason="want of memory" if r is CANDIDATE else "") for r in (STABLE, CANDIDATE)}
    back = advance(rollout(Phase.PROGRESSING), seen(5, "r/0", blocks=BAD, revisions=known), LATER)
    assert "error rate above" in back.reason
    assert back.reason.endswith("the candidate says: want of memory")


@pytest.mark.parametrize("phase", [Phase.PROGRESSING, Phase.BAKING, Phase.PROMOTING])
def test_a_candidate_that_was_ready_and_is_not_any_more_has_the_time_it_had_to_start(phase: Phase) -> None:
    policy = replace(POLICY, ready_seconds=60.0, bake_seconds=600.0)
    lost = {STABLE.id: status(STABLE), CANDIDATE.id: replace(LOADING, reason="Readiness probe failed: 503")}
    silent = advance(rollout(phase, policy=policy), seen(revisions=lost), NOW)
    assert (silent.phase, silent.unready) == (phase, NOW)
    soon, late = NOW + timedelta(seconds=59), NOW + timedelta(seconds=61)
    assert advance(silent, seen(revisions=lost), soon).phase is phase
    assert advance(silent, seen(), soon).unready is None
    assert advance(silent, seen(revisions=None), soon) == silent
    back = advance(silent, seen(revisions=lost), late)
    assert back.phase is Phase.ROLLING_BACK
    assert back.reason == "the candidate was ready and is not any more, for 60 s: Readiness probe failed: 503"


def test_halted_where_the_stable_revision_does_not_come_back() -> None:
    only = seen(50, "r/1", revisions={CANDIDATE.id: status(CANDIDATE)})
    after = advance(rollout(Phase.ROLLING_BACK, reason="worse"), only, NOW + timedelta(seconds=601))
    assert after.phase is Phase.HALTED
    assert after.reason == "worse; traffic stays where it is: no other revision is ready"
    assert not [a for a in reconcile(after, only) if isinstance(a, SetWeights)]


@pytest.mark.parametrize(
    ("saved", "world", "action"),
    [
        (rollout(Phase.BUILDING), seen(image=ImageStatus(BuildState.MISSING)), Build()),
        (rollout(Phase.STARTING), seen(revisions={}), Start(CANDIDATE)),
        (rollout(Phase.PROGRESSING), seen(revisions={CANDIDATE.id: status(CANDIDATE, altered=True)}), Start(CANDIDATE)),
        (rollout(Phase.PROGRESSING), seen(), SetWeights(route(5, "r/0"))),
        (rollout(Phase.PROMOTING), seen(50), SetWeights(route(100))),
        (rollout(Phase.ROLLING_BACK), seen(50, "r/1"), SetWeights(route(0, "r/back"))),
        (rollout(Phase.ROLLING_BACK, stable=None), seen(100), RemoveRoute("churn")),
        (rollout(Phase.CHECKING, claimed=False), seen(holders=frozenset({6})), Assign(CANDIDATE.version, PRODUCTION)),
        (rollout(Phase.FAILED), seen(), Assign(CANDIDATE.version, Channel.parse("Staging"), PRODUCTION)),
        (rollout(Phase.FAILED), seen(holders=frozenset()), Assign(STABLE.version, PRODUCTION)),
        (rollout(Phase.SUCCEEDED), seen(100), Assign(STABLE.version, Channel.parse("Archived"), PRODUCTION)),
        (
            rollout(Phase.FAILED, intent=intent(channel=ALIAS)),
            seen(holders=frozenset({7})),
            Assign(STABLE.version, ALIAS),
        ),
    ],
)
def test_what_is_missing_is_asked_for(saved: Rollout, world: Seen, action: object) -> None:
    assert action in reconcile(saved, world)


@pytest.mark.parametrize("phase", OPEN)
def test_what_cannot_be_seen_is_not_acted_on(phase: Phase) -> None:
    assert [a for a in reconcile(rollout(phase), Seen()) if not isinstance(a, Annotate)] == []


def test_traffic_is_not_raised_to_a_revision_that_is_not_ready() -> None:
    starting = {STABLE.id: status(STABLE), CANDIDATE.id: status(CANDIDATE, RevisionState.STARTING)}
    actions = reconcile(rollout(Phase.PROGRESSING), seen(revisions=starting))
    assert not [a for a in actions if isinstance(a, SetWeights)]


def test_a_superseded_rollout_leaves_the_channel_to_the_newer_intent() -> None:
    failed = rollout(Phase.FAILED, superseded=True)
    world = seen(holders=frozenset({7, 8}), asked=(intent(version=8),))
    moves = [a for a in reconcile(failed, world) if isinstance(a, Assign)]
    assert moves == [Assign(CANDIDATE.version, Channel.parse("Staging"), PRODUCTION)]


def test_a_final_rollout_is_settled_once_the_registry_tells_the_same() -> None:
    failed = rollout(Phase.FAILED)
    note = next(a for a in reconcile(failed, seen(holders=frozenset({6}))) if isinstance(a, Annotate))
    told = replace(failed, annotated=note.digest, entered=LATER)
    assert not advance(told, seen(), LATER).settled
    assert advance(told, seen(), LATER + timedelta(minutes=1)).settled
    assert advance(told, seen(holders=frozenset({6})), LATER).settled
    assert not advance(told, seen(holders=None), LATER).settled


@pytest.mark.parametrize(("phase", "right"), [(Phase.SUCCEEDED, 7), (Phase.FAILED, 6)])
def test_once_the_outcome_is_told_the_channel_is_what_people_make_of_it(phase: Phase, right: int) -> None:
    over, empty = rollout(phase), seen(holders=frozenset())
    assert [action for action in reconcile(over, seen(holders=None)) if isinstance(action, Annotate)] == []
    *_, put_in, note = reconcile(over, empty)
    assert put_in == Assign(ModelVersion("churn", right), PRODUCTION)
    assert isinstance(note, Annotate)
    told = replace(over, annotated=note.digest)
    assert registry_actions(told, empty) == ()
    live = Live("churn", PRODUCTION, CANDIDATE, NOW)
    assert not emptied(PRODUCTION, live, [], [over])
    assert emptied(PRODUCTION, live, [], [told])


def test_own_writes_are_known_from_the_saved_state_alone() -> None:
    back = (CANDIDATE.version, Channel.parse("Staging"), Change.ENTERED)
    assert back in expected(rollout(Phase.FAILED))
    assert (STABLE.version, PRODUCTION, Change.ENTERED) in expected(rollout(Phase.FAILED))
    assert expected(rollout(Phase.CHECKING, claimed=False)) == {(CANDIDATE.version, PRODUCTION, Change.ENTERED)}
    assert expected(rollout(Phase.CHECKING)) == frozenset()


def test_a_build_that_failed_tells_the_builders_own_explanation() -> None:
    why = "Because homemade depends on numpy<1 and you require numpy>=2, your requirements are unsatisfiable."
    gone_back = advance(rollout(Phase.BUILDING), seen(image=ImageStatus(BuildState.FAILED, detail=why)), NOW)
    assert gone_back.phase is Phase.ROLLING_BACK
    assert why in gone_back.reason


def test_making_the_image_is_a_gate_that_shows_the_resolvers_own_words_once() -> None:
    conflict = "Because a depends on b>=2 and you require b<2, your requirements are unsatisfiable."
    back = advance(rollout(Phase.BUILDING), seen(image=ImageStatus(BuildState.FAILED, detail=conflict)), NOW)
    assert back.gates == (GateResult("image", passed=False, detail=conflict),)
    again = rollout(Phase.BUILDING, gates=back.gates)
    starting = advance(again, seen(image=ImageStatus(BuildState.READY, "image-7")), NOW)
    assert starting.gates == (GateResult("image", passed=True, detail="image-7"),)
