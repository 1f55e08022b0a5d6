"""The story of a team on one server: what `mlflow-promote compose` writes, run by the real engine."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.e2e.loop import PAYLOAD, PORTS, Loop, until
from tests.fixtures.composed import Composed, composed, run
from tests.fixtures.engines import engine_of

pytestmark = [pytest.mark.docker, pytest.mark.nightly, pytest.mark.timeout(1500)]

MODEL = "composed"


@pytest.fixture
def team(tmp_path: Path) -> Iterator[Composed]:
    """A folder whose services run; in the end nothing of them is left, however the test ended."""
    engine_of("docker", "looking").close()
    team = composed(tmp_path / f"team-{uuid.uuid4().hex[:8]}")
    try:
        team.up()
        yield team
    finally:
        team.compose("down")
        engine = engine_of("docker", team.values["PROMOTE_INSTALLATION"])
        engine.purge(engine.installation)
        engine.close()
        # Without pruning, so that the next session finds the layers with the packages.
        run(["docker", "rmi", "--no-prune", "--force", f"{team.values['COMPOSE_PROJECT_NAME']}-controller"])


def person_of(team: Composed, home: Path) -> Loop:
    """Somebody with a browser and a notebook on the same server."""
    names = ("MLFLOW_PORT", "PROMOTE_API_PORT", "PROMOTE_GATEWAY_PORT", "PROMOTE_ADMIN_PORT")
    home.mkdir()
    return Loop(home, ports={name: int(team.values[key]) for name, key in zip(PORTS, names, strict=True)})


def asked(person: Loop) -> tuple[str, Any]:
    """Which version answers through the gateway, and what."""
    headers = {"content-type": "application/json"}
    told = httpx.post(person.url(MODEL), content=PAYLOAD, headers=headers, timeout=30.0).raise_for_status()
    return told.headers["x-model-version"], told.json()["predictions"]


def test_a_team_on_one_server(team: Composed, tmp_path: Path) -> None:
    person = person_of(team, tmp_path / "person")
    # given a version that a person moves to Production in this MLflow
    version = person.register(MODEL, factor=3.0)
    person.transition(MODEL, version, "Production")
    # then it goes live, and the gateway answers with what it predicts
    person.await_state(MODEL, version, "succeeded", seconds=600)
    assert asked(person) == (str(version), [{"x": 3.0}])
    # and both databases are PostgreSQL's, and the artifacts lie in the data folder
    assert sql(team, "mlflow", "select name from registered_models") == MODEL
    assert sql(team, "promote", "select count(*) from rollouts") == "1"
    assert [*(team.folder / "data" / "mlflow").rglob("MLmodel")]
    # and Prometheus reads the controller's metrics, for which it has the token that everybody needs
    assert httpx.get(f"{team.url('PROMOTE_API_PORT')}/metrics").status_code == 401
    until(lambda: prometheus(team, "up{job='mlflow-promote'}") == ["1"], 60, "the controller is up for Prometheus")
    assert prometheus(team, "promote_log_lines_total") != []
    # and whoever has the folder commands the controller
    assert status(team)["models"][0]["model"] == MODEL

    # when all of it is taken down
    team.compose("down")
    # then clients are answered as before
    assert team.containers() == []
    assert asked(person) == (str(version), [{"x": 3.0}])
    # and when it is brought up again, it knows what is live
    team.up()
    assert status(team)["models"][0]["version"] == version
    assert team.write() == []

    # when everything is stopped
    team.compose("stop", "controller")
    team.compose("run", "--rm", "--no-deps", "controller", "down", "--purge")
    team.compose("down")
    # then nothing of it is left in the engine
    assert {kind: found for kind, found in team.left().items() if found} == {}


def sql(team: Composed, database: str, question: str) -> str:
    options = ("--username=promote", "--tuples-only", "--no-align", f"--dbname={database}")
    return team.compose("exec", "-T", "postgres", "psql", *options, "--command", question).strip()


def prometheus(team: Composed, question: str) -> list[str]:
    """The values that it answers with."""
    url = f"{team.url('PROMETHEUS_PORT')}/api/v1/query"
    told = httpx.get(url, params={"query": question}, timeout=10.0).raise_for_status().json()
    return [one["value"][1] for one in told["data"]["result"]]


def status(team: Composed) -> Any:
    return json.loads(team.compose("exec", "-T", "controller", "mlflow-promote", "status", "--json"))
