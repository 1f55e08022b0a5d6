"""The promises of the whole analysis, in seeded simulations few enough for every run of the tests.

A test fails where a target is missed by more than chance would have it with so few replicates;
`benchmarks.canary_targets` has more of them.
"""

from __future__ import annotations

import pytest

from benchmarks.canary.comparison import BAD, OURS, costs
from benchmarks.canary.figure import NEVER, mean, share
from benchmarks.canary_targets import TARGETS

TIMED = {"G19"}
"""How long something takes is measured, never tested."""
LONG = {"G7", "G9"}
"""Those that take minutes even with few replicates."""


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.nightly] if name in LONG else [])
        for name in sorted(TARGETS.keys() - TIMED)
    ],
)
def test_no_target_is_missed_by_more_than_chance(name: str) -> None:
    target, _, few = TARGETS[name]
    figures = target(few)
    assert figures
    assert [figure.told() for figure in figures if figure.missed] == []


@pytest.mark.parametrize("world", BAD)
def test_others_are_tried_on_the_same_requests_and_find_what_they_can(world: str) -> None:
    found = costs(BAD[world], 0)
    assert found[OURS].back
    assert found["Flagger"].back
    assert found["Argo Rollouts"].back == (world == "dead") or world == "errors x5"
    assert found[OURS].requests < found["Flagger"].requests


def test_a_figure_is_missed_only_where_chance_does_not_explain_it() -> None:
    assert not share("G", "", 2, 100, 1, 0.01).met
    assert not share("G", "", 2, 100, 1, 0.01).missed
    assert share("G", "", 9, 100, 1, 0.01).missed
    assert mean("G", "", [3.0, NEVER], 1, 4.0).met is False
    assert mean("G", "", [5.0, 5.1, 4.9, 5.0], 1, 4.0).missed
    assert not mean("G", "", [3.0, 6.0, 2.0, 5.5], 1, 4.0).missed
