"""What a controller in a cluster is told of the settings that are in force where it is installed from."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipelines import cluster_install
from pipelines.client import ClientError
from pipelines.cluster_manifests import CONTROLLER
from pipelines.settings import Settings
from serving.pod_parts import Object

IMAGE = f"example.org/models/controller@sha256:{'0' * 64}"


def settings(tmp_path: Path, **more: Any) -> Settings:
    given = {"target": "kubernetes", "image_repository": "example.org/models", "mlflow_uri": "http://mlflow:5000"}
    return Settings(home=tmp_path, **(given | more))


def rendered(chosen: Settings, inside_url: str | None = None, **how: bool) -> dict[tuple[str, str], Object]:
    objects = cluster_install.render(chosen, IMAGE, inside_url, **how)
    return {(one["kind"], one["metadata"]["name"]): one for one in objects}


def told(objects: dict[tuple[str, str], Object]) -> Any:
    return yaml.safe_load(objects["ConfigMap", "mlflow-promote-settings"]["data"]["settings.yaml"])


def secrets(objects: dict[tuple[str, str], Object]) -> dict[str, str]:
    data = objects["Secret", "mlflow-promote"]["data"]
    return {name: base64.b64decode(text).decode() for name, text in data.items()}


def test_what_is_secret_is_in_the_secret_and_nowhere_else(tmp_path: Path) -> None:
    store, token = "postgresql+psycopg://promote:of-the-tests@db/promote", "a-token-of-these-tests"
    objects = rendered(settings(tmp_path, store=store, token=token, threads=4, notify=["https://example.org/hook"]))
    assert told(objects)["threads"] == 4
    assert told(objects)["image_repository"] == "example.org/models"
    found = secrets(objects)
    assert (found["PROMOTE_STORE"], found["PROMOTE_TOKEN"]) == (store, token)
    assert found["PROMOTE_NOTIFY"] == "https://example.org/hook"
    assert found["PROMOTE_MLFLOW_URI"] == "http://mlflow:5000"
    others = yaml.safe_dump([one for key, one in objects.items() if key[0] != "Secret"])
    assert "of-the-tests" not in others
    assert token not in others


def test_a_token_and_a_key_are_made_where_none_is_given(tmp_path: Path) -> None:
    one, other = (secrets(rendered(settings(tmp_path))) for _ in range(2))
    for name in ("PROMOTE_TOKEN", "PROMOTE_LOG_KEY"):
        assert len(one[name]) >= 32
        assert one[name] != other[name]


def test_what_the_controller_is_told_are_settings_that_it_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    objects = rendered(settings(tmp_path, pull_secrets=["login"], gateway_replicas=3, poll_seconds=2.0))
    for name, value in secrets(objects).items():
        monkeypatch.setenv(name, value)
    read = Settings(home=tmp_path, **told(objects))
    assert (read.gateway_replicas, read.poll_seconds, read.pull_secrets) == (3, 2.0, ("login",))
    assert read.installation == settings(tmp_path).installation


def test_the_registry_may_be_elsewhere_for_pods(tmp_path: Path) -> None:
    chosen = settings(tmp_path, registry_url="http://127.0.0.1:30500")
    assert "registry_url" not in told(rendered(chosen))
    assert told(rendered(chosen, "http://registry:5000"))["registry_url"] == "http://registry:5000"


def test_the_controller_is_given_what_reaches_the_prediction_log(tmp_path: Path) -> None:
    chosen = settings(tmp_path, predictions="s3://bucket/predictions", predictions_secret="storage")
    objects = rendered(chosen)
    (container,) = objects["Deployment", CONTROLLER]["spec"]["template"]["spec"]["containers"]
    assert {"secretRef": {"name": "storage"}} in container["envFrom"]
    assert told(objects)["predictions_secret"] == "storage"
    (container,) = rendered(settings(tmp_path))["Deployment", CONTROLLER]["spec"]["template"]["spec"]["containers"]
    assert container["envFrom"] == [{"secretRef": {"name": "mlflow-promote"}}]


def test_policies_go_along(tmp_path: Path) -> None:
    (tmp_path / "policies").mkdir()
    (tmp_path / "policies" / "churn.yaml").write_text("model: churn\n")
    assert rendered(settings(tmp_path))["ConfigMap", "mlflow-promote-policies"]["data"] == {
        "churn.yaml": "model: churn\n"
    }


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"mlflow_uri": None}, "mlflow_uri: has to be set"),
        ({"signing_key": "key.pem"}, "signing_key: is a setting of this machine"),
        ({"package_wheels": "wheels"}, "package_wheels: is a setting of this machine"),
        ({"api_port": 8500}, "api_port: is a setting of this machine"),
    ],
)
def test_what_cannot_be_in_a_cluster_is_refused_by_its_name(tmp_path: Path, more: Any, message: str) -> None:
    with pytest.raises(ClientError, match=message):
        rendered(settings(tmp_path, **more))


def test_a_second_controller_has_the_same_volume_and_leaves_one_of_both_when_nodes_are_emptied(tmp_path: Path) -> None:
    chosen = settings(tmp_path, store="postgresql+psycopg://db/promote")
    alone, both = rendered(chosen), rendered(chosen, standby=True)
    controller = both["Deployment", CONTROLLER]["spec"]
    assert controller["replicas"] == 2
    assert controller["strategy"]["type"] == "RollingUpdate"
    assert controller["template"]["spec"]["topologySpreadConstraints"][0]["whenUnsatisfiable"] == "ScheduleAnyway"
    claim = "PersistentVolumeClaim", "mlflow-promote-home"
    assert (alone[claim]["spec"]["accessModes"], both[claim]["spec"]["accessModes"]) == (
        ["ReadWriteOnce"],
        ["ReadWriteMany"],
    )
    budget = both["PodDisruptionBudget", CONTROLLER]
    assert budget["spec"]["selector"] == controller["selector"]
    assert budget["metadata"]["namespace"] == chosen.namespace
    assert both.keys() - alone.keys() == {("PodDisruptionBudget", CONTROLLER)}


def test_a_second_controller_takes_a_database_that_both_reach(tmp_path: Path) -> None:
    with pytest.raises(ClientError, match="store: has to be PostgreSQL"):
        rendered(settings(tmp_path), standby=True)
