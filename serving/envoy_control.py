"""The controller's own way into a network in which nothing but the gateway can be reached from outside.

Pure. One more listener of the gateway, for whoever knows the key: what is asked of a revision's own name goes on to
that revision, everything else to Envoy's administration, which itself listens inside the gateway's container only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

Config = dict[str, Any]

KEY_HEADER = "x-promote-key"
"""Has to hold the key in every request."""
DOMAIN = "promote"
"""Names of revisions in the network end so."""
ADMIN_PORT = 9901
"""Of Envoy's administration, inside its container."""

_TYPES = "type.googleapis.com/envoy"
_MOST_NAMES = 100_000
"""Clusters of revisions that were asked for of late."""


@dataclass(frozen=True, slots=True)
class Control:
    """How that listener is set up."""

    port: int
    """In the gateway's container."""
    key: str
    revision_port: int
    """Of every model server, in its container."""


def control_listener(control: Control) -> Config:
    """The listener."""
    filters = [
        _extension(
            "envoy.filters.http.dynamic_forward_proxy",
            "extensions.filters.http.dynamic_forward_proxy.v3.FilterConfig",
            sub_cluster_config={"cluster_init_timeout": "2s"},
        ),
        _extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
    ]
    connections = _extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="control",
        http_filters=filters,
        route_config={
            "name": "control",
            "virtual_hosts": [
                _host("revisions", f"*.{DOMAIN}:{control.revision_port}", control.key),
                _host("admin", "*", control.key),
            ],
        },
    )
    address = {"socket_address": {"address": "0.0.0.0", "port_value": control.port}}  # noqa: S104 - of a container
    return {"name": "control", "address": address, "filter_chains": [{"filters": [connections]}]}


def control_clusters() -> list[Config]:
    """Where the listener leads: revisions by their names, and the administration.

    A cluster is made of each name that is asked for, and not a cache of names for all: the cache would keep to the
    lifetime that engines give their names, which is up to a day, and a container that is started again has another
    address.
    """
    admin = {"socket_address": {"address": "127.0.0.1", "port_value": ADMIN_PORT}}
    endpoints = [{"lb_endpoints": [{"endpoint": {"address": admin}}]}]
    return [
        {
            "name": "revisions",
            "lb_policy": "CLUSTER_PROVIDED",
            "connect_timeout": "1s",
            "dns_refresh_rate": "1s",
            "dns_lookup_family": "V4_PREFERRED",
            "cluster_type": _extension(
                "envoy.clusters.dynamic_forward_proxy",
                "extensions.clusters.dynamic_forward_proxy.v3.ClusterConfig",
                sub_clusters_config={"max_sub_clusters": _MOST_NAMES, "sub_cluster_ttl": "60s"},
            ),
        },
        {
            "name": "admin",
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {"cluster_name": "admin", "endpoints": endpoints},
        },
    ]


def _host(name: str, domain: str, key: str) -> Config:
    known = [{"name": KEY_HEADER, "string_match": {"exact": key}}]
    route = {
        "match": {"prefix": "/", "headers": known},
        "route": {"cluster": name, "timeout": "120s"},
        "request_headers_to_remove": [KEY_HEADER],
    }
    return {"name": name, "domains": [domain], "routes": [route]}


def _extension(name: str, kind: str, **fields: object) -> Config:
    return {"name": name, "typed_config": {"@type": f"{_TYPES}.{kind}", **fields}}
