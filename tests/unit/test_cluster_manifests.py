"""The controller in a cluster as objects: complete, and such as every Kubernetes of the last years takes."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from pipelines.cluster_install import FILES, MANIFESTS
from pipelines.cluster_manifests import CONTROLLER, Wanted, completed
from pipelines.settings import Settings
from registry_hooks.model_version import ModelVersion
from serving import kubernetes_objects as revisions
from serving.gateway_objects import GatewayObjects
from serving.kubernetes_models import Fetched
from serving.kubernetes_objects import ClusterSettings
from serving.pod_parts import Object
from serving.revision import Revision, RevisionSettings
from tests.fixtures.kubernetes_schemas import Check

MANIFEST_FILES = [file for file in sorted(MANIFESTS.rglob("*.yaml")) if file.parent.name != "monitoring"]
"""Those of kinds that every cluster has."""
NEW_ENOUGH = [f"1.{minor}" for minor in range(25, 38)]
"""Versions of Kubernetes whose schemas are checked."""
SETTINGS = {"target": "kubernetes", "image_repository": "example.org/models", "mlflow_uri": "http://mlflow:5000"}


def manifests() -> list[Object]:
    return [one for file in FILES for one in yaml.safe_load_all((MANIFESTS / file).read_text())]


def wanted(**changes: Any) -> Wanted:
    given: dict[str, Any] = {
        "namespace": "live",
        "image": f"example.org/controller@sha256:{'0' * 64}",
        "settings": SETTINGS,
        "secrets": {"PROMOTE_TOKEN": "secret of the tests"},
    }
    return Wanted(**(given | changes))


def made(**changes: Any) -> dict[tuple[str, str], Object]:
    return {(one["kind"], one["metadata"]["name"]): one for one in completed(manifests(), wanted(**changes))}


def pods(objects: dict[tuple[str, str], Object]) -> Object:
    template: Object = objects["Deployment", CONTROLLER]["spec"]["template"]
    return template


def test_everything_is_in_the_namespace_and_what_others_need_comes_first() -> None:
    objects = completed(manifests(), wanted())
    assert {one["metadata"]["namespace"] for one in objects} == {"live"}
    kinds = [one["kind"] for one in objects]
    assert kinds.index("ServiceAccount") < kinds.index("RoleBinding") < kinds.index("Deployment")
    assert kinds.index("Secret") < kinds.index("PersistentVolumeClaim") < kinds.index("Deployment")
    (subject,) = made()["RoleBinding", "mlflow-promote"]["subjects"]
    assert subject["namespace"] == "live"


def test_the_controller_has_its_image_and_settings_and_secrets_only_in_the_secret() -> None:
    objects = made(pull_secrets=("login",))
    (container,) = pods(objects)["spec"]["containers"]
    assert container["image"] == wanted().image
    assert pods(objects)["spec"]["imagePullSecrets"] == [{"name": "login"}]
    settings = yaml.safe_load(objects["ConfigMap", "mlflow-promote-settings"]["data"]["settings.yaml"])
    assert settings == SETTINGS
    secret = objects.pop(("Secret", "mlflow-promote"))["data"]["PROMOTE_TOKEN"]
    assert base64.b64decode(secret) == b"secret of the tests"
    assert "secret of the tests" not in yaml.safe_dump(list(objects.values()))


def test_it_is_started_anew_for_other_settings_and_not_for_other_policies() -> None:
    annotations = pods(made())["metadata"]["annotations"]
    assert pods(made(policies={"churn.yaml": "model: churn"}))["metadata"]["annotations"] == annotations
    for changed in (made(settings=SETTINGS | {"threads": 2}), made(secrets={"PROMOTE_TOKEN": "another of the tests"})):
        assert pods(changed)["metadata"]["annotations"] != annotations
    assert ("ConfigMap", "mlflow-promote-policies") not in made()
    policies = made(policies={"churn.yaml": "model: churn"})["ConfigMap", "mlflow-promote-policies"]
    assert policies["data"] == {"churn.yaml": "model: churn"}


def test_manifests_are_not_changed_by_being_completed() -> None:
    given = manifests()
    completed(given, wanted())
    assert given == manifests()


def test_variables_of_the_manifest_are_settings() -> None:
    (container,) = pods(made())["spec"]["containers"]
    names = {one["name"].removeprefix("PROMOTE_").lower() for one in container["env"] if "PROMOTE_" in one["name"]}
    assert names - {"config"} <= set(Settings.model_fields)


@pytest.mark.parametrize("overlay", ["production", "trial"])
def test_the_settings_of_overlays_are_such(overlay: str, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = MANIFESTS / "overlays" / overlay
    given = yaml.safe_load((folder / "settings.yaml").read_text())
    if overlay == "trial":
        for line in (folder / "trial.env").read_text().splitlines():
            monkeypatch.setenv(*line.split("=", 1))
    assert Settings(**given).installation == given["installation"]


def of_a_revision() -> list[Object]:
    revision = Revision(
        ModelVersion("churn", 7),
        f"example.org/churn@sha256:{'0' * 64}",
        RevisionSettings(memory_mb=512, cpus=1.0, max_replicas=9, gpus=1, node_labels=(("pool", "gpu"),)),
    )
    settings = ClusterSettings("live", "live", log_claim="predictions", pull_secrets=("login",))
    deployment = revisions.deployment(revision, settings)
    owner = {**deployment, "metadata": {**deployment["metadata"], "uid": "0"}}
    return [
        deployment,
        revisions.deployment(revision, settings, fetched=Fetched("0a1b", 2**30)),
        revisions.service(revision, settings, owner),
        revisions.budget(revision, settings, owner, "policy/v1"),
        revisions.autoscaler(revision, settings, owner, "autoscaling/v2"),
        revisions.autoscaler(revision, settings, owner, "autoscaling/v1"),
    ]


def of_the_gateway() -> list[Object]:
    gateway = GatewayObjects("live", "live", "example.org/gateway:1", "{}", service="NodePort", port=30800)
    return [
        gateway.deployment(65532),
        gateway.boot(),
        gateway.reached(),
        gateway.budget("policy/v1"),
        gateway.secret("key"),
        gateway.served(),
    ]


def documents(files: Sequence[Path]) -> list[Object]:
    """Of files that are no kustomize configuration and no settings."""
    every = [one for file in files for one in yaml.safe_load_all(file.read_text())]
    return [one for one in every if one.get("kind") not in (None, "Kustomization", "Component")]


def everything() -> list[Object]:
    every = [*completed(manifests(), wanted()), *of_a_revision(), *of_the_gateway(), *documents(MANIFEST_FILES)]
    assert len(every) > 25
    return every


@pytest.mark.parametrize("version", NEW_ENOUGH)
def test_kubernetes_takes_every_object(version: str) -> None:
    for one in everything():
        kubernetes_validate.validate(one, version, strict=True)


def test_kubernetes_1_24_takes_every_object(kubernetes_1_24: Check) -> None:
    kubernetes_1_24(everything())


def mistaken() -> Object:
    (deployment, *_) = of_a_revision()
    deployment["spec"]["replica"] = 2
    return deployment


def test_a_schema_refuses_what_it_does_not_know() -> None:
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(mistaken(), NEW_ENOUGH[-1], strict=True)


def test_so_does_that_of_kubernetes_1_24(kubernetes_1_24: Check) -> None:
    with pytest.raises(AssertionError, match="replica"):
        kubernetes_1_24([mistaken()])
