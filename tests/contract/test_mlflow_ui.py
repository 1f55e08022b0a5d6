"""MLflow's own UI over our MLflow app: a person's transition arrives, and a refusal is shown with its reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from registry_hooks.mlflow_registry import MlflowRegistry
from tests.contract.mlflow_person import MlflowPerson
from tests.contract.small_controller import SmallController, serve, until
from tests.e2e.mlflow_ui import CHROMIUM, promote_in_ui
from tests.fixtures.registry import MlflowServer, free_port, start_mlflow

pytestmark = [pytest.mark.chromium, pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")]


@pytest.fixture(scope="module")
def controller() -> Iterator[SmallController]:
    with serve(SmallController(), free_port()) as controller:
        yield controller


@pytest.fixture(scope="module")
def server(controller: SmallController, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    place = tmp_path_factory.mktemp("ui")
    with start_mlflow(place, app_name="promote", env={"PROMOTE_URL": controller.url}) as server:
        yield server


@pytest.fixture
def person(server: MlflowServer) -> MlflowPerson:
    return MlflowPerson.at(server)


def stages(server: MlflowServer, model: str) -> set[tuple[int, str]]:
    return {(h.version.version, str(h.channel)) for h in MlflowRegistry(server.uri).snapshot([model]).holdings}


def test_production_picked_by_hand(server: MlflowServer, controller: SmallController, person: MlflowPerson) -> None:
    for _ in range(2):
        person.register("customer churn", run_id=None)
    assert promote_in_ui(server.uri, "customer churn", 1) is None
    assert stages(server, "customer churn") == {(1, "Production")}
    until(lambda: controller.woken == ["customer churn"])
    assert promote_in_ui(server.uri, "customer churn", 2, archive_existing=True) is None
    assert stages(server, "customer churn") == {(1, "Archived"), (2, "Production")}


def test_the_ui_shows_why_a_transition_is_refused(
    server: MlflowServer, controller: SmallController, person: MlflowPerson
) -> None:
    person.register("fraud", run_id=None)
    controller.forbidden["fraud"] = "fraud has to be in Staging before Production"
    shown = promote_in_ui(server.uri, "fraud", 1)
    assert shown is not None
    assert "fraud has to be in Staging before Production" in shown
    assert stages(server, "fraud") == set()
