"""The story in containers, with the faults that only an engine has."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.conftest import installed_in
from tests.e2e.loop import Loop, failed, until
from tests.fixtures.engines import url_of
from tests.fixtures.relay import Relay, relay_to

pytestmark = pytest.mark.timeout(900)
"""The first image of all takes minutes on a slow machine."""
GREEDY = """
import os, mlflow, pandas

KEPT = b"x" * (2_000_000_000 if "REVISION" in os.environ else 1)

class Model(mlflow.pyfunc.PythonModel):
    def predict(self, model_input: pandas.DataFrame, params=None):
        return model_input["x"] * 1.0

mlflow.models.set_model(Model())
"""
"""Wants more memory than it may have, in a revision only."""
GONE_SECONDS = 15.0
RESTART = "RESTART_DOCKER"
"""Variable with a command that restarts the engine at DOCKER_HOST, which ends every container that it has."""


@pytest.fixture(
    params=[
        pytest.param("docker", marks=pytest.mark.docker),
        pytest.param("podman", marks=[pytest.mark.podman, pytest.mark.nightly]),
    ],
    scope="module",
)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def relay(kind: str) -> Iterator[Relay]:
    with relay_to(url_of(kind)) as relay:
        yield relay


@pytest.fixture(scope="module")
def there(kind: str, relay: Relay, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    with installed_in(kind, tmp_path_factory.mktemp(kind) / "home", relay.url) as loop:
        first = loop.register("small-story")
        loop.transition("small-story", first, "Production")
        loop.await_state("small-story", first, "succeeded", seconds=400)
        yield loop


def test_no_request_is_lost_while_a_version_goes_live_and_the_engine_is_gone_for_a_while(
    there: Loop, relay: Relay
) -> None:
    second = there.register("small-story")
    with there.traffic("small-story") as results:
        there.transition("small-story", second, "Production")
        there.await_state("small-story", second, "progressing")
        relay.cut()
        time.sleep(GONE_SECONDS)
        relay.mend()
        there.await_state("small-story", second, "succeeded")
    assert failed(results) == {}
    assert there.served("small-story") == str(second)


def test_a_candidate_that_wants_too_much_memory_is_taken_back_and_that_is_said(there: Loop) -> None:
    live = there.served("small-story")
    third = there.register("small-story", code=GREEDY)
    with there.traffic("small-story") as results:
        there.transition("small-story", third, "Production")
        there.await_state("small-story", third, "failed", seconds=400)
    assert failed(results) == {}
    reason = there.tags("small-story", third)["promote.reason"]
    assert "want of memory" in reason
    assert there.served("small-story") == live
    until(lambda: there.stage("small-story", third) != "Production", 30, "the candidate is out of the channel")


@pytest.mark.nightly
@pytest.mark.docker
@pytest.mark.skipif(RESTART not in os.environ, reason=f"{RESTART} names no command that restarts the engine")
def test_a_restart_of_the_engine_in_the_middle_of_a_rollout_is_put_right(tmp_path: Path) -> None:
    with installed_in("docker", tmp_path / "home") as loop:
        first, second = loop.register("churn"), loop.register("churn")
        loop.transition("churn", first, "Production")
        loop.await_state("churn", first, "succeeded", seconds=400)
        with loop.traffic("churn"):
            loop.transition("churn", second, "Production")
            loop.await_state("churn", second, "progressing")
            subprocess.run(os.environ[RESTART], shell=True, check=True, timeout=120)
            state = loop.await_state("churn", second, "succeeded", "failed", seconds=400)
        serving = second if state == "succeeded" else first
        until(lambda: loop.answers("churn"), 120, "the gateway answers")
        assert loop.served("churn") == str(serving)
        assert loop.stage("churn", serving) == "Production"
