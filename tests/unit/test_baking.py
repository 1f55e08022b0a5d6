"""The bake: all but a small share is the candidate's, and the comparison goes on.

First what ends it, as tables; then whatever happens in it, in any order: the promises that hold for every rollout.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.advance import advance
from pipelines.reconcile import Action, Assign, RemoveRoute, SetWeights, reconcile
from pipelines.rollout import FINAL, Goal, Phase, Rollout, Seen
from serving.revision import RevisionState
from tests.unit.test_rollout import (
    ALIAS,
    BAD,
    CANDIDATE,
    LATER,
    NOW,
    POLICY,
    STABLE,
    intent,
    rollout,
    seen,
    status,
)

BAKING = rollout(Phase.BAKING, reason="good enough")
LONGEST = timedelta(seconds=POLICY.pause_seconds + POLICY.promote_seconds + POLICY.ready_seconds + 100)


def baked(**changes: object) -> Rollout:
    return advance(BAKING, seen(95, "r/3", **changes), LATER)


def test_a_newer_version_waits_until_the_baking_one_is_live() -> None:
    newer = (intent(version=8),)
    after = baked(asked=newer)
    assert (after.phase, after.superseded) == (Phase.PROMOTING, True)
    assert after.reason == "good enough; version 8 came before the bake was over"
    assert advance(after, seen(95, "r/3", asked=newer), LATER).phase is Phase.PROMOTING
    live = advance(after, seen(100, asked=newer), LATER)
    assert live.phase is Phase.SUCCEEDED


@pytest.mark.parametrize("holders", [{8}, {6, 8}, {7, 8}], ids=["all were archived", "taken out", "both hold it"])
def test_the_newer_version_keeps_the_channel_that_it_holds(holders: set[int]) -> None:
    world = seen(100, asked=(intent(version=8),), holders=frozenset(holders))
    live = advance(advance(BAKING, world, LATER), world, LATER)
    assert live.phase is Phase.SUCCEEDED
    moves = [a for a in reconcile(live, world) if isinstance(a, Assign)]
    assert {move.version.version for move in moves} == holders & {6}


def test_an_alias_that_moved_on_does_not_come_back() -> None:
    alias = intent(channel=ALIAS)
    world = seen(100, asked=(intent(version=8, channel=ALIAS),), holders=frozenset({8}))
    live = advance(advance(replace(BAKING, intent=alias), world, LATER), world, LATER)
    assert live.phase is Phase.SUCCEEDED
    assert not [a for a in reconcile(live, world) if isinstance(a, Assign)]


@pytest.mark.parametrize(
    "changes",
    [
        {"blocks": BAD, "asked": (intent(version=8),)},
        {"asked": (intent(version=8), intent(Goal.ABORT))},
        {"asked": (intent(version=8), intent(Goal.RESTORE, 5))},
        {"asked": (intent(version=8),), "gone": True},
        {"asked": (intent(version=8),), "revisions": {STABLE.id: status(STABLE)}},
        {"holders": frozenset({6})},
    ],
    ids=["worse", "aborted", "an earlier version is wanted", "deleted", "dead", "taken out"],
)
def test_what_goes_back_although_a_newer_version_waits(changes: dict[str, object]) -> None:
    assert baked(**changes).phase is Phase.ROLLING_BACK


def test_a_newer_version_takes_back_what_a_person_paused_in_its_bake() -> None:
    paused = advance(BAKING, seen(95, "r/3", asked=(intent(Goal.PAUSE),)), LATER)
    assert (paused.phase, paused.weight, paused.tag) == (Phase.PAUSED, 95, "r/3")
    assert advance(paused, seen(95, "r/3", asked=(intent(version=8),)), LATER).phase is Phase.ROLLING_BACK
    assert advance(paused, seen(95, "r/3", asked=(intent(Goal.RESUME),)), LATER).phase is Phase.BAKING


def test_a_stable_revision_that_ends_leaves_nothing_to_wait_for() -> None:
    after = baked(revisions={CANDIDATE.id: status(CANDIDATE)})
    assert (after.phase, after.reason) == (
        Phase.PROMOTING,
        "good enough; the stable revision ended before the bake was over",
    )


def test_what_the_last_requests_of_a_bake_say_still_counts() -> None:
    promoting = rollout(Phase.PROMOTING, step=3, evidence=BAKING.evidence)
    assert advance(promoting, seen(100, blocks=BAD), LATER).phase is Phase.ROLLING_BACK


class Gateway:
    """Puts routes in force as asked, and says what every one of them has to be."""

    def __init__(self) -> None:
        self.world = seen(95, "r/3")
        self.came = self.world

    def happens(self, changes: dict[str, object]) -> Seen:
        """What is seen in this tick; routes stay what they are where nothing else is said."""
        self.came = replace(self.world, **changes)  # type: ignore[arg-type]
        return self.came

    def carries_out(self, saved: Rollout, action: Action) -> None:
        if isinstance(action, SetWeights):
            self._only_to_the_ready(action.route.weights.shares)
            assert sum(action.route.weights.shares.values()) == 100
            self.world = replace(self.world, routes={"churn": action.route})
        if isinstance(action, Assign) and action.version == STABLE.version and action.leave is not None:
            assert saved.phase is Phase.SUCCEEDED
        assert not isinstance(action, RemoveRoute)

    def _only_to_the_ready(self, shares: Mapping[str, int]) -> None:
        before = (self.world.routes or {})["churn"].weights.shares
        for revision in [name for name, share in shares.items() if share > before.get(name, 0)]:
            assert (self.came.revisions or {})[revision].ready


STATES = st.sampled_from([None, *RevisionState])
REVISIONS = st.none() | st.tuples(STATES, STATES).map(
    lambda found: {r.id: status(r, state) for r, state in zip((STABLE, CANDIDATE), found, strict=True) if state}
)
WISHES = st.sampled_from(
    [
        intent(Goal.PAUSE),
        intent(Goal.RESUME),
        intent(Goal.ABORT),
        intent(version=8),
        intent(version=6),
        intent(Goal.RESTORE, 5),
        intent(Goal.RETIRE, None),
    ]
)
EVENTS = st.fixed_dictionaries(
    {},
    optional={
        "revisions": REVISIONS,
        "routes": st.none(),
        "holders": st.none() | st.frozensets(st.sampled_from([6, 7, 8])),
        "blocks": st.sampled_from([BAD, BAD[:2]]),
        "asked": st.lists(WISHES, max_size=2).map(tuple),
        "gone": st.booleans(),
    },
)
QUIET = EVENTS.filter(lambda happened: not happened.keys() & {"revisions", "holders", "blocks", "asked", "gone"})
WAITS = st.sampled_from([0.5, 5.0, 200.0, 1000.0])


def ticks(
    saved: Rollout, gateway: Gateway, events: list[tuple[float, dict[str, object]]], now: datetime
) -> Iterator[tuple[Rollout, Seen, Rollout]]:
    """What was saved, what was seen, and what was saved next; what can be done then is done."""
    for wait, changes in events:
        now += timedelta(seconds=wait)
        came = gateway.happens(changes)
        after = advance(saved, came, now)
        assert after == advance(saved, came, now)
        actions = reconcile(after, came)
        assert actions == reconcile(after, came)
        for action in actions:
            gateway.carries_out(after, action)
        yield saved, came, after
        saved = after


@given(st.lists(st.tuples(WAITS, EVENTS), max_size=12))
def test_traffic_registry_and_phase_agree_whatever_happens_in_a_bake(
    events: list[tuple[float, dict[str, object]]],
) -> None:
    gateway = Gateway()
    for before, came, after in ticks(BAKING, gateway, events, NOW):
        if after.phase is Phase.SUCCEEDED and before.phase is not Phase.SUCCEEDED:
            assert came.share(CANDIDATE) == 100
        if after.phase is Phase.FAILED and before.phase is not Phase.FAILED:
            assert came.share(CANDIDATE) == 0
        if before.phase in FINAL:
            assert after.phase is before.phase


@given(st.lists(st.tuples(WAITS, EVENTS), max_size=12))
def test_every_bake_comes_to_an_end(events: list[tuple[float, dict[str, object]]]) -> None:
    gateway, now = Gateway(), NOW + timedelta(seconds=sum(wait for wait, _ in events))
    last = BAKING
    for _, _, after in ticks(BAKING, gateway, events, NOW):
        last = after
    calm: list[tuple[float, dict[str, object]]] = [(LONGEST.total_seconds(), {}), *[(1.0, {})] * 6]
    for _, _, after in ticks(last, gateway, calm, now):
        last = after
    assert last.phase in FINAL


@given(st.lists(st.tuples(WAITS, QUIET), max_size=6), st.integers(1, 6))
def test_a_newer_version_alone_never_takes_a_baking_one_back(
    events: list[tuple[float, dict[str, object]]], at: int
) -> None:
    newer: dict[str, object] = {"asked": (intent(version=8),), "holders": frozenset({8})}
    waits = [(0.5, {**changes, **(newer if n >= at else {})}) for n, (_, changes) in enumerate(events, start=1)]
    for _, _, after in ticks(BAKING, Gateway(), [*waits, *[(0.5, newer)] * 3], NOW):
        assert after.phase in (Phase.BAKING, Phase.PROMOTING, Phase.SUCCEEDED)
    assert after.phase is Phase.SUCCEEDED
