"""What people take back: a version that served before, a candidate withdrawn, a channel emptied.

Over a real MLflow server and the registry in memory; `tests.contract.whole_controller` says what else is real.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from pipelines.policy import OnEmpty
from pipelines.rollout import Goal, Phase
from registry_hooks.model_version import Channel
from tests.contract.whole_controller import KEEP_WARM_SECONDS, WholeController

PRODUCTION = Channel.parse("Production")
LIVE, RESTORE, READY, ABORT = Goal.LIVE, Goal.RESTORE, Goal.READY, Goal.ABORT
SUCCEEDED, FAILED = Phase.SUCCEEDED, Phase.FAILED


class TestGoingBack:
    def test_a_version_that_is_still_warm_is_restored_without_a_canary(self, either: WholeController) -> None:
        either.registers(2)
        either.goes_live(1)
        either.goes_live(2)
        either.weights.clear()
        either.goes_live(1)
        assert either.outcomes()[-1] == (1, RESTORE, SUCCEEDED)
        assert [gate.name for gate in either.rollout().gates] == ["registered", "image", "answers"]
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


class TestTrouble:
    def test_a_revision_that_answers_although_something_is_wrong_is_told_of_once(self, staged: WholeController) -> None:
        staged.registers()
        staged.goes_live(1)
        (key,) = staged.target.status()
        for trouble in ("it limps", "it limps", "", "it limps", "it is deaf"):
            staged.target.troubles[key] = trouble
            staged.idles(3)
        assert {alert.title for alert in staged.alerts()} == {f"{staged.model} 1 answers, but not as it should"}
        assert [alert.text for alert in staged.alerts()] == ["it limps", "it limps", "it is deaf"]
        assert staged.served() == {1: 100}


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
