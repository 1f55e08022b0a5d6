"""Channels while something is amiss: no controller, versions and models that vanish, a policy that is broken.

Over a real MLflow server and the registry in memory; `tests.contract.whole_controller` says what else is real.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.rollout import Goal, Phase
from registry_hooks.model_version import Channel
from tests.contract.whole_controller import ROLLOUT, WholeController

STAGING = Channel.parse("Staging")
LIVE, READY = Goal.LIVE, Goal.READY
SUCCEEDED, FAILED = Phase.SUCCEEDED, Phase.FAILED


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
        assert {weight for _, weight in either.weights} <= {10, 50, 95}
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
