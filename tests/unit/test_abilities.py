"""What a policy can have with each router, and the settings that choose one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from monitoring.label_policy import LabelMode
from monitoring.shadow_policy import ShadowMode
from pipelines import cluster_install
from pipelines.abilities import RouterKind, fitted
from pipelines.cli import app
from pipelines.policies import Policies, check
from pipelines.policy import Policy, PolicyError
from pipelines.policy_file import read_policy
from pipelines.settings import Settings, SettingsError, load

HTTPROUTE = RouterKind.HTTPROUTE
IN_A_CLUSTER: dict[str, Any] = {
    "target": "kubernetes",
    "image_repository": "example.org/models",
    "mlflow_uri": "http://mlflow:5000",
}
ROUTES: dict[str, Any] = IN_A_CLUSTER | {
    "router": "httproute",
    "gateway_parent": "gateways/public",
    "gateway_url": "http://models.example.org",
}


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in os.environ if name.upper().startswith(("PROMOTE_", "MLFLOW_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROMOTE_HOME", str(tmp_path / "home"))


def policy_file(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "churn.yaml"
    path.write_text(f"model: churn\n{text}\n")
    return path


@pytest.mark.parametrize(
    ("asked", "field", "allowed"),
    [
        ("rollout: {shield_bytes: 1000}", "rollout.shield_bytes", "0"),
        ("shadow: {mode: before}", "shadow.mode", "off"),
        ("labels: {mode: gate}", "labels.mode", "off"),
        ("analysis: {weight_predictions: 0.2}", "analysis.weight_predictions", "0"),
        ("analysis: {require_latency: true}", "analysis.require_latency", "false"),
    ],
)
def test_what_the_router_cannot_do_is_refused_by_field_model_and_value(
    tmp_path: Path, asked: str, field: str, allowed: str
) -> None:
    path = policy_file(tmp_path, asked)
    (wrong,) = check([path], HTTPROUTE)
    assert wrong.startswith(f"churn.yaml: {field}: must be {allowed} for churn with router httproute: ")
    assert check([path]) == []
    with pytest.raises(PolicyError, match=field):
        read_policy(path, HTTPROUTE)


def test_what_is_left_to_its_default_gets_what_the_router_can_keep(tmp_path: Path) -> None:
    rollout = read_policy(policy_file(tmp_path, "rollout: {steps: [10, 100]}"), HTTPROUTE).policy.rollout
    assert rollout.steps == (10, 100)
    assert (rollout.shield_bytes, rollout.shadow.mode, rollout.labels.mode) == (0, ShadowMode.OFF, LabelMode.OFF)
    analysis = rollout.analysis
    assert not analysis.require_latency
    assert (analysis.weight_predictions, analysis.weight_loss, analysis.weight_labels) == (0, 0, 0)
    weights = (analysis.weight_errors, analysis.weight_refusals, analysis.weight_latency)
    assert sum(weights) == pytest.approx(1)
    usual = Policy().rollout.analysis
    assert weights[0] / weights[2] == pytest.approx(usual.weight_errors / usual.weight_latency)


def test_what_a_policy_says_as_the_router_can_is_taken(tmp_path: Path) -> None:
    said = (
        "rollout: {shield_bytes: 0}\nshadow: {mode: off}\nlabels: {mode: off}\n"
        "analysis: {weight_predictions: 0, weight_errors: 0.5, weight_refusals: 0.1, weight_latency: 0.4,"
        " require_latency: false}"
    )
    analysis = read_policy(policy_file(tmp_path, said), HTTPROUTE).policy.rollout.analysis
    assert (analysis.weight_errors, analysis.weight_refusals, analysis.weight_latency) == (0.5, 0.1, 0.4)


def test_our_own_gateway_leaves_policies_as_they_are(tmp_path: Path) -> None:
    assert fitted(Policy(), RouterKind.ENVOY) == Policy()
    assert Settings(**IN_A_CLUSTER, home=tmp_path).default_policy == Policy()


def test_models_without_a_policy_are_fitted_too(tmp_path: Path) -> None:
    settings = Settings(**ROUTES, home=tmp_path)
    assert settings.default_policy == fitted(Policy(), HTTPROUTE) != Policy()
    policies = Policies(tmp_path / "none", settings.default_policy, settings.router)
    found = policies.for_model("churn")
    assert found is not None
    assert found.rollout.shield_bytes == 0


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "local", "image_repository": None}, "router: must be envoy with target local"),
        ({"gateway_parent": None}, "gateway_parent: must name the Gateway"),
        ({"gateway_url": None}, "gateway_url: must say where clients reach"),
        ({"gateway_url": None, "gateway_hostnames": "*.example.org"}, "gateway_url: must say where clients reach"),
        ({"gateway_url": "models.example.org"}, "PROMOTE_GATEWAY_URL: must be the http"),
        ({"gateway_url": "http://me:secret@models.example.org"}, "PROMOTE_GATEWAY_URL: must be .* without credentials"),
        ({"gateway_hostnames": "Models.example.org:80"}, "PROMOTE_GATEWAY_HOSTNAMES: must be hostnames"),
        ({"gateway_parent": "a/b/c/d"}, "PROMOTE_GATEWAY_PARENT: must be a Gateway's name"),
        ({"route_settle_seconds": "-1"}, "PROMOTE_ROUTE_SETTLE_SECONDS: must be"),
        ({"router": "envoy"}, "gateway_parent: is for router httproute"),
        ({"router": "nginx"}, "PROMOTE_ROUTER: must be"),
    ],
)
def test_settings_that_do_not_go_together_are_named(
    changes: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**ROUTES, **changes}.items():
        if value is not None:
            monkeypatch.setenv(f"PROMOTE_{name.upper()}", value)
    with pytest.raises(SettingsError, match=said):
        load()


def test_the_address_is_the_one_that_is_given_or_made_of_the_first_hostname(tmp_path: Path) -> None:
    assert Settings(**ROUTES, home=tmp_path).gateway_address == "http://models.example.org"
    named: dict[str, Any] = {**ROUTES, "gateway_url": None, "gateway_hostnames": "*.example.org,churn.example.org"}
    assert Settings(**named, home=tmp_path).gateway_address == "http://churn.example.org"


@pytest.mark.parametrize("settings", [IN_A_CLUSTER, ROUTES], ids=["envoy", "httproute"])
def test_rights_to_routes_are_given_only_where_routes_are_written(settings: dict[str, Any], tmp_path: Path) -> None:
    image = f"example.org/models/controller@sha256:{'0' * 64}"
    objects = cluster_install.render(Settings(**settings, home=tmp_path), image, None)
    routes = {one["kind"] for one in objects if "routes" in one["metadata"]["name"]}
    assert routes == ({"Role", "RoleBinding", "NetworkPolicy"} if settings is ROUTES else set())
    rules = [rule for one in objects if one["kind"] == "Role" for rule in one["rules"]]
    groups = {group for rule in rules for group in rule["apiGroups"]}
    assert ("gateway.networking.k8s.io" in groups) == (settings is ROUTES)


def test_policies_are_checked_for_the_router_that_is_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = str(policy_file(tmp_path, "rollout: {shield_bytes: 1000}"))
    assert CliRunner().invoke(app, ["policy", "check", path]).exit_code == 0
    for name, value in ROUTES.items():
        monkeypatch.setenv(f"PROMOTE_{name.upper()}", value)
    refused = CliRunner().invoke(app, ["policy", "check", path])
    assert refused.exit_code != 0
    assert "router httproute" in refused.output.replace("\n", " ")


def test_policies_are_checked_where_no_settings_can_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROMOTE_CONFIG", str(tmp_path / "missing.yaml"))
    path = str(policy_file(tmp_path, "rollout: {shield_bytes: 1000}"))
    assert CliRunner().invoke(app, ["policy", "check", path]).exit_code == 0
