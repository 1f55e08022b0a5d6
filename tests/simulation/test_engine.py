"""The whole engine in random worlds: ports that fail, candidates that die, people who change their minds, crashes.

`PROMOTE_WORLDS=20000 pytest tests/simulation/test_engine.py` plays more of them; a failing seed is printed and
`PROMOTE_SEED=<seed>` plays it alone.
"""

from __future__ import annotations

import logging
import os
from dataclasses import replace

import pytest

from monitoring.shadow_policy import ShadowPolicy
from pipelines.rollout import Phase
from tests.simulation.events import promote
from tests.simulation.world import POLICY, Broken, Bugs, World

WORLDS = int(os.environ.get("PROMOTE_WORLDS", "300"))
CHUNK = 100


def play(seed: int) -> set[Phase]:
    """The phases that its rollouts were seen in."""
    world, bugs = World(seed), Bugs()
    logging.getLogger("pipelines.controller").addHandler(bugs)
    try:
        world.play(rounds=world.dice.randint(20, 120))
        world.heal()
        world.check_rest()
        assert not bugs.met, f"world {seed}: {bugs.met[0]}"
    except Broken as broken:
        raise AssertionError(f"world {seed}: {broken}; play it with PROMOTE_SEED={seed}") from broken
    finally:
        logging.getLogger("pipelines.controller").removeHandler(bugs)
    return world.visited


@pytest.mark.parametrize(
    "first", [0, *(pytest.param(first, marks=pytest.mark.nightly) for first in range(CHUNK, WORLDS, CHUNK))]
)
def test_no_world_breaks_an_invariant(first: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    only = os.environ.get("PROMOTE_SEED")
    seeds = [int(only)] if only else range(first, first + CHUNK)
    visited = set[Phase]().union(*(play(seed) for seed in seeds))
    assert only or visited >= {*Phase} - {Phase.SUCCEEDED, Phase.FAILED, Phase.HALTED}


@pytest.mark.parametrize(("rate", "copies"), [(1.0, True), (1000.0, False), (None, False)])
def test_copies_come_first_where_traffic_is_low(rate: float | None, copies: bool) -> None:
    world = World(1)
    world.unrest = 0.0
    world.policy = replace(world.policy, rollout=replace(POLICY, shadow=ShadowPolicy(long_canary_seconds=600.0)))
    world.blocks.rates = {} if rate is None else {world.model: rate}
    world.play(40)
    for _ in range(5):
        promote(world)
        for _ in range(40):
            world.pass_time(2.0)
            world.round()
    assert Phase.PROGRESSING in world.visited
    assert (Phase.SHADOWING in world.visited) is copies
