"""What a pod takes whose model is not in its image."""

from __future__ import annotations

import json
from typing import Any

import pytest

from registry_hooks.model_version import ModelVersion
from serving.image_context import CACHE, MANIFEST, MANIFEST_BYTES
from serving.kubernetes_models import Fetched, fetched_of
from serving.kubernetes_objects import CONTAINER, ClusterSettings, deployment
from serving.pod_parts import Object
from serving.revision import Revision, RevisionSettings

GIGABYTE = 2**30
LARGE = Fetched("0a1b", 3 * GIGABYTE)
SETTINGS = ClusterSettings(
    "models",
    "promote-1",
    environment_secrets=("promote-1-servers",),
    fetching={"ARTIFACTS_URL": "http://mlflow:5000/a"},
    fetching_secrets=("promote-1-models",),
)
SHARED = ClusterSettings("models", "promote-1", models_claim="shared")


def made(settings: ClusterSettings, fetched: Fetched | None, **more: Any) -> Object:
    revision = Revision(ModelVersion("churn", 7), "registry/churn@sha256:1", RevisionSettings(**more))
    return deployment(revision, settings, fetched=fetched)


def pod(of: Object) -> Object:
    return dict(of["spec"]["template"]["spec"])


def container(of: Object) -> Object:
    (one,) = pod(of)["containers"]
    assert one["name"] == CONTAINER
    return dict(one)


def volumes(of: Object) -> dict[str, Object]:
    return {one["name"]: one for one in pod(of)["volumes"]}


@pytest.mark.parametrize(
    ("labels", "fetched"),
    [
        ({}, None),
        ({"promote.model": "churn"}, None),
        ({MANIFEST: "0a1b", MANIFEST_BYTES: "7"}, Fetched("0a1b", 7)),
        ({MANIFEST: "0a1b"}, Fetched("0a1b", 0)),
        ({MANIFEST: "0a1b", MANIFEST_BYTES: "many"}, Fetched("0a1b", 0)),
    ],
)
def test_the_labels_of_an_image_say_whether_its_model_is_fetched(
    labels: dict[str, str], fetched: Fetched | None
) -> None:
    assert fetched_of(labels) == fetched


def test_a_pod_has_room_of_its_own_for_the_model_twice_and_comes_to_a_node_that_has_room_for_it() -> None:
    of = made(SETTINGS, LARGE, cpus=1.0)
    assert volumes(of)["models"] == {"name": "models", "emptyDir": {"sizeLimit": f"{2 * 3072 + 64}Mi"}}
    assert {"name": "models", "mountPath": CACHE} in container(of)["volumeMounts"]
    resources = container(of)["resources"]
    assert resources["requests"] == {"cpu": "1000m", "ephemeral-storage": f"{3072 + 64}Mi"}
    assert resources["limits"] == {"cpu": "1000m"}
    assert container(made(SETTINGS, LARGE))["resources"] == {"requests": {"ephemeral-storage": f"{3072 + 64}Mi"}}


def test_a_claim_is_mounted_as_it_is_and_takes_nothing_of_the_nodes_disk() -> None:
    of = made(SHARED, LARGE)
    assert volumes(of)["models"] == {"name": "models", "persistentVolumeClaim": {"claimName": "shared"}}
    assert container(of)["resources"] == {}


def test_an_image_that_does_not_say_how_large_its_model_is_sets_no_limit() -> None:
    of = made(SETTINGS, Fetched("0a1b", 0))
    assert volumes(of)["models"]["emptyDir"] == {}
    assert container(of)["resources"] == {}


@pytest.mark.parametrize("settings", [SETTINGS, SHARED])
def test_the_volume_is_the_servers_to_write_to(settings: ClusterSettings) -> None:
    whole = pod(made(settings, LARGE))["securityContext"]
    assert whole["fsGroup"] == whole["runAsGroup"]
    assert whole["fsGroupChangePolicy"] == "OnRootMismatch"


def test_it_has_the_time_that_its_size_takes_besides_that_to_load() -> None:
    small, large = made(SETTINGS, None), made(SETTINGS, LARGE)
    seconds = [
        container(of)["startupProbe"]["failureThreshold"] * container(of)["startupProbe"]["periodSeconds"]
        for of in (small, large)
    ]
    assert seconds == [SETTINGS.startup_seconds, SETTINGS.startup_seconds + 3072]
    assert [of["spec"]["progressDeadlineSeconds"] for of in (small, large)] == [one + 1 for one in seconds]


def test_it_is_told_where_to_fetch_from_and_its_credentials_by_a_secret_and_others_are_not() -> None:
    fetches, others = container(made(SETTINGS, LARGE)), container(made(SETTINGS, None))
    told = {one["name"]: one["value"] for one in fetches["env"]}
    assert (told["MODEL_CACHE"], told["ARTIFACTS_URL"]) == (CACHE, "http://mlflow:5000/a")
    assert [one["secretRef"]["name"] for one in fetches["envFrom"]] == ["promote-1-servers", "promote-1-models"]
    assert not {"MODEL_CACHE", "ARTIFACTS_URL"} & {one["name"] for one in others["env"]}
    assert [one["secretRef"]["name"] for one in others["envFrom"]] == ["promote-1-servers"]
    assert "models" not in volumes(made(SETTINGS, None))


def test_what_the_policy_sets_is_what_the_server_is_told() -> None:
    of = made(SETTINGS, LARGE, environment=(("ARTIFACTS_URL", "http://near/a"),))
    assert {one["name"]: one["value"] for one in container(of)["env"]}["ARTIFACTS_URL"] == "http://near/a"


def test_without_a_model_to_fetch_nothing_is_changed() -> None:
    text = json.dumps(made(ClusterSettings("models", "promote-1"), None))
    assert "ephemeral" not in text
    assert "fsGroupChangePolicy" not in text
    assert CACHE not in text
