"""The whole controller over the registry in memory and over a real MLflow server."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import Channel
from tests.contract.mlflow_person import MlflowPerson
from tests.contract.people import Person, Registry
from tests.contract.whole_controller import WholeController
from tests.fakes.registry import FakeRegistry

PRODUCTION, STAGING = Channel.parse("Production"), Channel.parse("Staging")
CHAMPION, CHALLENGER = Channel.parse("@champion"), Channel.parse("@challenger")

Make = Callable[[Channel, Channel], WholeController]
OVER_MLFLOW = ("TestGoingLive", "TestStaging", "TestFailure", "TestAway")
"""What is told over a real MLflow every time; the rest with it at night. Over the registry in memory everything is."""
LONG = (
    "test_the_archive_box_makes_no_difference_in_the_end",
    "test_what_happened_while_no_controller_ran_is_found_in_order",
)
"""And of that what takes longest, at night too."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and "make" in item.fixturenames:
            often = getattr(item.cls, "__name__", "") in OVER_MLFLOW and item.originalname not in LONG
            if item.callspec.params["make"] == "mlflow" and not often:
                item.add_marker(pytest.mark.nightly)


@pytest.fixture(params=["fake", "mlflow"])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Make:
    person, connect = _fake() if request.param == "fake" else _mlflow(request)
    return lambda live, pre_live: WholeController(tmp_path, person, connect, live, pre_live)


def _fake() -> tuple[Person, Callable[[], Registry]]:
    fake = FakeRegistry()

    def connect() -> Registry:
        fake._seen = None
        return fake

    return fake, connect


def _mlflow(request: pytest.FixtureRequest) -> tuple[Person, Callable[[], Registry]]:
    server = request.getfixturevalue("mlflow_server")
    return MlflowPerson.at(server), lambda: MlflowRegistry(server.uri)


@pytest.fixture
def staged(make: Make) -> WholeController:
    """The live channel is a stage."""
    return make(PRODUCTION, STAGING)


@pytest.fixture
def aliased(make: Make) -> WholeController:
    """The live channel is an alias."""
    return make(CHAMPION, CHALLENGER)


@pytest.fixture(params=[(PRODUCTION, STAGING), (CHAMPION, CHALLENGER)], ids=["stage", "alias"])
def either(request: pytest.FixtureRequest, make: Make) -> WholeController:
    """Both kinds in turn."""
    return make(*request.param)
