"""Controllers that die: at every phase of a rollout, and with another one waiting."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import installed
from tests.e2e.loop import Loop, failed, free_ports, until

PHASES = ("checking", "building", "starting", "proving", "progressing", "promoting", "rolling_back")
LONG = ("building", "starting", "progressing", "rolling_back")
"""Those that last for more than one round, in which a controller is hit for certain."""


@pytest.fixture(scope="module")
def mortal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """An installation whose controller gets killed; former revisions are kept for seconds only."""
    yield from installed(tmp_path_factory.mktemp("mortal") / "home", keep_warm="3s")


def saved_phase(loop: Loop, version: int) -> str | None:
    """The phase that the store has of the version's rollout, read past the controller."""
    with sqlite3.connect(loop.home / "store.db", timeout=5.0) as store:
        row = store.execute(
            "select phase from rollouts where version = ? and channel = 'Production' order by begun desc", (version,)
        ).fetchone()
    return str(row[0]) if row else None


def kill_in(loop: Loop, version: int, phase: str, controller: subprocess.Popen[bytes]) -> str:
    """Kill the controller as soon as the store has `phase`, or a later one; the phase in which it died."""
    deadline = time.monotonic() + 180
    reached = None
    while reached is None or reached in PHASES[: PHASES.index(phase)]:
        assert time.monotonic() < deadline, f"the rollout never came to {phase}, it is {reached}"
        reached = saved_phase(loop, version)
        time.sleep(0.005)
    loop.kill(controller)
    died = saved_phase(loop, version)
    assert died is not None
    return died


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("phases", [LONG, pytest.param(PHASES, marks=pytest.mark.nightly)], ids=["long", "every"])
def test_a_rollout_ends_as_it_would_have_wherever_its_controller_is_killed(
    mortal: Loop, phases: tuple[str, ...]
) -> None:
    # given a live version under traffic
    loop, model = mortal, "mortal"
    live = loop.register(model)
    loop.transition(model, live, "Production")
    loop.await_state(model, live, "succeeded")
    died_in = []
    with loop.traffic(model, rate=40.0) as results:
        for phase in phases:
            # when the controller is killed in this phase of the next version's rollout, and started again
            bad = phase == "rolling_back"
            version = loop.register(model, fails=0.6 if bad else 0.0)
            loop.transition(model, version, "Production")
            died_in.append(kill_in(loop, version, phase, loop.controllers[-1]))
            loop.start()
            # then the rollout ends as it would have
            loop.await_state(model, version, "failed" if bad else "succeeded")
            live = live if bad else version
            assert loop.served(model) == str(live)
            until(lambda: loop.stage(model, live) == "Production", 30, "the live version is in Production")  # noqa: B023
            # then every revision runs once, and none is left behind
            until(lambda: len(loop.processes(model)) == 1, 60, f"one revision runs after a death in {phase}")
    assert set(died_in) >= set(LONG), died_in
    causes = set(failed(results))
    assert causes <= {"500"}, failed(results)


@pytest.mark.postgres
@pytest.mark.timeout(600)
def test_a_second_controller_takes_over_within_fifteen_seconds(
    tmp_path_factory: pytest.TempPathFactory, postgres_database: Callable[[], str]
) -> None:
    home: Path = tmp_path_factory.mktemp("two") / "home"
    stories = installed(home, store=postgres_database())
    loop = next(stories)
    try:
        # given two controllers on one PostgreSQL, and a rollout in its canary
        model, first, api = "two", loop.controllers[0], free_ports(1)[0]
        loop.start(PROMOTE_API_PORT=str(api))
        live = loop.register(model)
        loop.transition(model, live, "Production")
        loop.await_state(model, live, "succeeded")
        version = loop.register(model)
        loop.transition(model, version, "Production")
        loop.await_state(model, version, "progressing")
        # when the one that leads is killed
        before = loop.ask("/status")["controller"]["holder"]
        assert str(first.pid) in before
        loop.ports["api_port"] = api
        killed = time.monotonic()
        loop.kill(first)
        # then the other one leads within fifteen seconds, and the rollout goes on to its end
        until(lambda: (loop.ask("/status")["controller"] or {}).get("holder") not in (None, before), 15, "it leads")
        assert time.monotonic() - killed < 15
        with loop.traffic(model):
            loop.await_state(model, version, "succeeded")
        assert loop.served(model) == str(version)
    finally:
        next(stories, None)
