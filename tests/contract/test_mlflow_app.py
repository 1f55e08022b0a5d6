"""``mlflow server --app-name promote`` and MLflow's webhooks, with a real MLflow server and a real HTTP controller."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from cryptography.fernet import Fernet

from registry_hooks.mlflow_registry import MlflowRegistry
from registry_hooks.model_version import Channel, ModelVersion
from registry_hooks.registry import RegistryError
from registry_hooks.webhook_install import NAME, install
from tests.contract.mlflow_person import MlflowPerson
from tests.contract.small_controller import SmallController, serve, until
from tests.fixtures.registry import MlflowServer, free_port, start_mlflow

TRANSITION = "mlflow/model-versions/transition-stage"
ALIAS = "mlflow/registered-models/alias"


@pytest.fixture(scope="module")
def port() -> int:
    """Where MLflow's app looks for the controller."""
    return free_port()


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    settings = {
        "PROMOTE_URL": f"http://127.0.0.1:{port}",
        "MLFLOW_WEBHOOK_ALLOWED_SCHEMES": "https,http",
        "MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS": "true",
        "MLFLOW_WEBHOOK_CACHE_TTL": "0",
        "MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY": Fernet.generate_key().decode(),
    }
    with start_mlflow(tmp_path_factory.mktemp("app"), app_name="promote", env=settings) as server:
        yield server


@pytest.fixture
def controller(port: int) -> Iterator[SmallController]:
    with serve(SmallController(), port) as controller:
        yield controller


@pytest.fixture
def person(server: MlflowServer) -> MlflowPerson:
    return MlflowPerson.at(server)


@pytest.fixture
def churn(person: MlflowPerson) -> str:
    """A model with a version 1 that no other test uses."""
    return person.register(f"churn-{uuid.uuid4().hex[:8]}", run_id=None).model


def post(server: MlflowServer, path: str, body: Any, method: str = "POST") -> httpx.Response:
    return httpx.request(method, f"{server.uri}/{path}", json=body, timeout=30)


def to_production(model: str, stage: str = "Production") -> dict[str, str]:
    return {"name": model, "version": "1", "stage": stage}


class TestWakeUp:
    @pytest.mark.parametrize("api", ["api/2.0", "ajax-api/2.0"])
    def test_a_transition_wakes_the_controller(
        self, server: MlflowServer, controller: SmallController, churn: str, api: str
    ) -> None:
        assert post(server, f"{api}/{TRANSITION}", to_production(churn)).status_code == 200
        until(lambda: controller.woken == [churn])
        assert controller.asked == [{"model": churn, "version": "1", "channel": "Production"}]

    def test_setting_and_deleting_an_alias_do(
        self, person: MlflowPerson, controller: SmallController, churn: str
    ) -> None:
        person.set_alias(churn, "champion", 1)
        until(lambda: controller.woken == [churn])
        person.set_alias(churn, "champion", None)
        until(lambda: controller.woken == [churn, churn])
        assert controller.asked == [{"model": churn, "version": "1", "channel": "@champion"}]

    def test_deleting_and_renaming_do(self, person: MlflowPerson, controller: SmallController, churn: str) -> None:
        person.rename_model(churn, f"{churn}-new")
        until(lambda: controller.woken == [churn, f"{churn}-new"])
        person.delete_version(f"{churn}-new", 1)
        until(lambda: len(controller.woken) == 3)
        person.delete_model(f"{churn}-new")
        until(lambda: len(controller.woken) == 4)
        assert controller.asked == []

    @pytest.mark.parametrize(
        "body",
        [
            b'{"name": "MODEL", "version": "9", "stage": "Production"}',
            b'{"name": "MODEL", "version": "1", "stage": "Nonsense"}',
            b'{"name": "MODEL", "version": 1, "stage": {}}',
            b'["MODEL"]',
            b'"MODEL"',
            b"{",
            b"",
        ],
    )
    def test_what_mlflow_refuses_it_refuses_as_ever_and_wakes_nobody(
        self, server: MlflowServer, mlflow_server: MlflowServer, controller: SmallController, churn: str, body: bytes
    ) -> None:
        sent = body.replace(b"MODEL", churn.encode())
        ours, plain = (
            httpx.post(f"{uri}/api/2.0/{TRANSITION}", content=sent, headers={"content-type": "application/json"})
            for uri in (server.uri, mlflow_server.uri)
        )
        assert ours.status_code == plain.status_code >= 400
        assert post(server, f"api/2.0/{ALIAS}", {"name": churn, "alias": "x", "version": "1"}).status_code == 200
        until(lambda: controller.woken == [churn])

    def test_a_body_encoded_twice_as_old_clients_send_it(
        self, server: MlflowServer, controller: SmallController, churn: str
    ) -> None:
        assert post(server, f"api/2.0/{TRANSITION}", json.dumps(to_production(churn))).status_code == 200
        until(lambda: controller.woken == [churn])
        assert controller.asked == [{"model": churn, "version": "1", "channel": "Production"}]


class TestRefusal:
    @pytest.mark.parametrize("api", ["api/2.0", "ajax-api/2.0"])
    @pytest.mark.parametrize("stage", ["Production", "production"])
    def test_a_forbidden_transition_is_refused_with_the_reason(
        self, server: MlflowServer, controller: SmallController, churn: str, api: str, stage: str
    ) -> None:
        controller.forbidden[churn] = "has to be in Staging first"
        answer = post(server, f"{api}/{TRANSITION}", to_production(churn, stage))
        assert answer.status_code == 403
        assert (answer.json()["error_code"], answer.json()["message"]) == (
            "PERMISSION_DENIED",
            "has to be in Staging first",
        )
        assert MlflowRegistry(server.uri).snapshot([churn]).holdings == frozenset()
        assert controller.woken == []

    @pytest.mark.parametrize("api", ["api/2.0", "ajax-api/2.0"])
    def test_a_forbidden_alias_is_refused(
        self, server: MlflowServer, controller: SmallController, churn: str, api: str
    ) -> None:
        controller.forbidden[churn] = "a rollout holds the lock"
        answer = post(server, f"{api}/{ALIAS}", {"name": churn, "alias": "champion", "version": "1"})
        assert (answer.status_code, answer.json()["message"]) == (403, "a rollout holds the lock")

    def test_leaving_is_never_refused(self, server: MlflowServer, controller: SmallController, churn: str) -> None:
        post(server, f"api/2.0/{TRANSITION}", to_production(churn))
        controller.forbidden[churn] = "nothing may enter"
        assert post(server, f"api/2.0/{TRANSITION}", to_production(churn, "None")).status_code == 200

    def test_the_adapter_sees_a_refusal_as_final(
        self, server: MlflowServer, controller: SmallController, churn: str
    ) -> None:
        controller.forbidden[churn] = "has to be in Staging first"
        with pytest.raises(RegistryError, match="has to be in Staging first") as raised:
            MlflowRegistry(server.uri).assign(ModelVersion(churn, 1), Channel.parse("Production"))
        assert not raised.value.retryable


class TestWithoutController:
    def test_nobody_there_means_allowed_at_once(self, server: MlflowServer, churn: str) -> None:
        began = time.monotonic()
        assert post(server, f"api/2.0/{TRANSITION}", to_production(churn)).status_code == 200
        assert time.monotonic() - began < 10

    def test_a_slow_controller_means_allowed_after_a_second(
        self, server: MlflowServer, controller: SmallController, churn: str
    ) -> None:
        controller.slowness = 10.0
        controller.forbidden[churn] = "too late"
        began = time.monotonic()
        assert post(server, f"api/2.0/{TRANSITION}", to_production(churn)).status_code == 200
        assert 1 <= time.monotonic() - began < 9

    def test_everything_else_is_mlflow_as_ever(self, server: MlflowServer, person: MlflowPerson, churn: str) -> None:
        assert httpx.get(f"{server.uri}/version").status_code == 200
        assert "<title>MLflow</title>" in httpx.get(f"{server.uri}/").text
        assert person.client.get_model_version(churn, "1").current_stage == "None"


class TestWebhook:
    def test_mlflow_delivers_what_was_installed(
        self, server: MlflowServer, person: MlflowPerson, controller: SmallController, churn: str
    ) -> None:
        first = install(server.uri, "http://127.0.0.1:9/hooks/mlflow", "another secret")
        again = install(server.uri, f"{controller.url}/hooks/mlflow", controller.secret)
        assert first == again
        (ours,) = [webhook for webhook in person.client.list_webhooks() if webhook.name == NAME]
        assert ours.url == f"{controller.url}/hooks/mlflow"
        person.client.set_model_version_tag(churn, "1", "promote.state", "own tags wake nobody")
        person.client.set_model_version_tag(churn, "1", "reviewed", "yes")
        until(lambda: controller.woken == [churn])
        person.set_alias(churn, "champion", 1)
        until(lambda: controller.woken == [churn] * 3)

    def test_mlflow_refuses_a_url_that_it_does_not_allow(self, mlflow_server: MlflowServer) -> None:
        with pytest.raises(RegistryError, match="https") as raised:
            install(mlflow_server.uri, "http://127.0.0.1:8400/hooks/mlflow", "secret")
        assert not raised.value.retryable
