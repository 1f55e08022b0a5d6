"""How a version is served reaches everybody who asks: its tags, its history, its evidence, its status."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from monitoring.analysis import Evidence
from monitoring.blocks import ArmCount
from pipelines import evidence
from pipelines.advance import advance
from pipelines.live import promoted, retired
from pipelines.reconcile import tags
from pipelines.rollout import Goal, Intent, Origin, Phase, Rollout, RolloutPolicy, Seen
from pipelines.status import model_status, rollout_status
from registry_hooks.model_version import Channel
from serving.image import BuildState, ImageStatus, Proof
from serving.revision import RevisionSettings

NOW = datetime(2026, 1, 1, tzinfo=UTC)
COMPILED = Proof(
    compiled=True,
    why="it answered as it should",
    rows=2314,
    tolerance=1e-6,
    proof="p",
    model="m",
    data="12 rows of data set customers",
)
NATIVE = Proof(compiled=False, why="nothing compiles models of the flavour prophet")
UNSIGNED = Proof(compiled=False, why="the model has no signature", signature=False)


def building() -> Rollout:
    intent = Intent("i", Goal.LIVE, Channel.parse("Production"), "churn", 7, Origin.COMMAND, NOW)
    return Rollout("r", intent, RolloutPolicy(), Phase.BUILDING, NOW, NOW, stable=None)


def built(proof: Proof | None, settings: RevisionSettings | None = None) -> Rollout:
    image = ImageStatus(BuildState.READY, "image", lock="lock", proof=proof)
    rollout = building()
    rollout = replace(rollout, policy=replace(rollout.policy, settings=settings or rollout.policy.settings))
    return advance(rollout, Seen(image=image, revisions={}, routes={}), NOW)


@pytest.mark.parametrize(
    ("proof", "line"),
    [
        (COMPILED, "compiled, parity on 2,314 rows"),
        (NATIVE, "native: nothing compiles models of the flavour prophet"),
    ],
)
def test_one_line_says_how_a_version_is_served(proof: Proof, line: str) -> None:
    rollout = built(proof)
    assert (rollout.phase, rollout.reason) == (Phase.STARTING, line), "the history has it where the building ends"
    assert tags(rollout)["promote.serving"] == line
    assert rollout_status(rollout).serving == line


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (RevisionSettings(gpus=1), "native: it is asked for on a GPU"),
        (RevisionSettings(environment=(("DEVICE", "gpu"),)), "native: it is asked for on a GPU"),
        (RevisionSettings(gpus=1, environment=(("DEVICE", "auto"),)), "compiled, parity on 2,314 rows"),
    ],
)
def test_on_a_gpu_the_compiled_model_does_not_answer(settings: RevisionSettings, line: str) -> None:
    assert tags(built(COMPILED, settings))["promote.serving"] == line


def test_a_tag_that_would_be_too_long_keeps_both_ends() -> None:
    why = "it was ended: " + "line of a trace, " * 100 + "ValueError: no such column"
    line = tags(built(replace(NATIVE, why=why)))["promote.serving"]

    assert len(line) == 500
    assert line.startswith("native: it was ended: ")
    assert line.endswith("ValueError: no such column")


def test_the_evidence_has_the_whole_proof() -> None:
    assert json.loads(evidence.record(built(COMPILED)))["serving"] == {
        "compiled": True,
        "why": "it answered as it should",
        "rows": 2314,
        "tolerance": 1e-6,
        "proof": "p",
        "model": "m",
        "signature": True,
        "data": "12 rows of data set customers",
    }


def test_a_version_without_signature_carries_a_warning() -> None:
    assert "no signature" in tags(built(UNSIGNED))["promote.warning"]
    assert tags(built(NATIVE))["promote.warning"] == "", "an empty value removes the tag"


def test_the_status_of_what_is_live_says_how_it_is_served() -> None:
    live = promoted(None, replace(built(UNSIGNED), phase=Phase.SUCCEEDED), NOW)
    assert live is not None
    shown = model_status(("churn", live.channel), live, (), {})
    assert shown.serving == "native: the model has no signature"
    assert shown.problems == (UNSIGNED.warning,)
    gone = model_status(("churn", live.channel), retired(live, NOW), (), {})
    assert (gone.serving, gone.problems) == (None, ())


def test_nothing_is_said_of_what_is_not_known() -> None:
    rollout = built(None)
    assert (rollout.reason, tags(rollout)["promote.serving"], rollout_status(rollout).serving) == ("", "", None)
    assert json.loads(evidence.record(rollout))["serving"] is None


def test_the_evidence_has_what_so_many_requests_would_have_found() -> None:
    rollout = built(COMPILED)
    seen = replace(
        Evidence.start(rollout.policy.analysis, (5, 100)), stable=ArmCount(9500, 95), candidate=ArmCount(500, 5)
    )
    found = json.loads(evidence.record(replace(rollout, evidence=seen)))["detectable"]
    assert [one["metric"] for one in found] == ["errors", "refusals", "latency", "latency tail", "predictions"]
    assert found[0]["usual"] == 0.01
    assert 0.02 < found[0]["least"] < 0.06
    assert json.loads(evidence.record(rollout))["detectable"] == []
