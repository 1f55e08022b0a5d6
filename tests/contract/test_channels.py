"""What channels mean: each thing that people do in a registry, and what the whole controller makes of it.

Over a real MLflow server and the registry in memory; `tests.contract.whole_controller` says what else is real.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.policy import OnEmpty
from pipelines.rollout import Goal, Phase
from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import Channel, ModelVersion
from tests.contract.mlflow_person import MlflowPerson
from tests.contract.whole_controller import KEEP_WARM_SECONDS, ROLLOUT, Person, Registry, WholeController
from tests.fakes.registry import FakeRegistry

PRODUCTION, STAGING = Channel.parse("Production"), Channel.parse("Staging")
CHAMPION, CHALLENGER = Channel.parse("@champion"), Channel.parse("@challenger")

Make = Callable[[Channel, Channel], WholeController]
LIVE, RESTORE, READY, ABORT = Goal.LIVE, Goal.RESTORE, Goal.READY, Goal.ABORT
SUCCEEDED, FAILED = Phase.SUCCEEDED, Phase.FAILED


@pytest.fixture(params=["fake", "mlflow"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    person, connect = _fake() if request.param == "fake" else _mlflow(request)
    return lambda live, pre_live: WholeController(tmp_path, person, connect, live, pre_live)


def _fake() -> tuple[Person, Callable[[], Registry]]:
    fake = FakeRegistry()

    def connect() -> Registry:
        fake._seen = None
        return fake

    return fake, connect


def _mlflow(request: pytest.FixtureRequest) -> tuple[Person, Callable[[], Registry]]:
    server = request.getfixturevalue("mlflow_server")
    return MlflowPerson.at(server), lambda: MlflowRegistry(server.uri)


@pytest.fixture
def staged(make: Make) -> WholeController:
    """The live channel is a stage."""
    return make(PRODUCTION, STAGING)


@pytest.fixture
def aliased(make: Make) -> WholeController:
    """The live channel is an alias."""
    return make(CHAMPION, CHALLENGER)


@pytest.fixture(params=[(PRODUCTION, STAGING), (CHAMPION, CHALLENGER)], ids=["stage", "alias"])
def either(request: pytest.FixtureRequest, make: Make) -> WholeController:
    """Both kinds in turn."""
    return make(*request.param)


class TestGoingLive:
    def test_the_first_version_goes_live_from_an_empty_channel(self, either: WholeController) -> None:
        either.registers()
        either.goes_live(1)
        assert either.outcomes() == [(1, LIVE, SUCCEEDED)]
        assert (either.holders(), either.served(), either.weights) == ({1}, {1: 100}, [])
        shown = either.tags(1)
        assert (shown["state"], shown["weight"], shown["url"]) == (
            "succeeded",
            "100",
            f"http://gateway/models/{either.model}",
        )

    def test_the_next_version_goes_through_the_canary_and_the_former_one_leaves(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.goes_live(2)
        assert either.weights == [(2, 10), (2, 50)]
        assert (either.holders(), either.served(), either.running()) == ({2}, {2: 100}, {1, 2})
        assert either.tags(2)["previous"] == "1"
        assert either.stage(1) == ("Archived" if either.policy.live == PRODUCTION else None)

    def test_the_evidence_is_an_artifact_of_the_versions_run(self, either: WholeController) -> None:
        either.registers()
        either.goes_live(1)
        assert either.tags(1)["evidence"] in either.person.artifacts(ModelVersion(either.model, 1))

    def test_what_nobody_manages_is_left_alone(self, either: WholeController) -> None:
        either.registers()
        either.models.clear()
        either.enters(1)
        either.rests()
        assert (either.outcomes(), either.wishes(), either.served()) == ([], [], {})


class TestStaging:
    def test_a_version_is_checked_built_and_proved_and_gets_no_traffic(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.moves(2, either.policy.pre_live)
        either.until(lambda: 2 in either.running())
        assert either.served() == {1: 100}
        either.rests()
        assert either.outcomes()[-1] == (2, READY, SUCCEEDED)
        assert (either.tags(2)["state"], either.tags(2)["weight"]) == ("ready", "0")
        assert (either.served(), either.running()) == ({1: 100}, {1})
        assert (either.holders(), either.holders(either.policy.pre_live)) == ({1}, {2})

    def test_promotion_from_there_finds_the_image_ready(self, either: WholeController) -> None:
        either.registers()
        either.moves(1, either.policy.pre_live)
        either.rests()
        either.goes_live(1)
        assert [request.version.version for request in either.builder.built] == [1]
        assert either.outcomes() == [(1, READY, SUCCEEDED), (1, LIVE, SUCCEEDED)]

    def test_a_version_that_does_not_pass_stays_there_and_says_so(self, either: WholeController) -> None:
        either.registers()
        either.refused.add(1)
        either.moves(1, either.policy.pre_live)
        either.rests()
        assert either.outcomes() == [(1, READY, FAILED)]
        assert either.holders(either.policy.pre_live) == {1}
        assert (either.tags(1)["state"], either.tags(1)["reason"]) == ("failed", "gate answers: as chosen")
        assert either.running() == set()

    def test_a_version_that_moves_on_before_it_is_ready_goes_live(self, either: WholeController) -> None:
        either.registers()
        either.moves(1, either.policy.pre_live)
        either.until(lambda: 1 in either.running())
        either.goes_live(1)
        assert [request.version.version for request in either.builder.built] == [1]
        assert either.tags(1)["state"] == "succeeded"

    def test_what_is_live_has_nothing_to_get_ready_for(self, aliased: WholeController) -> None:
        aliased.registers()
        aliased.goes_live(1)
        aliased.moves(1, CHALLENGER)
        aliased.rests()
        assert aliased.wishes() == [(LIVE, 1)]
        assert aliased.tags(1)["weight"] == "100"


class TestFailure:
    @pytest.mark.parametrize("origin", ["Staging", "Archived", None])
    def test_the_candidate_goes_back_to_where_it_came_from(self, staged: WholeController, origin: str | None) -> None:
        staged.registers(2)
        staged.goes_live(1)
        staged.moves(2, Channel.parse(origin) if origin else None)
        staged.rests()
        wished = staged.wishes()
        staged.bad.add(2)
        staged.enters(2)
        staged.rests()
        assert staged.outcomes()[-1] == (2, LIVE, FAILED)
        assert (staged.stage(2), staged.holders(), staged.served()) == (origin, {1}, {1: 100})
        assert staged.tags(2)["state"] == "failed"
        assert staged.tags(2)["reason"].startswith("Worse: error rate above the stable one")
        assert staged.wishes() == [*wished, (LIVE, 2)]

    def test_the_alias_goes_back_by_itself(self, aliased: WholeController) -> None:
        aliased.registers(2)
        aliased.goes_live(1)
        aliased.bad.add(2)
        aliased.enters(2)
        aliased.until(lambda: aliased.weights)
        assert aliased.holders() == {2}
        aliased.rests()
        assert aliased.outcomes()[-1] == (2, LIVE, FAILED)
        assert (aliased.holders(), aliased.served(), aliased.running()) == ({1}, {1: 100}, {1})

    @pytest.mark.parametrize("archive", [False, True], ids=["box not ticked", "box ticked"])
    @pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
    def test_the_archive_box_makes_no_difference_in_the_end(
        self, staged: WholeController, archive: bool, fails: bool
    ) -> None:
        staged.registers(2)
        staged.goes_live(1)
        staged.bad |= {2} if fails else set()
        staged.enters(2, archive=archive)
        staged.until(lambda: staged.weights)
        assert staged.holders() == ({2} if archive else {1, 2})
        staged.rests()
        live = 1 if fails else 2
        assert (staged.holders(), staged.served()) == ({live}, {live: 100})
        assert staged.stage(3 - live) == (None if fails else "Archived")
        assert staged.wishes() == [(LIVE, 1), (LIVE, 2)]
        assert staged.alerts() == [] or fails

    def test_a_gate_that_fails_costs_no_request(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.refused.add(2)
        either.enters(2, archive=True)
        either.rests()
        assert (either.outcomes()[-1], either.weights) == ((2, LIVE, FAILED), [])
        assert (either.holders(), either.served()) == ({1}, {1: 100})

    def test_the_first_version_that_fails_leaves_the_channel_empty(self, either: WholeController) -> None:
        either.registers()
        either.refused.add(1)
        either.enters(1)
        either.rests()
        assert either.outcomes() == [(1, LIVE, FAILED)]
        assert (either.holders(), either.served(), either.running()) == (set(), {}, set())

    def test_a_version_without_a_run_goes_back_the_same_way(self, staged: WholeController) -> None:
        """Its evidence can be kept nowhere; what was moved back is still nobody's wish."""
        staged.registers()
        staged.person.register(staged.model, run_id=None)
        staged.goes_live(1)
        staged.moves(2, STAGING)
        staged.rests()
        staged.bad.add(2)
        staged.enters(2)
        staged.rests()
        assert (staged.stage(2), staged.holders()) == ("Staging", {1})
        assert staged.wishes() == [(LIVE, 1), (READY, 2), (LIVE, 2)]
        assert staged.tags(2)["state"] == "failed"

    def test_the_same_version_is_tried_again_by_a_new_transition_only(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.bad.add(2)
        either.enters(2)
        either.rests()
        either.idles(5)
        assert either.wishes() == [(LIVE, 1), (LIVE, 2)]
        either.bad.clear()
        either.goes_live(2)
        assert either.outcomes() == [(1, LIVE, SUCCEEDED), (2, LIVE, FAILED), (2, LIVE, SUCCEEDED)]
        assert either.tags(2)["state"] == "succeeded"


class TestSeveral:
    @pytest.mark.parametrize("fails", [False, True], ids=["newest succeeds", "newest fails"])
    def test_of_two_that_entered_while_nobody_looked_the_newest_is_tried(
        self, staged: WholeController, fails: bool
    ) -> None:
        staged.registers(3)
        staged.goes_live(1)
        staged.bad |= {3} if fails else set()
        staged.enters(2)
        staged.enters(3)
        staged.rests()
        staged.idles(5)
        live = 1 if fails else 3
        assert staged.outcomes() == [(1, LIVE, SUCCEEDED), (3, LIVE, FAILED if fails else SUCCEEDED)]
        assert (staged.holders(), staged.served(), staged.stage(2)) == ({live}, {live: 100}, "Archived")
        assert staged.wishes() == [(LIVE, 1), (LIVE, 2), (LIVE, 3)]

    def test_two_at_once_in_an_empty_channel(self, staged: WholeController) -> None:
        staged.registers(2)
        staged.enters(2)
        staged.enters(1)
        staged.rests()
        assert staged.outcomes() == [(1, LIVE, SUCCEEDED)]
        assert (staged.holders(), staged.stage(2)) == ({1}, "Archived")

    @pytest.mark.parametrize("archive", [False, True], ids=["box not ticked", "box ticked"])
    def test_a_newer_version_supersedes_the_one_on_its_way(self, either: WholeController, archive: bool) -> None:
        either.registers(3)
        either.goes_live(1)
        either.enters(2, archive=archive)
        either.until(lambda: either.weights)
        either.enters(3, archive=archive)
        either.rests()
        assert either.outcomes() == [(1, LIVE, SUCCEEDED), (2, LIVE, FAILED), (3, LIVE, SUCCEEDED)]
        assert (either.holders(), either.served()) == ({3}, {3: 100})
        assert either.tags(2)["reason"] == "superseded by version 3"
        assert either.wishes() == [(LIVE, 1), (LIVE, 2), (LIVE, 3)]


class TestGoingBack:
    def test_a_version_that_is_still_warm_is_restored_without_a_canary(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.goes_live(2)
        either.weights.clear()
        either.goes_live(1)
        assert either.outcomes()[-1] == (1, RESTORE, SUCCEEDED)
        assert [gate.name for gate in either.rollout().gates] == ["registered", "answers"]
        assert (either.weights, either.holders(), either.served()) == ([], {1}, {1: 100})

    def test_and_still_verified(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.goes_live(2)
        either.refused.add(1)
        either.enters(1, archive=True)
        either.rests()
        assert either.outcomes()[-1] == (1, RESTORE, FAILED)
        assert (either.holders(), either.served()) == ({2}, {2: 100})
        assert either.stage(1) == ("Archived" if either.policy.live == PRODUCTION else None)

    def test_after_its_time_to_be_kept_warm_it_takes_the_canary(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.goes_live(2)
        either.round(KEEP_WARM_SECONDS)
        either.idles()
        assert either.running() == {2}
        either.goes_live(1)
        assert either.outcomes()[-1] == (1, LIVE, SUCCEEDED)
        assert (1, 10) in either.weights

    def test_the_live_version_entering_again_aborts_the_other_ones_rollout(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.enters(2, archive=True)
        either.until(lambda: either.weights)
        either.enters(1)
        either.rests()
        assert either.outcomes()[-1] == (2, LIVE, FAILED)
        assert either.tags(2)["reason"].startswith("aborted")
        assert (either.holders(), either.served(), either.running()) == ({1}, {1: 100}, {1})
        assert either.wishes() == [(LIVE, 1), (LIVE, 2), (ABORT, 1)]


class TestWithdrawal:
    @pytest.mark.parametrize("to", ["Staging", "Archived", None])
    def test_a_candidate_moved_to_another_stage_is_taken_back(self, staged: WholeController, to: str | None) -> None:
        staged.registers(2)
        staged.goes_live(1)
        staged.enters(2)
        staged.until(lambda: staged.weights)
        staged.moves(2, Channel.parse(to) if to else None)
        staged.rests()
        assert (2, LIVE, FAILED) in staged.outcomes()
        assert (staged.stage(2), staged.holders(), staged.served()) == (to, {1}, {1: 100})

    def test_a_deleted_alias_goes_back_to_the_live_version(self, aliased: WholeController) -> None:
        aliased.registers(2)
        aliased.goes_live(1)
        aliased.enters(2)
        aliased.until(lambda: aliased.weights)
        aliased.withdraws(2)
        aliased.rests()
        assert aliased.outcomes()[-1] == (2, LIVE, FAILED)
        assert aliased.tags(2)["reason"] == "version 2 was taken out of @champion"
        assert (aliased.holders(), aliased.served()) == ({1}, {1: 100})

    def test_the_first_candidate_withdrawn_leaves_nothing_behind(self, either: WholeController) -> None:
        either.registers()
        either.enters(1)
        either.until(lambda: 1 in either.running())
        either.withdraws(1)
        either.rests()
        assert either.outcomes() == [(1, LIVE, FAILED)]
        assert (either.holders(), either.served(), either.running()) == (set(), {}, set())

    def test_a_candidate_put_in_again_while_it_goes_back_is_tried_again(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.enters(2)
        either.until(lambda: either.weights)
        either.router.delay = 12
        either.withdraws(2)
        either.until(lambda: either.phase_of(2) is Phase.ROLLING_BACK)
        either.enters(2)
        either.router.delay = 0
        either.rests()
        assert either.outcomes()[-2:] == [(2, LIVE, FAILED), (2, LIVE, SUCCEEDED)]
        assert (either.holders(), either.served()) == ({2}, {2: 100})


class TestEmpty:
    @pytest.mark.parametrize("to", ["Staging", "Archived", None])
    def test_traffic_stays_and_it_is_told_once(self, staged: WholeController, to: str | None) -> None:
        staged.registers()
        staged.goes_live(1)
        staged.moves(1, Channel.parse(to) if to else None)
        staged.rests()
        staged.start()
        staged.idles(5)
        self._told_once(staged)
        assert staged.stage(1) == to

    def test_a_deleted_alias_is_told_once(self, aliased: WholeController) -> None:
        aliased.registers()
        aliased.goes_live(1)
        aliased.withdraws(1)
        aliased.rests()
        aliased.start()
        aliased.idles(5)
        self._told_once(aliased)

    def _told_once(self, world: WholeController) -> None:
        assert [alert.title for alert in world.alerts()] == [f"{world.policy.live} is empty"]
        told = [event.text for event in world.history() if event.kind == "alert"]
        assert told == [f"{world.policy.live} is empty; traffic stays on {world.model} 1"]
        assert (world.served(), world.running(), world.holders()) == ({1: 100}, {1}, set())
        assert world.wishes() == [(LIVE, 1)]

    def test_the_same_version_put_back_needs_no_rollout(self, either: WholeController) -> None:
        either.registers()
        either.goes_live(1)
        either.withdraws(1)
        either.rests()
        either.enters(1)
        either.rests()
        assert (either.outcomes(), either.served()) == ([(1, LIVE, SUCCEEDED)], {1: 100})

    def test_a_policy_can_ask_for_the_model_to_be_taken_off_the_gateway(self, either: WholeController) -> None:
        either.policy = replace(either.policy, on_empty=OnEmpty.REMOVE)
        either.registers(2)
        either.goes_live(1)
        either.goes_live(2)
        either.withdraws(2)
        either.rests()
        assert (either.served(), either.running(), either.live_version()) == ({}, set(), None)
        assert [event.text for event in either.history() if event.kind == "alert"] == ["retired: its channel is empty"]
        either.goes_live(2)
        assert either.outcomes()[-1] == (2, LIVE, SUCCEEDED)


class TestOwnWrites:
    def test_nothing_that_the_controller_writes_is_taken_for_a_wish(self, either: WholeController) -> None:
        """A promotion, a rollback and a restore, with the box ticked and not; then a long time with nobody there."""
        either.registers(3)
        either.moves(2, either.policy.pre_live)
        either.rests()
        either.goes_live(1)
        either.enters(2, archive=True)
        either.rests()
        either.bad.add(3)
        either.enters(3, archive=True)
        either.rests()
        either.goes_live(1)
        either.start()
        either.idles(30)
        assert either.wishes() == [(READY, 2), (LIVE, 1), (LIVE, 2), (LIVE, 3), (RESTORE, 1)]
        assert len(either.outcomes()) == 5


class TestAway:
    def test_what_happened_while_no_controller_ran_is_found_in_order(self, staged: WholeController) -> None:
        staged.registers(4)
        staged.goes_live(1)
        staged.moves(4, STAGING)
        staged.enters(3)
        staged.enters(2)
        staged.start()
        staged.rests()
        assert staged.wishes()[1:] == [(READY, 4), (LIVE, 3), (LIVE, 2)]
        assert sorted(staged.outcomes()[1:]) == sorted([(4, READY, SUCCEEDED), (2, LIVE, SUCCEEDED)])
        assert (staged.holders(), staged.stage(3), staged.stage(4)) == ({2}, "Archived", "Staging")

    def test_an_alias_that_moved_several_times_is_where_it_is(self, aliased: WholeController) -> None:
        aliased.registers(3)
        aliased.goes_live(1)
        aliased.enters(2)
        aliased.enters(3)
        aliased.start()
        aliased.rests()
        assert aliased.outcomes()[1:] == [(3, LIVE, SUCCEEDED)]

    def test_a_candidate_withdrawn_meanwhile_is_taken_back(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.enters(2)
        either.until(lambda: either.weights)
        either.withdraws(2)
        either.start()
        either.rests()
        assert either.outcomes()[-1] == (2, LIVE, FAILED)
        assert (either.holders(), either.served()) == ({1}, {1: 100})

    def test_the_first_start_finds_what_is_there(self, either: WholeController) -> None:
        either.registers(2)
        either.enters(1)
        either.moves(2, either.policy.pre_live)
        either.rests()
        assert sorted(either.outcomes()) == [(1, LIVE, SUCCEEDED), (2, READY, SUCCEEDED)]


class TestDeletion:
    def test_the_candidate_is_deleted_in_mid_rollout(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.enters(2, archive=True)
        either.until(lambda: either.weights)
        either.person.delete_version(either.model, 2)
        either.rests()
        assert either.outcomes()[-1] == (2, LIVE, FAILED)
        assert either.rollout().reason == "version 2 was deleted from the registry"
        assert (either.holders(), either.served(), either.running()) == ({1}, {1: 100}, {1})

    def test_the_live_version_is_deleted_and_keeps_its_traffic(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.person.delete_version(either.model, 1)
        either.rests()
        either.idles(5)
        assert [alert.title for alert in either.alerts()] == [f"{either.policy.live} is empty"]
        assert (either.served(), either.running()) == ({1: 100}, {1})
        either.goes_live(2)

    def test_a_candidate_that_fails_after_the_live_version_was_deleted(self, either: WholeController) -> None:
        """There is nobody to put back; the candidate leaves the channel all the same, and that is no wish."""
        either.registers(2)
        either.goes_live(1)
        either.moves(2, either.policy.pre_live)
        either.rests()
        either.person.delete_version(either.model, 1)
        either.bad.add(2)
        either.enters(2)
        either.rests()
        assert either.outcomes()[-1] == (2, LIVE, FAILED)
        assert (either.holders(), either.holders(either.policy.pre_live), either.served()) == (set(), {2}, {1: 100})
        assert either.wishes() == [(LIVE, 1), (READY, 2), (LIVE, 2)]
        assert either.tags(2)["state"] == "failed"

    def test_a_deleted_model_keeps_its_traffic_and_it_is_told(self, either: WholeController) -> None:
        either.registers()
        either.goes_live(1)
        either.person.delete_model(either.model)
        either.idles(15)
        assert [alert.title for alert in either.alerts()] == [f"{either.policy.live} is empty"]
        assert (either.served(), either.running()) == ({1: 100}, {1})

    def test_a_model_deleted_in_mid_rollout(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.enters(2)
        either.until(lambda: either.weights)
        either.person.delete_model(either.model)
        either.rests()
        assert either.outcomes()[-1] == (2, LIVE, FAILED)
        assert (either.served(), either.running()) == ({1: 100}, {1})

    def test_a_renamed_model_goes_live_under_its_new_name(self, either: WholeController) -> None:
        """Whoever still asks under the old name is served; it is told that nothing holds the channel there."""
        either.registers()
        either.goes_live(1)
        old, new = either.model, f"{either.model}-new"
        either.models.add(new)
        either.person.rename_model(old, new)
        either.idles(15)
        assert [alert.title for alert in either.alerts()] == [f"{either.policy.live} is empty"]
        assert either.served() == {1: 100}
        either.model = new
        either.rests()
        assert either.outcomes() == [(1, LIVE, SUCCEEDED)]
        assert (either.holders(), either.served()) == ({1}, {1: 100})

    def test_a_model_renamed_in_mid_rollout(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.enters(2, archive=True)
        either.until(lambda: either.weights)
        either.person.rename_model(either.model, f"{either.model}-new")
        either.rests()
        assert either.outcomes()[-1] == (2, LIVE, FAILED)
        assert (either.served(), either.running()) == ({1: 100}, {1})


class TestBrokenPolicy:
    def test_transitions_wait_until_it_is_mended(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.trouble = "rollout.steps must rise"
        either.enters(2)
        either.idles(15)
        assert either.outcomes() == [(1, LIVE, SUCCEEDED)]
        either.start()
        either.idles()
        either.trouble = None
        either.rests()
        assert either.outcomes()[1:] == [(2, LIVE, SUCCEEDED)]

    @pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
    def test_a_rollout_in_flight_goes_on_under_the_policy_it_began_with(
        self, either: WholeController, fails: bool
    ) -> None:
        either.registers(2)
        either.goes_live(1)
        either.moves(2, either.policy.pre_live)
        either.rests()
        either.bad |= {2} if fails else set()
        either.enters(2)
        either.until(lambda: either.weights)
        either.trouble = "rollout.steps must rise"
        either.policy = replace(either.policy, rollout=replace(ROLLOUT, steps=(30, 100)))
        live = 1 if fails else 2
        either.until(lambda: either.phase_of(2) in (SUCCEEDED, FAILED))
        assert either.served() == {live: 100}
        either.idles(15)
        either.trouble = None
        either.rests()
        assert {weight for _, weight in either.weights} <= {10, 50}
        assert (either.holders(), either.served()) == ({live}, {live: 100})
        assert either.wishes() == [(LIVE, 1), (READY, 2), (LIVE, 2)]

    def test_a_candidate_withdrawn_meanwhile_is_taken_back(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.enters(2)
        either.until(lambda: either.weights)
        either.trouble = "rollout.steps must rise"
        either.withdraws(2)
        either.until(lambda: either.phase_of(2) is FAILED)
        assert either.served() == {1: 100}
        either.trouble = None
        either.rests()
        assert (either.holders(), either.served()) == ({1}, {1: 100})
