"""The gateway's objects in a cluster, and what is read from them."""

from __future__ import annotations

import base64
import json
from dataclasses import replace
from typing import Any

import pytest

from serving.cluster_gateway import bootstrap_of, nothing_served, takes_requests, url_of, waits
from serving.cluster_tables import packed, unpacked
from serving.envoy import CLUSTERS_FILE, ROUTES_FILE, GatewaySettings
from serving.gateway_objects import ADMIN, BOOTSTRAP, KEY, LISTENS, GatewayObjects
from serving.pod_parts import INSTALLATION, Object
from serving.router import RouterError

SETTINGS = GatewaySettings()
GATEWAY = GatewayObjects("models", "promote-1", "example.org/gateway@sha256:1", bootstrap_of(SETTINGS))


def everything(gateway: GatewayObjects) -> list[Object]:
    made = [gateway.deployment(7), gateway.boot(), gateway.reached(), gateway.budget("policy/v1")]
    return [*made, gateway.secret("k"), gateway.served()]


def pod(gateway: GatewayObjects) -> Object:
    found: Object = gateway.deployment(7)["spec"]["template"]["spec"]
    return found


def test_all_of_it_is_in_its_namespace_and_found_by_its_installation() -> None:
    for made in everything(GATEWAY):
        assert made["metadata"]["namespace"] == "models"
        assert made["metadata"]["labels"][INSTALLATION] == "promote-1"
    names = [(made["kind"], made["metadata"]["name"]) for made in everything(GATEWAY)]
    assert len(set(names)) == len(names)


def test_nothing_in_the_pod_may_do_more_than_it_has_to() -> None:
    spec = pod(GATEWAY)
    assert not spec["automountServiceAccountToken"]
    assert (spec["securityContext"]["runAsNonRoot"], spec["securityContext"]["runAsUser"]) == (True, 7)
    for container in [*spec["initContainers"], *spec["containers"]]:
        allowed = container["securityContext"]
        assert (allowed["readOnlyRootFilesystem"], allowed["allowPrivilegeEscalation"]) == (True, False)
        assert allowed["capabilities"] == {"drop": ["ALL"]}


def test_only_the_pod_itself_reaches_the_administration() -> None:
    boot = json.loads(GATEWAY.boot()["data"][BOOTSTRAP])
    assert boot["admin"]["address"]["socket_address"] == {"address": "127.0.0.1", "port_value": ADMIN}
    (listener,) = boot["static_resources"]["listeners"]
    assert listener["address"]["socket_address"] == {"address": "0.0.0.0", "port_value": LISTENS}
    ports = [port["containerPort"] for container in pod(GATEWAY)["containers"] for port in container["ports"]]
    assert ADMIN not in ports


def test_pods_are_replaced_when_what_they_start_with_changes() -> None:
    def noted(settings: GatewaySettings) -> Any:
        template = replace(GATEWAY, bootstrap=bootstrap_of(settings)).deployment(7)["spec"]["template"]
        return template["metadata"]["annotations"]

    assert noted(SETTINGS) == noted(GatewaySettings(port=9999))
    assert noted(SETTINGS) != noted(GatewaySettings(request_seconds=7.0))


@pytest.mark.parametrize(("port", "fixed"), [(30000, 30000), (32767, 32767), (8080, None), (32768, None)])
def test_a_port_of_the_nodes_is_the_same_where_it_may_be(port: int, fixed: int | None) -> None:
    service = replace(GATEWAY, port=port, service="NodePort").reached()["spec"]
    assert (service["type"], service["ports"][0].get("nodePort")) == ("NodePort", fixed)
    assert "nodePort" not in replace(GATEWAY, port=port).reached()["spec"]["ports"][0]


def test_the_key_is_told_to_nobody_but_what_runs_beside_envoy() -> None:
    assert base64.b64decode(GATEWAY.secret("the key")["data"][KEY]) == b"the key"
    assert [one["name"] for one in pod(GATEWAY)["containers"] if one.get("env")] == ["serve"]


@pytest.mark.parametrize(
    ("spec", "status", "url"),
    [
        ({"type": "ClusterIP"}, {}, "http://g.models.svc:8080"),
        ({"type": "NodePort"}, {"loadBalancer": {}}, "http://10.0.0.1:30080"),
        ({"type": "LoadBalancer"}, {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}}, "http://1.2.3.4:8080"),
        ({"type": "LoadBalancer"}, {"loadBalancer": {"ingress": [{"hostname": "lb.x"}]}}, "http://lb.x:8080"),
        ({"type": "LoadBalancer"}, {"loadBalancer": {}}, "http://g.models.svc:8080"),
    ],
)
def test_clients_are_told_where_the_service_is_published(spec: Object, status: Object, url: str) -> None:
    ports = {"ports": [{"port": 8080, "nodePort": 30080}]}
    service = {"metadata": {"name": "g", "namespace": "models"}, "spec": spec | ports, "status": status}
    assert url_of(service, "10.0.0.1") == url


READY: Object = {"type": "Ready", "status": "True"}


@pytest.mark.parametrize(
    ("conditions", "metadata", "takes"),
    [
        ([READY], {}, True),
        ([READY], {"deletionTimestamp": "2026-01-01T00:00:00Z"}, False),
        ([READY | {"status": "False"}], {}, False),
        ([], {}, False),
    ],
)
def test_a_pod_takes_requests_once_it_is_ready_and_until_it_is_to_end(
    conditions: list[Object], metadata: Object, takes: bool
) -> None:
    assert takes_requests({"metadata": metadata, "status": {"conditions": conditions}}) is takes


@pytest.mark.parametrize(
    ("status", "said"),
    [
        ({}, ""),
        (
            {"containerStatuses": [{"state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}}]},
            "ImagePullBackOff no such image",
        ),
        (
            {
                "conditions": [
                    READY,
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/1 nodes"},
                ]
            },
            "Unschedulable 0/1 nodes",
        ),
    ],
)
def test_a_pod_that_does_not_run_is_explained_in_the_clusters_words(status: Object, said: str) -> None:
    assert waits({"status": status}) == said


def test_tables_come_back_as_they_were_and_are_packed_alike_every_time() -> None:
    served = nothing_served(SETTINGS)
    assert set(served) == {f"{CLUSTERS_FILE}.gz", f"{ROUTES_FILE}.gz"}
    for content in served.values():
        assert packed(unpacked(content)) == content
    with pytest.raises(RouterError, match="broken"):
        unpacked("AAAA")
