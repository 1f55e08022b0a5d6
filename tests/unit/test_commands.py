"""Commands: what each one writes into the inbox, and what it refuses with which code and advice."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from monitoring.blocks import ArmCount
from pipelines.commands import Accepted
from pipelines.intents import rollout_id
from pipelines.policy import Policy
from pipelines.refusal import Code, CommandError
from pipelines.rollout import Goal, Origin, Phase
from pipelines.status import previous_versions
from registry_hooks.model_version import Channel, ModelVersion
from tests.fakes.installation import PRODUCTION, STAGING, Installation

CHURN = [ModelVersion("churn", version) for version in range(10)]
"""``CHURN[7]`` is version 7."""


@pytest.fixture
def office() -> Installation:
    """Version 6 of churn went live after version 5; version 7 is registered."""
    office = Installation()
    office.went_live(CHURN[5], CHURN[6])
    office.registered("churn", 1)
    return office


def refusal(command: Callable[[], object]) -> CommandError:
    with pytest.raises(CommandError) as caught:
        command()
    assert "\n" not in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_promote_writes_an_intent_with_its_actor_and_wakes_the_controller(office: Installation) -> None:
    accepted = office.commands.promote("churn", 7, "ada")

    (intent,) = office.store.pending()
    assert (intent.goal, intent.model, intent.version, intent.channel) == (Goal.LIVE, "churn", 7, PRODUCTION)
    assert (intent.origin, intent.actor) == (Origin.COMMAND, "ada")
    assert accepted.intent == intent.id
    assert accepted.rollout == rollout_id(intent)
    assert office.woken == ["churn"]


def test_every_command_leaves_its_actor_in_the_history(office: Installation) -> None:
    office.commands.promote("churn", 7, "ada")

    told = office.store.read("churn")[-1]
    assert (told.kind, told.actor, told.version) == ("intent", "ada", 7)


def test_a_dry_run_plans_and_writes_nothing(office: Installation) -> None:
    office.blocks.rates["churn"] = 20.0
    before = office.store.read()

    accepted = office.commands.promote("churn", 7, "ada", dry_run=True)

    assert accepted.intent is None
    assert "at 20/s" in accepted.plan
    assert office.store.pending() == ()
    assert office.store.read() == before
    assert office.woken == []


def test_the_plan_is_made_where_the_traffic_is_not_known(office: Installation) -> None:
    office.blocks.broken = True
    assert office.commands.promote("churn", 7, "ada", dry_run=True).plan.startswith("About ")


def test_the_plan_uses_the_error_rate_that_the_last_rollout_measured(office: Installation) -> None:
    usual = office.commands.promote("churn", 7, "ada", dry_run=True).plan
    last = office.counted(office.began(CHURN[7], Phase.PROGRESSING), ArmCount(1000, 100), ArmCount(100, 90))
    office.store.save(replace(last, phase=Phase.FAILED, settled=True))

    assert "(now 1 %)" in usual
    assert "(now 10 %)" in office.commands.promote("churn", 7, "ada", dry_run=True).plan


def test_the_first_version_is_compared_with_nothing() -> None:
    office = Installation()
    office.registered("churn", 1)
    assert "Nothing is live to compare with" in office.commands.promote("churn", 1, "ada").plan


def test_a_promotion_takes_the_place_of_another_versions_rollout(office: Installation) -> None:
    office.began(CHURN[7], Phase.PROGRESSING)
    office.registered("churn", 1)
    assert "takes the place of the rollout of version 7" in office.commands.promote("churn", 8, "ada").plan


@pytest.mark.parametrize(
    ("model", "version", "code"),
    [
        ("nothing", 1, Code.UNKNOWN_MODEL),
        ("churn", 99, Code.UNKNOWN_VERSION),
        ("churn", 6, Code.ALREADY_LIVE),
        ("left alone", 1, Code.NOT_MANAGED),
    ],
)
def test_promote_refuses(office: Installation, model: str, version: int, code: Code) -> None:
    office.registered("left alone", 1)
    office.policies["left alone"] = None

    assert refusal(lambda: office.commands.promote(model, version, "ada")).code is code
    assert office.store.pending() == ()


def test_a_broken_policy_is_told_apart_from_none(office: Installation) -> None:
    office.policies["churn"] = None
    office.problems["churn"] = "churn.yaml: rollout.steps: must rise"
    assert "rollout.steps: must rise" in str(refusal(lambda: office.commands.promote("churn", 7, "ada")))


def test_promote_refuses_what_is_on_its_way_as_a_rollout_or_as_an_intent(office: Installation) -> None:
    office.commands.promote("churn", 7, "ada")
    assert refusal(lambda: office.commands.promote("churn", 7, "bob")).code is Code.IN_PROGRESS

    office.taken_up(office.store.pending()[0])
    assert refusal(lambda: office.commands.promote("churn", 7, "bob")).code is Code.IN_PROGRESS


def test_a_version_that_was_taken_back_may_be_promoted_again(office: Installation) -> None:
    taken = office.began(CHURN[7], Phase.FAILED)
    assert not taken.settled
    assert office.commands.promote("churn", 7, "ada").version == 7


def test_an_unreachable_registry_is_told_apart_and_may_be_tried_again(office: Installation) -> None:
    office.registry.broken = True
    error = refusal(lambda: office.commands.promote("churn", 7, "ada"))
    assert (error.code, error.retryable) == (Code.REGISTRY_UNREACHABLE, True)


def test_a_version_must_have_been_where_the_policy_wants_it_first(office: Installation) -> None:
    office.policies["churn"] = Policy(require=(STAGING, Channel.parse("@approved")))
    assert "Staging and @approved" in str(refusal(lambda: office.commands.promote("churn", 7, "ada")))

    office.registry.transition_stage("churn", 7, "Staging")
    error = refusal(lambda: office.commands.promote("churn", 7, "ada"))
    assert error.code is Code.FORBIDDEN
    assert "Staging" not in str(error)

    office.registry.set_alias("churn", "approved", 7)
    assert office.commands.promote("churn", 7, "ada").version == 7


def test_a_version_that_was_proved_in_staging_counts_as_having_been_there(office: Installation) -> None:
    office.policies["churn"] = Policy(require=(STAGING,))
    office.succeeded(office.began(CHURN[7], Phase.PROVING, Goal.READY, STAGING))
    assert office.commands.promote("churn", 7, "ada").version == 7


def test_rollback_ends_the_rollout_in_progress(office: Installation) -> None:
    rollout = office.began(CHURN[7], Phase.PROGRESSING)

    accepted = office.commands.rollback("churn", "ada")

    (intent,) = office.store.pending()
    assert (intent.goal, intent.version) == (Goal.ABORT, 7)
    assert accepted.rollout == rollout.id


def test_rollback_restores_the_version_before(office: Installation) -> None:
    accepted = office.commands.rollback("churn", "ada")

    (intent,) = office.store.pending()
    assert (intent.goal, intent.version, intent.channel) == (Goal.RESTORE, 5, PRODUCTION)
    assert accepted.version == 5


def test_rollback_passes_over_versions_that_were_deleted(office: Installation) -> None:
    office.went_live(CHURN[7])
    office.registry.delete_version("churn", 6)
    assert office.commands.rollback("churn", "ada").version == 5


@pytest.mark.parametrize("model", ["fresh", "churn"])
def test_rollback_refuses_where_there_is_nothing_to_go_back_to(office: Installation, model: str) -> None:
    office.registered("fresh", 1)
    for version in (5, 7):
        office.registry.delete_version("churn", version)
    assert refusal(lambda: office.commands.rollback(model, "ada")).code is Code.NOTHING_BEFORE


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([(Goal.LIVE, 1)], ()),
        ([(Goal.LIVE, 1), (Goal.LIVE, 2), (Goal.LIVE, 3)], (2, 1)),
        ([(Goal.LIVE, 1), (Goal.LIVE, 2), (Goal.LIVE, 3), (Goal.RESTORE, 2)], (1,)),
        ([(Goal.LIVE, 1), (Goal.LIVE, 2), (Goal.LIVE, 3), (Goal.RESTORE, 1)], ()),
        ([(Goal.LIVE, 1), (Goal.LIVE, 2), (Goal.RESTORE, 1), (Goal.RESTORE, 2)], (1,)),
        ([(Goal.LIVE, 1), (Goal.LIVE, 2), (Goal.LIVE, 3), (Goal.LIVE, 1)], (3, 2)),
        ([(Goal.LIVE, 1), (Goal.READY, 2), (Goal.LIVE, 3)], (1,)),
    ],
)
def test_going_back_is_an_undo(history: list[tuple[Goal, int]], expected: tuple[int, ...]) -> None:
    office = Installation()
    for goal, version in history:
        office.went_live(CHURN[version], goal=goal)
    live = office.live("churn")
    assert live is not None
    assert previous_versions(live, office.store.rollouts("churn")) == expected


def test_without_rollouts_what_is_kept_warm_tells_what_was_before(office: Installation) -> None:
    live = office.live("churn")
    assert live is not None
    assert previous_versions(live, ()) == (5,)


def test_pause_and_resume_concern_the_rollout_in_progress(office: Installation) -> None:
    rollout = office.began(CHURN[7], Phase.PROGRESSING)
    assert refusal(lambda: office.commands.resume("churn", "ada")).code is Code.IN_PROGRESS
    assert office.commands.pause("churn", "ada").goal is Goal.PAUSE

    office.store.save(replace(rollout, phase=Phase.PAUSED, resume=Phase.PROGRESSING))
    assert refusal(lambda: office.commands.pause("churn", "ada")).code is Code.IN_PROGRESS
    assert office.commands.resume("churn", "ada").goal is Goal.RESUME
    assert [(intent.goal, intent.version) for intent in office.store.pending()] == [(Goal.PAUSE, 7), (Goal.RESUME, 7)]


@pytest.mark.parametrize(
    ("phase", "verb", "refused"),
    [
        (Phase.PROMOTING, "pause", True),
        (Phase.PROMOTING, "abort", False),
        (Phase.ROLLING_BACK, "abort", True),
        (Phase.ROLLING_BACK, "rollback", True),
        (Phase.PAUSED, "abort", False),
    ],
)
def test_what_is_being_carried_out_cannot_be_called_back(
    office: Installation, phase: Phase, verb: str, refused: bool
) -> None:
    office.began(CHURN[7], phase)
    command = getattr(office.commands, verb)
    if refused:
        assert refusal(lambda: command("churn", "ada")).code is Code.TOO_LATE
    else:
        assert isinstance(command("churn", "ada"), Accepted)


@pytest.mark.parametrize("verb", ["abort", "pause", "resume"])
def test_steering_needs_a_rollout_in_progress(office: Installation, verb: str) -> None:
    assert refusal(lambda: getattr(office.commands, verb)("churn", "ada")).code is Code.NO_ROLLOUT


def test_abort_concerns_the_way_to_live_before_the_way_to_ready(office: Installation) -> None:
    office.began(CHURN[5], Phase.BUILDING, Goal.READY, STAGING)
    office.began(CHURN[7], Phase.PROGRESSING)
    assert office.commands.abort("churn", "ada").version == 7


@pytest.mark.parametrize(
    ("phase", "version", "channel", "allowed"),
    [
        (Phase.PROMOTING, 8, "Production", False),
        (Phase.PROMOTING, 7, "Archived", False),
        (Phase.PROMOTING, 7, "None", False),
        (Phase.PROMOTING, 7, "Production", True),
        (Phase.PROMOTING, 8, "Staging", True),
        (Phase.PROMOTING, 6, "Archived", True),
        (Phase.ROLLING_BACK, 8, "Production", False),
        (Phase.PROGRESSING, 8, "Production", True),
        (Phase.PROGRESSING, 7, "None", True),
    ],
)
def test_while_traffic_moves_for_good_the_registry_is_locked_but_for_the_engine(
    office: Installation, phase: Phase, version: int, channel: str, allowed: bool
) -> None:
    office.registered("churn", 1)
    office.began(CHURN[7], phase)

    answer = office.commands.allowed("churn", version, channel)

    assert answer.allowed is allowed
    assert bool(answer.reason) is not allowed


def test_the_hook_tells_what_the_policy_forbids_and_leaves_other_models_alone(office: Installation) -> None:
    office.policies["churn"] = Policy(require=(STAGING,))
    answer = office.commands.allowed("churn", 7, "Production")
    assert not answer.allowed
    assert "Staging" in answer.reason

    office.policies["churn"] = None
    assert office.commands.allowed("churn", 7, "Production").allowed


def test_the_engine_may_put_back_what_the_policy_would_forbid_to_people(office: Installation) -> None:
    office.policies["churn"] = Policy(require=(STAGING,))
    office.began(CHURN[7], Phase.FAILED)
    assert office.commands.allowed("churn", 6, "Production").allowed
