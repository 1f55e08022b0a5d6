"""What a revision is in a cluster."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from registry_hooks.model_version import ModelVersion
from serving.kubernetes_objects import (
    CONTAINER,
    NAME,
    ClusterSettings,
    address_of,
    autoscaler,
    budget,
    deployment,
    name_of,
    service,
)
from serving.kubernetes_reading import revision_of
from serving.pod_parts import Object
from serving.revision import Address, Revision, RevisionSettings

SETTINGS = ClusterSettings("models", "promote-1")
OWNER = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x", "uid": "u-1"}}
DNS_LABEL = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL_VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
NAMES = st.one_of(st.text(min_size=1), st.sampled_from(["3d", "---", "Übung", "模型", "a" * 300, "1" * 64, "x.y/z"]))


def revision(model: str = "churn", version: int = 7, **settings: Any) -> Revision:
    return Revision(ModelVersion(model, version), "registry/churn@sha256:1", RevisionSettings(**settings))


def pod(made: Object) -> Object:
    found: Object = made["spec"]["template"]["spec"]
    return found


def container(made: Object) -> Object:
    (one,) = pod(made)["containers"]
    assert one["name"] == CONTAINER
    return dict(one)


def variables(made: Object) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(made)["env"]}


def labels(of: object) -> Iterator[str]:
    """The values of all labels and selectors, wherever they stand."""
    if isinstance(of, dict):
        for key, inner in of.items():
            if key in ("labels", "matchLabels", "selector") and all(isinstance(one, str) for one in inner.values()):
                yield from inner.values()
            else:
                yield from labels(inner)
    elif isinstance(of, list):
        for inner in of:
            yield from labels(inner)


@given(NAMES, st.integers(1, 10**12))
def test_every_model_has_valid_names_and_is_read_back_exactly(model: str, version: int) -> None:
    there = revision(model, version, replicas=2)
    made = [deployment(there, SETTINGS), service(there, SETTINGS, OWNER), budget(there, SETTINGS, OWNER, "policy/v1")]
    for one in made:
        assert one is not None
        assert DNS_LABEL.fullmatch(one["metadata"]["name"]), one["metadata"]["name"]
        assert all(LABEL_VALUE.fullmatch(value) for value in labels(one)), list(labels(one))
    assert made[0] is not None
    assert revision_of(json.loads(json.dumps(made[0]))) == there


@pytest.mark.parametrize("model", ["churn", "3d", "Übung", "---", "a" * 300, "x.y"])
def test_names_are_kept_where_they_may_be_and_differ_where_revisions_do(model: str) -> None:
    one, other = revision(model), revision(model, workers=2)
    assert name_of(one.id) != name_of(other.id)
    assert name_of(one.id).endswith(one.id[-10:])
    assert (name_of(one.id) == one.id) == bool(DNS_LABEL.fullmatch(one.id))


def test_the_address_is_the_name_of_the_service() -> None:
    made = service(revision(), SETTINGS, OWNER)
    assert address_of(revision().id, SETTINGS) == Address(f"{made['metadata']['name']}.models.svc", 8080)
    assert made["spec"]["clusterIP"] == "None"
    pods = deployment(revision(), SETTINGS)["spec"]["template"]
    assert made["spec"]["selector"].items() <= pods["metadata"]["labels"].items()


def test_what_the_deployment_owns_goes_with_it_and_never_before() -> None:
    for made in (service(revision(), SETTINGS, OWNER), budget(revision(replicas=2), SETTINGS, OWNER, "policy/v1beta1")):
        assert made is not None
        (owner,) = made["metadata"]["ownerReferences"]
        assert (owner["uid"], owner["name"], owner["blockOwnerDeletion"]) == ("u-1", "x", True)


def test_of_several_replicas_one_goes_at_a_time() -> None:
    made = budget(revision(replicas=2), SETTINGS, OWNER, "policy/v1beta1")
    assert (made["apiVersion"], made["spec"]["maxUnavailable"]) == ("policy/v1beta1", 1)


@pytest.mark.parametrize("api", ["autoscaling/v1", "autoscaling/v2"])
def test_a_busy_revision_becomes_more_pods_up_to_its_most(api: str) -> None:
    busy = revision(replicas=2, max_replicas=9, cpus=1.0, busy_percent=60)
    made = autoscaler(busy, SETTINGS, OWNER, api)
    spec = made["spec"]
    assert (made["apiVersion"], spec["minReplicas"], spec["maxReplicas"]) == (api, 2, 9)
    assert spec["scaleTargetRef"] == {"apiVersion": "apps/v1", "kind": "Deployment", "name": name_of(busy.id)}
    assert made["metadata"]["ownerReferences"][0]["uid"] == "u-1"
    if api == "autoscaling/v1":
        assert spec["targetCPUUtilizationPercentage"] == 60
    else:
        assert spec["metrics"][0]["resource"]["target"]["averageUtilization"] == 60


def test_a_model_that_takes_a_gpu_goes_where_there_are_some() -> None:
    made = deployment(revision(gpus=2, node_labels=(("pool", "gpu"),)), SETTINGS)
    assert container(made)["resources"]["limits"] == {"nvidia.com/gpu": "2"}
    assert pod(made)["nodeSelector"]["pool"] == "gpu"
    assert variables(made)["DEVICE"] == "gpu"
    assert "DEVICE" not in variables(deployment(revision(), SETTINGS))
    assert variables(deployment(revision(gpus=1, environment=(("DEVICE", "cpu"),)), SETTINGS))["DEVICE"] == "cpu"


def test_a_pod_may_do_nothing_but_serve() -> None:
    made = deployment(revision(), SETTINGS)
    inside, whole = container(made)["securityContext"], pod(made)["securityContext"]
    assert inside == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert whole["runAsNonRoot"]
    assert whole["runAsUser"] > 0
    assert whole["runAsGroup"] > 0
    assert whole["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not pod(made)["automountServiceAccountToken"]
    assert not pod(made)["enableServiceLinks"]


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({}, {}),
        ({"memory_mb": 512}, {"memory": "512Mi"}),
        ({"cpus": 1.5}, {"cpu": "1500m"}),
        ({"cpus": 0.0001, "memory_mb": 64}, {"cpu": "1m", "memory": "64Mi"}),
    ],
)
def test_what_it_may_take_is_what_it_asks_for(settings: dict[str, Any], wanted: dict[str, str]) -> None:
    resources = container(deployment(revision(**settings), SETTINGS))["resources"]
    assert resources.get("limits", {}) == resources.get("requests", {}) == wanted


@pytest.mark.parametrize(("drain", "pause", "least"), [(30.0, 5.0, 35), (0.5, 0.2, 1), (600.0, 0.0, 600)])
def test_it_is_not_killed_before_it_is_drained(drain: float, pause: float, least: int) -> None:
    made = deployment(revision(drain_seconds=drain), ClusterSettings("models", "one", pause_seconds=pause))
    assert pod(made)["terminationGracePeriodSeconds"] > least
    assert variables(made)["DRAIN"] == str(drain)
    assert str(pause) in container(made)["lifecycle"]["preStop"]["exec"]["command"][-1]


def test_a_model_that_takes_minutes_to_load_is_not_killed_meanwhile() -> None:
    made = deployment(revision(), SETTINGS)
    probe = container(made)["startupProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] == SETTINGS.startup_seconds
    assert made["spec"]["progressDeadlineSeconds"] > SETTINGS.startup_seconds
    assert probe["httpGet"]["path"] == container(made)["readinessProbe"]["httpGet"]["path"] == "/v2/health/ready"
    assert container(made)["livenessProbe"]["httpGet"]["path"] == "/v2/health/live"


def test_variables_of_the_revision_win_over_those_of_the_installation() -> None:
    settings = ClusterSettings("models", "one", "s3://logs/x", {"A": "1", "B": "1"}, ("keys",), ("login",))
    there = revision(environment=(("B", "2"),))
    made = deployment(there, settings)
    told = variables(made)
    assert (told["A"], told["B"], told["PREDICTION_LOG"]) == ("1", "2", "s3://logs/x")
    assert (told["REVISION"], told["MODEL_NAME"], told["MODEL_VERSION"]) == (there.id, "churn", "7")
    assert container(made)["envFrom"] == [{"secretRef": {"name": "keys"}}]
    assert pod(made)["imagePullSecrets"] == [{"name": "login"}]


def test_what_is_not_asked_for_is_not_in_the_pod() -> None:
    made = deployment(revision(), SETTINGS)
    assert not {"imagePullSecrets", "serviceAccountName", "nodeSelector"} & pod(made).keys()
    chosen = ClusterSettings("models", "one", service_account="servers", node_selector={"gpu": "yes"})
    assert pod(deployment(revision(), chosen))["serviceAccountName"] == "servers"
    assert pod(deployment(revision(), chosen))["nodeSelector"] == {"gpu": "yes"}


def test_ready_pods_are_never_taken_away_first_and_are_apart_where_they_can_be() -> None:
    made = deployment(revision(replicas=3), SETTINGS)
    assert made["spec"]["replicas"] == 3
    assert made["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    spread = pod(made)["topologySpreadConstraints"]
    assert {one["whenUnsatisfiable"] for one in spread} == {"ScheduleAnyway"}
    assert all(one["labelSelector"]["matchLabels"][NAME] == name_of(revision(replicas=3).id) for one in spread)


def test_one_that_is_paused_differs_in_nothing_else() -> None:
    whole, paused = deployment(revision(), SETTINGS), deployment(revision(), SETTINGS, paused=True)
    assert paused["spec"].pop("paused") is True
    assert paused == whole


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"namespace": "Models"}, "namespace 'Models'"),
        ({"installation": "a_b"}, "installation 'a_b'"),
        ({"installation": ""}, "installation ''"),
        ({"log_url": "/data"}, "log_url '/data' must be a URL"),
        ({"pause_seconds": -1.0}, "pause_seconds"),
        ({"startup_seconds": 0}, "startup_seconds"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_their_name(changed: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        ClusterSettings(**{"namespace": "models", "installation": "one", **changed})
