"""Which images stay and which go, and that nothing goes that is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.keeping import Needed, judged, needed
from pipelines.live import Live, Warm
from pipelines.policy import Policy
from pipelines.rollout import Goal, Intent, Origin, Phase, Rollout
from registry_hooks.model_version import Channel, ModelVersion
from serving.revision import Revision
from serving.stock import Kind, Stored

NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)
CHURN = [ModelVersion("churn", version) for version in range(9)]
NOTHING = Needed()
LIVE = Channel.parse("Production")


def image(version: int, *, minute: int | None = None, model: str = "churn", name: str | None = None) -> Stored:
    """Of one version, built so many minutes after noon: by default as many as the number of the version."""
    at = NOON + timedelta(minutes=version if minute is None else minute)
    called = name or f"image-{model}-{version}"
    on = frozenset({f"packages-{model}"})
    return Stored(called, Kind.MODEL, at, 10, {ModelVersion(model, version): at}, on)


def other(name: str, kind: Kind, minute: int = 0, *stands_on: str) -> Stored:
    return Stored(name, kind, NOON + timedelta(minutes=minute), 500, stands_on=frozenset(stands_on))


def going(stored: Sequence[Stored], needs: Needed = NOTHING, last: int = 1) -> list[str]:
    return [one.stored.name for one in judged(stored, needs, last) if not one.why]


def why(stored: Sequence[Stored], needs: Needed = NOTHING, last: int = 1) -> dict[str, str]:
    return {one.stored.name: one.why for one in judged(stored, needs, last)}


def test_the_last_versions_that_were_built_stay_whatever_their_numbers() -> None:
    stored = [image(1, minute=9), image(2), image(3), image(4)]
    assert going(stored, last=2) == ["image-churn-2", "image-churn-3"]
    assert why(stored, last=2)["image-churn-1"] == "of the last 2 versions built"
    assert why(stored)["image-churn-1"] == "of the last version built"


def test_versions_are_counted_by_model() -> None:
    stored = [image(1), image(2), image(1, model="fraud")]
    assert going(stored) == ["image-churn-1"]


def test_a_version_that_was_built_twice_counts_once_and_keeps_its_newer_image() -> None:
    stored = [image(1), image(2), image(2, minute=3, name="again")]
    assert going(stored, last=2) == ["image-churn-2"]


def test_an_image_that_versions_share_stays_with_the_newest_of_them() -> None:
    at = NOON + timedelta(hours=1)
    shared = replace(image(1), versions={CHURN[1]: NOON, CHURN[5]: at})
    assert going([shared, image(2), image(3)]) == ["image-churn-2", "image-churn-3"]


@pytest.mark.parametrize(
    ("needs", "reason"),
    [
        (Needed(images={"image-churn-1": "live"}), "live"),
        (Needed(images={"registry/churn@sha256:1": "kept warm"}), "kept warm"),
        (Needed(versions={CHURN[1]: "rollout a"}), "rollout a"),
    ],
    ids=["by its name", "by another name", "by its version"],
)
def test_what_is_needed_stays_and_says_why(needs: Needed, reason: str) -> None:
    old = replace(image(1), also=frozenset({"registry/churn@sha256:1"}))
    assert going([old, image(2), image(3)], needs) == ["image-churn-2"]
    assert why([old, image(2), image(3)], needs)["image-churn-1"] == reason


def test_what_runs_stays_although_nobody_knows_of_it() -> None:
    stored = [replace(image(1), used="container x"), image(2)]
    assert going(stored) == []
    assert why(stored)["image-churn-1"] == "in use: container x"


def test_what_a_kept_image_stands_on_stays_however_deep() -> None:
    stored = [
        image(2),
        other("packages-churn", Kind.PACKAGES, 0, "below"),
        other("below", Kind.LOCK),
        other("packages-fraud", Kind.PACKAGES),
    ]
    assert going(stored) == ["packages-fraud"]
    assert why(stored)["packages-churn"] == "below churn 2"


def test_the_gateways_newest_image_stays_and_the_one_that_runs() -> None:
    old, running, newest = (other(f"gateway-{n}", Kind.GATEWAY, n) for n in range(3))
    assert going([old, replace(running, used="container gateway"), newest]) == ["gateway-0"]


def test_an_image_of_which_nobody_knows_the_version_goes() -> None:
    assert going([replace(image(1), versions={})]) == ["image-churn-1"]


def revision(version: int) -> Revision:
    return Revision(CHURN[version], f"image-churn-{version}")


def intent(version: int | None, goal: Goal = Goal.LIVE) -> Intent:
    return Intent("i", goal, LIVE, "churn", version, Origin.COMMAND, NOON)


def test_rollouts_need_both_revisions_and_their_version_and_what_is_live_its_warm_ones() -> None:
    rollout = Rollout("r", intent(4), Policy().rollout, Phase.STARTING, NOON, NOON, revision(3), revision(4))
    live = Live("churn", LIVE, revision(3), NOON, (Warm(revision(2), NOON),))
    needs = needed([rollout], [intent(7), intent(None, Goal.ABORT)], [live])
    assert needs.images == {"image-churn-2": "kept warm", "image-churn-3": "live", "image-churn-4": "rollout r"}
    assert needs.versions == {CHURN[4]: "rollout r", CHURN[7]: "wished for"}


def test_nothing_is_needed_of_a_model_that_was_retired() -> None:
    assert needed([], [], [Live("churn", LIVE, None, NOON)]) == NOTHING


# Whatever is stored and needed.

NAMES = [f"thing-{number}" for number in range(10)]
MOMENTS = st.integers(0, 20).map(lambda minute: NOON + timedelta(minutes=minute))
VERSIONS = st.builds(ModelVersion, st.sampled_from(["churn", "fraud"]), st.integers(1, 5))
THINGS = st.builds(
    Stored,
    name=st.sampled_from(NAMES),
    kind=st.sampled_from(Kind),
    made=MOMENTS,
    size=st.just(1),
    versions=st.dictionaries(VERSIONS, MOMENTS, max_size=3),
    stands_on=st.frozensets(st.sampled_from(NAMES), max_size=2),
    also=st.frozensets(st.sampled_from(["a", "b", "c"]), max_size=1),
    used=st.sampled_from(["", "", "container x"]),
)
STORED = st.lists(THINGS, unique_by=lambda one: one.name)
NEEDS = st.builds(
    Needed,
    st.dictionaries(st.sampled_from([*NAMES, "a", "b"]), st.just("live"), max_size=3),
    st.dictionaries(VERSIONS, st.just("rollout r"), max_size=2),
)


@given(STORED, NEEDS, st.integers(1, 3))
def test_nothing_goes_that_is_needed_or_used_or_stood_upon(stored: list[Stored], needs: Needed, last: int) -> None:
    decided = judged(stored, needs, last)
    gone = {one.stored.name for one in decided if not one.why}
    for one in stored:
        if one.name in gone:
            assert not one.used
            assert not one.names & needs.images.keys()
            assert not one.versions.keys() & needs.versions.keys()
        else:
            assert not one.stands_on & gone


@given(STORED, NEEDS, st.integers(1, 3))
def test_of_every_model_as_many_versions_stay_as_are_to_be_kept(stored: list[Stored], needs: Needed, last: int) -> None:
    left = [one.stored for one in judged(stored, needs, last) if one.why]
    for model in ("churn", "fraud"):
        before, after = (
            {version for one in some if one.kind is Kind.MODEL for version in one.versions if version.model == model}
            for some in (stored, left)
        )
        assert len(after) >= min(last, len(before))


@given(STORED, NEEDS, st.integers(1, 3))
def test_a_second_cleaning_removes_nothing_more(stored: list[Stored], needs: Needed, last: int) -> None:
    left = [one.stored for one in judged(stored, needs, last) if one.why]
    assert all(one.why for one in judged(left, needs, last))


@given(STORED, NEEDS, st.integers(1, 3), st.randoms(use_true_random=False))
def test_the_order_in_which_things_are_listed_decides_nothing(
    stored: list[Stored], needs: Needed, last: int, dice: Random
) -> None:
    mixed = list(stored)
    dice.shuffle(mixed)
    assert sorted(going(mixed, needs, last)) == sorted(going(stored, needs, last))
