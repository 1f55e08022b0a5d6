"""What channels mean: each thing that people do in a registry, and what the whole controller makes of it.

Over a real MLflow server and the registry in memory; `tests.contract.whole_controller` says what else is real.
"""

from __future__ import annotations

import hashlib
import json

import pytest

from pipelines.rollout import Goal, Phase
from registry_hooks.model_version import Channel, ModelVersion
from tests.contract.whole_controller import WholeController

PRODUCTION, STAGING, CHALLENGER = Channel.parse("Production"), Channel.parse("Staging"), Channel.parse("@challenger")
LIVE, READY = Goal.LIVE, Goal.READY
SUCCEEDED, FAILED = Phase.SUCCEEDED, Phase.FAILED


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
        assert either.weights == [(2, 10), (2, 50), (2, 95)]
        assert (either.holders(), either.served(), either.running()) == ({2}, {2: 100}, {1, 2})
        assert either.tags(2)["previous"] == "1"
        assert (either.tags(1)["state"], either.tags(1)["weight"], either.tags(1).get("url")) == ("replaced", "0", None)
        assert either.stage(1) == ("Archived" if either.policy.live == PRODUCTION else None)

    def test_the_evidence_is_an_artifact_of_the_versions_run(self, either: WholeController) -> None:
        either.registers()
        either.goes_live(1)
        assert either.tags(1)["evidence"] in either.person.artifacts(ModelVersion(either.model, 1))

    def test_what_the_image_is_made_of_is_kept_beside_the_evidence(self, either: WholeController) -> None:
        either.registers()
        either.goes_live(1)
        kept = either.person.artifacts(ModelVersion(either.model, 1))
        named = json.loads(kept[either.tags(1)["evidence"]])["documents"]
        assert {one["name"] for one in named} == {"lock.txt", "provenance.json", "sbom.json"}
        for one in named:
            stem, _, ending = one["name"].partition(".")
            assert one["artifact"] == f"promote/{stem}-{one['digest'][:16]}.{ending}"
            assert hashlib.sha256(kept[one["artifact"]]).hexdigest() == one["digest"]

    def test_what_is_lost_of_that_does_not_keep_the_outcome_from_the_registry(self, either: WholeController) -> None:
        either.registers()
        either.builder.forgets_documents = True
        either.goes_live(1)
        kept = either.person.artifacts(ModelVersion(either.model, 1))
        assert either.tags(1)["state"] == "succeeded"
        assert either.tags(1)["evidence"] in kept
        assert not [path for path in kept if path.startswith("promote/sbom")]

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

    def test_and_so_does_one_that_a_command_put_in(self, staged: WholeController) -> None:
        staged.registers(2)
        staged.goes_live(1)
        staged.moves(2, STAGING)
        staged.rests()
        staged.bad.add(2)
        staged.commands(LIVE, 2)
        staged.until(lambda: staged.weights)
        assert staged.holders() == {1, 2}
        staged.rests()
        assert staged.outcomes()[-1] == (2, LIVE, FAILED)
        assert (staged.stage(2), staged.holders()) == ("Staging", {1})
        assert staged.wishes() == [(LIVE, 1), (READY, 2)]

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

    @pytest.mark.parametrize("archive", [False, True], ids=["box not ticked", "box ticked"])
    def test_a_newer_version_waits_for_the_one_that_bakes(self, either: WholeController, archive: bool) -> None:
        either.registers(3)
        either.goes_live(1)
        either.enters(2, archive=archive)
        either.until(lambda: (2, 95) in either.weights)
        either.enters(3, archive=archive)
        either.rests()
        assert either.outcomes() == [(1, LIVE, SUCCEEDED), (2, LIVE, SUCCEEDED), (3, LIVE, SUCCEEDED)]
        assert (either.holders(), either.served()) == ({3}, {3: 100})
        assert either.tags(3)["previous"] == "2"
        assert either.wishes() == [(LIVE, 1), (LIVE, 2), (LIVE, 3)]

    def test_where_the_newer_version_fails_the_one_that_baked_is_live(self, either: WholeController) -> None:
        either.registers(3)
        either.goes_live(1)
        either.bad.add(3)
        either.enters(2)
        either.until(lambda: (2, 95) in either.weights)
        either.enters(3)
        either.rests()
        assert either.outcomes() == [(1, LIVE, SUCCEEDED), (2, LIVE, SUCCEEDED), (3, LIVE, FAILED)]
        assert (either.holders(), either.served()) == ({2}, {2: 100})


class TestAlarms:
    def test_a_common_outage_holds_the_rollout_up_and_tells_it_once(self, staged: WholeController) -> None:
        staged.registers(2)
        staged.goes_live(1)
        staged.outage = True
        staged.enters(2)
        staged.until(staged.alerts)
        for _ in range(5):
            staged.round()
        assert staged.served()[2] == 10
        assert "Held up: the stable revision itself fails" in staged.rollout().reason
        assert [(alert.title, alert.text) for alert in staged.alerts()] == [
            (
                f"rollout of {staged.model} 2 is held up",
                "the stable revision itself fails on more than 20% of its requests",
            )
        ]
        assert [event.text for event in staged.history() if event.kind == "alert"] == [staged.alerts()[0].text]
        staged.outage = False
        staged.rests()
        assert staged.outcomes()[-1] == (2, LIVE, SUCCEEDED)
