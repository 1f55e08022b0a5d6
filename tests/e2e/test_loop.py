"""The story of one model: live from nothing, replaced by a better version, a bad one taken back."""

from __future__ import annotations

import pytest
from mlflow.exceptions import MlflowException

from tests.e2e.loop import Loop, failed, until


def test_a_model_goes_live_is_replaced_and_a_bad_version_is_taken_back(loop: Loop) -> None:
    # given a model whose first version enters an empty Production
    first = loop.register("story")
    loop.transition("story", first, "Production")
    loop.await_state("story", first, "succeeded")
    assert loop.served("story") == str(first)

    with loop.traffic("story") as results:
        # when a second version enters Production beside it, under traffic
        second = loop.register("story")
        loop.transition("story", second, "Production")
        # then it goes live through the canary, no request is lost, and the former one leaves the channel
        loop.await_state("story", second, "succeeded")
        until(lambda: loop.stage("story", first) == "Archived", 30, "the former version is archived")
    assert failed(results) == {}
    assert loop.served("story") == str(second)
    assert loop.stage("story", second) == "Production"

    with loop.traffic("story"):
        # when a third version that fails on half of its requests enters, archiving the second one
        third = loop.register("story", fails=0.5)
        loop.transition("story", third, "Staging")
        loop.await_state("story", third, "ready")
        loop.transition("story", third, "Production", archive=True)
        # then it is taken back to where it came from, and the second one is put back
        loop.await_state("story", third, "failed")
        until(lambda: loop.stage("story", third) == "Staging", 30, "the candidate is back in Staging")
    assert loop.stage("story", second) == "Production"
    assert loop.served("story") == str(second)
    tags = loop.tags("story", third)
    assert "error rate above" in tags["promote.reason"]
    assert tags["promote.previous"] == str(second)
    kept = loop.client.list_artifacts(loop.run_id("story", third), "promote")
    assert tags["promote.evidence"] in [file.path for file in kept]

    # then nothing of the failed candidate is left running
    until(lambda: len(loop.processes("story")) == 2, 60, "only the live and the warm revision run")

    # when a person moves the first version, which is still warm, back to Production
    loop.transition("story", first, "Production")
    # then it is live at once, without a canary
    until(lambda: loop.served("story") == str(first), 30, "the first version is live again")
    until(lambda: loop.stage("story", second) == "Archived", 30, "the registry follows")
    phases = [event["text"].split(":")[0] for event in loop.ask("/models/story/history?limit=1000")["events"]]
    assert "progressing" not in phases[-6:]


def test_taking_the_candidate_out_of_the_channel_aborts_its_rollout(loop: Loop) -> None:
    first = loop.register("abort")
    loop.transition("abort", first, "Production")
    loop.await_state("abort", first, "succeeded")
    second = loop.register("abort")
    loop.transition("abort", second, "Production")
    loop.await_state("abort", second, "progressing")
    loop.transition("abort", second, "Archived")
    loop.await_state("abort", second, "failed")
    assert "taken out of Production" in loop.tags("abort", second)["promote.reason"]
    assert (loop.stage("abort", first), loop.served("abort")) == ("Production", str(first))


def test_commands_promote_pause_resume_and_roll_back_with_the_exit_codes_that_are_documented(loop: Loop) -> None:
    first = loop.register("told")
    assert loop.run("promote", "told", str(first), "--wait").returncode == 0
    assert loop.stage("told", first) == "Production"
    second = loop.register("told")
    assert loop.run("promote", "told", str(second), "--no-wait").returncode == 0
    loop.await_state("told", second, "progressing")
    assert loop.run("pause", "told").returncode == 0
    loop.await_state("told", second, "paused")
    assert loop.run("promote", "told", str(second), "--wait").returncode not in (0, 1)
    assert loop.run("resume", "told").returncode == 0
    loop.await_state("told", second, "progressing")
    assert loop.run("rollback", "told").returncode == 0
    loop.await_state("told", second, "failed")
    assert loop.served("told") == str(first)
    actors = {event["actor"] for event in loop.ask("/models/told/history?limit=1000")["events"] if event["actor"]}
    assert actors
    assert loop.run("promote", "told", "99").returncode not in (0, 1)


def test_an_emptied_channel_keeps_its_traffic_and_a_deleted_candidate_is_taken_back(loop: Loop) -> None:
    first = loop.register("empty")
    loop.transition("empty", first, "Production")
    loop.await_state("empty", first, "succeeded")
    loop.transition("empty", first, "Archived")
    until(
        lambda: any("is empty" in e["text"] for e in loop.ask("/models/empty/history")["events"]),
        60,
        "the history says that the channel is empty",
    )
    assert loop.served("empty") == str(first)
    second = loop.register("empty")
    loop.transition("empty", second, "Production")
    loop.await_state("empty", second, "progressing")
    loop.transition("empty", second, "Archived")
    loop.client.delete_model_version("empty", str(second))
    until(
        lambda: any(e["text"].startswith("failed") for e in loop.ask("/models/empty/history")["events"]),
        60,
        "the rollout of the deleted version ends",
    )
    assert loop.served("empty") == str(first)


def test_mlflow_refuses_what_the_policy_forbids_and_says_why(loop: Loop) -> None:
    version = loop.register("strict-1")
    with pytest.raises(MlflowException, match="Staging") as refused:
        loop.transition("strict-1", version, "Production")
    assert refused.value.error_code == "PERMISSION_DENIED"
    assert loop.stage("strict-1", version) == "None"
    loop.transition("strict-1", version, "Staging")
    loop.await_state("strict-1", version, "ready")
    loop.transition("strict-1", version, "Production")
    loop.await_state("strict-1", version, "succeeded")
    assert loop.served("strict-1") == str(version)


def test_an_alias_as_live_channel_moves_forward_and_is_put_back(loop: Loop) -> None:
    first, second = loop.register("alias-1"), loop.register("alias-1")
    loop.client.set_registered_model_alias("alias-1", "champion", str(first))
    loop.await_state("alias-1", first, "succeeded")
    with loop.traffic("alias-1"):
        loop.client.set_registered_model_alias("alias-1", "champion", str(second))
        loop.await_state("alias-1", second, "succeeded")
        bad = loop.register("alias-1", fails=0.5)
        loop.client.set_registered_model_alias("alias-1", "champion", str(bad))
        loop.await_state("alias-1", bad, "failed")
    until(
        lambda: str(loop.client.get_model_version_by_alias("alias-1", "champion").version) == str(second),
        30,
        "the alias is back",
    )
    assert loop.served("alias-1") == str(second)
